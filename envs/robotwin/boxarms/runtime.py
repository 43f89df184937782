"""The box robot in RoboTwin's installed runtime: what is replaced when its process starts, how scenes are set up.

Differs from RoboTwin on its own robots: the embodiment; planners (see `planner`); SAPIEN's rasteriser without shadows
in place of ray tracing; square pictures, wider than those of its cameras, which would lose blocks at the table's edge;
a policy's command lasts a fixed number of physics steps, and nothing is drawn during it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from typing import Any

from . import body, planner

TASKS = ("blocks_ranking_rgb", "blocks_ranking_size", "handover_block", "stack_blocks_three", "stack_blocks_two")
"""Those that load no assets: their objects are boxes."""
COMMAND_STEPS = 25
"""Physics steps of a policy's command where nothing else is asked for: 10 Hz."""
FOVY_DEG = 52
SQUARE = "square"
"""Name of our camera among RoboTwin's types."""
FEW = 256
"""Materials and textures for which SAPIEN reserves memory; RoboTwin asks for 50000."""


def _nothing(*_: Any, **__: Any) -> None:
    pass


UNUSED: dict[str, dict[str, Any]] = {
    "cv2": {},
    "h5py": {},
    "huggingface_hub": {"snapshot_download": None},
    "imageio": {},
    "mplib": {},
    "mplib.planner": {},
    "mplib.sapien_utils": {"SapienPlanner": None, "SapienPlanningWorld": None},
    "open3d": {},
    "toppra": {"setup_logging": _nothing},
    "torch": {"manual_seed": _nothing},
    "torch.multiprocessing": {},
    "trimesh": {},
}
"""Modules that RoboTwin imports and these tasks do not use, with the names that it takes from them. They stay out even
where they are installed: torch's triton crashes beside the LLVM of a software Vulkan."""


class BoxRobot:
    """The robot of a simulator's process; made before anything of RoboTwin is imported. ValueError without a Vulkan
    driver, as RoboTwin makes no scene without a renderer. The methods are those of `robots.OwnRobot`."""

    def __init__(self) -> None:
        self._device = _device()
        for name, names in UNUSED.items():
            module = types.ModuleType(name)
            vars(module).update(names)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
        self._folder = tempfile.TemporaryDirectory(prefix=f"{body.NAME}-")
        body.write(self._folder.name)
        self._picture_px = 0
        self._drawn: tuple = ()
        """Scene and cameras that were drawn first."""
        self._replace_rendering()
        self._replace_planning()

    def describe(self, args: Mapping[str, Any]) -> dict[str, Any]:
        """Robot, planner, renderer and physics steps of a command of a scene with these arguments."""
        return {
            "robot": body.NAME,
            "planner": "closed-form inverse kinematics",
            "renderer": f"rasteriser without shadows on {self._device}",
            "command_steps": args["save_freq"],
        }

    def refusal(self, task: str, args: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
        """Why a task with this config cannot be set up; empty if it can."""
        fetched = "robotwin-download-assets --output FOLDER fetches them, then export ROBOTWIN_ASSETS_ROOT=FOLDER"
        if task not in TASKS:
            without = f"without them the box robot does {', '.join(TASKS)}"
            return f"{task} needs RoboTwin's assets and a GPU; {without}; {fetched}"
        random = args.get("domain_randomization") or {}
        needs = [name for name in ("random_background", "cluttered_table") if random.get(name)]
        return f"its {' and '.join(needs)} need RoboTwin's assets and a GPU; {fetched}" if needs else ""

    def arguments(self, args: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """Those of `setup_demo` that differ. The expert's pictures are a command apart; without a size pictures are
        those of RoboTwin's cameras."""
        changed: dict[str, Any] = {"embodiment": [body.NAME], "dual_arm_embodied": True, "save_freq": _steps(asked)}
        for arm in body.SHOULDER_Y:
            changed |= {f"{arm}_robot_file": self._folder.name, f"{arm}_embodiment_config": body.config()}
        if asked["picture_px"] is not None:
            self._picture_px = asked["picture_px"]
            changed["camera"] = {**args["camera"], "head_camera_type": SQUARE, "wrist_camera_type": SQUARE}
            changed |= {"head_camera_h": self._picture_px, "head_camera_w": self._picture_px}
        return changed

    def warm_up(self, env: Any, asked: Mapping[str, Any]) -> None:
        """Draw once: compiling the shaders takes 7 s of a core, for which only the set-up of a scene has time. What was
        drawn is kept: SAPIEN forgets the shaders with the last camera that uses them."""
        if asked["picture_px"] is not None and not self._drawn:
            env.get_obs()
            self._drawn = (env.scene, env.cameras)

    @contextlib.contextmanager
    def command(self, env: Any, asked: Mapping[str, Any]) -> Iterator[None]:
        """`take_action` takes so many physics steps meanwhile, and draws nothing: it would at each of them, and at a
        success, for nobody."""
        env._update_render = env.get_obs = _nothing
        try:
            with planner.equal_steps(_steps(asked)):
                yield
        finally:
            del env._update_render, env.get_obs

    def _replace_rendering(self) -> None:
        import sapien

        render, scene = sapien.render, sapien.Scene
        render.set_camera_shader_dir("default")
        reserve = render.set_global_config
        render.set_global_config = lambda **_: reserve(max_num_materials=FEW, max_num_textures=FEW)
        for name in ("camera_shader_dir", "ray_tracing_samples_per_pixel", "ray_tracing_path_depth"):
            setattr(render, f"set_{name}", _nothing)
        render.set_ray_tracing_denoiser = _nothing
        for name in ("add_directional_light", "add_point_light"):
            setattr(scene, name, _without_shadow(getattr(scene, name)))

    def _replace_planning(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):  # it says twice that curobo is missing
            robot = importlib.import_module("robotwin.envs.robot.robot")
            camera = importlib.import_module("robotwin.envs.camera.camera")
        vars(robot).update(
            CuroboPlanner=planner.Planner, MplibPlanner=planner.Timing, load_curobo_config=lambda folder, arm: {}
        )
        load = camera.load_task_config

        def with_square(name: str) -> dict[str, Any]:
            return {**load(name), SQUARE: {"w": self._picture_px, "h": self._picture_px, "fovy": FOVY_DEG}}

        vars(camera)["load_task_config"] = with_square


def _steps(asked: Mapping[str, Any]) -> int:
    return COMMAND_STEPS if asked["command_steps"] is None else asked["command_steps"]


def _device() -> str:
    import sapien

    try:
        return sapien.render.get_device_summary().splitlines()[0].removeprefix("GPU:").strip()
    except RuntimeError as error:
        raise ValueError(f"SAPIEN cannot draw here ({error}); run ./setup.sh robotwin") from None


def _without_shadow(add: Any) -> Any:
    def add_light(self: Any, *args: Any, **kwargs: Any) -> Any:
        return add(self, *args, **{**kwargs, "shadow": False})

    return add_light
