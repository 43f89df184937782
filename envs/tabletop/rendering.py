"""Off-screen images: one GL context a process, one MjrContext a scene, shared by all environments of that scene.

A scene that is segmented has a second MjrContext, of one sample a pixel.
"""

from __future__ import annotations

import atexit
import copy
import os
from functools import cached_property, lru_cache
from typing import Any

import envs.tabletop.gl as gl  # isort: skip  (chooses MUJOCO_GL before mujoco is imported)
import mujoco
import numpy as np

MAX_GEOMS = 200
MAX_WIDTH, MAX_HEIGHT = 960, 480
"""Size of the off-screen buffer, pixels; the scene's offwidth and offheight."""
render_count = 0
"""Images rendered by this process; tests use it to prove that nothing renders inside a chunk."""


@lru_cache(maxsize=1)
def _gl_context(process: int) -> Any:
    """The context of a process; after a fork the child gets its own."""
    context = gl.create_context(MAX_WIDTH, MAX_HEIGHT)
    atexit.register(_free, context)
    return context


def _free(context: Any) -> None:
    """Release GL before Python takes its modules apart; OSMesa prints a traceback otherwise."""
    _renderers.clear()
    context.free()


class SceneRenderer:
    """Renders every model compiled from one scene; models may differ in poses, colours and materials, not in geoms."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._gl, self._model = _gl_context(os.getpid()), model
        self._gl.make_current()
        try:
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except mujoco.FatalError as error:
            raise gl.no_gl(error) from error
        self._scene = mujoco.MjvScene(model, maxgeom=MAX_GEOMS)
        flags = mujoco.mjtRndFlag
        for flag in (flags.mjRND_SHADOW, flags.mjRND_REFLECTION, flags.mjRND_SKYBOX, flags.mjRND_HAZE):
            self._scene.flags[int(flag)] = 0
        self._camera, self._option = mujoco.MjvCamera(), mujoco.MjvOption()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()

    @cached_property
    def _one_sample(self) -> mujoco.MjrContext:
        """For segmentation, which reads the centres of pixels alone: four samples would only cost their time."""
        model = copy.copy(self._model)
        model.vis.quality.offsamples = 0
        self._gl.make_current()
        return mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)

    def render(
        self, model: mujoco.MjModel, data: mujoco.MjData, cameras: list[int], height: int, width: int
    ) -> np.ndarray:
        """Images of cameras given by id, uint8 [len(cameras), height, width, 3], top row first.

        The views are drawn side by side and read once, because resolving the samples costs as much as drawing. All of
        them must fit into `MAX_WIDTH` x `MAX_HEIGHT`.
        """
        return self._draw(self._context, model, data, cameras, height, width)

    def _draw(
        self,
        context: mujoco.MjrContext,
        model: mujoco.MjModel,
        data: mujoco.MjData,
        cameras: list[int],
        height: int,
        width: int,
    ) -> np.ndarray:
        global render_count
        if height > MAX_HEIGHT or width * len(cameras) > MAX_WIDTH:
            raise ValueError(
                f"{len(cameras)} images of {height} x {width} do not fit the {MAX_HEIGHT} x {MAX_WIDTH} buffer; "
                "render smaller ones"
            )
        self._gl.make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, context)
        packed = np.empty((height, len(cameras) * width, 3), dtype=np.uint8)
        for i, camera in enumerate(cameras):
            self._camera.fixedcamid = camera
            if i == 0:
                everything = int(mujoco.mjtCatBit.mjCAT_ALL)
                mujoco.mjv_updateScene(model, data, self._option, self._perturb, self._camera, everything, self._scene)
            else:
                mujoco.mjv_updateCamera(model, data, self._camera, self._scene)
            mujoco.mjr_render(mujoco.MjrRect(i * width, 0, width, height), self._scene, context)
        mujoco.mjr_readPixels(packed, None, mujoco.MjrRect(0, 0, len(cameras) * width, height), context)
        render_count += len(cameras)
        views = packed[::-1].reshape(height, len(cameras), width, 3)
        return np.ascontiguousarray(views.transpose(1, 0, 2, 3))

    def segment(self, model: mujoco.MjModel, data: mujoco.MjData, camera: int, height: int, width: int) -> np.ndarray:
        """Id of the geom under the centre of every pixel, int32 [height, width], top row first; -1 where none is."""
        flags = (int(mujoco.mjtRndFlag.mjRND_SEGMENT), int(mujoco.mjtRndFlag.mjRND_IDCOLOR))
        for flag in flags:
            self._scene.flags[flag] = 1
        try:
            colours = self._draw(self._one_sample, model, data, [camera], height, width)[0]
        finally:
            for flag in flags:
                self._scene.flags[flag] = 0
        geoms = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.segid >= 0 and geom.objtype == int(mujoco.mjtObj.mjOBJ_GEOM):
                geoms[geom.segid + 1] = geom.objid
        return geoms[colours[..., 0]]  # red holds the whole number, as there are fewer than 255


_renderers: dict[tuple[int, str, bool], SceneRenderer] = {}


def scene_renderer(model: mujoco.MjModel, objects: str, clutter: bool) -> SceneRenderer:
    """This process's renderer of a scene (the arguments of `compile_scene`), created at the first use.

    Raises RuntimeError with the line that installs a GL backend when there is none.
    """
    key = (os.getpid(), objects, clutter)
    if key not in _renderers:
        _renderers[key] = SceneRenderer(model)
    return _renderers[key]
