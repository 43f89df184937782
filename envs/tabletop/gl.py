"""Which off-screen OpenGL to use: EGL, else OSMesa. Import this module before `mujoco`.

`import mujoco` reads MUJOCO_GL once and would otherwise look for a window system. A value set by the user is respected.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from typing import Any

BACKENDS = {"egl": "mujoco.egl", "osmesa": "mujoco.osmesa"}
OFF = ("disable", "disabled", "off", "false", "0")
ANY = ("", "enable", "enabled", "on", "true", "1")
WINDOWED = ("glfw", "glx")
INSTALL_HINT = (
    "install one with `apt-get install libegl1 libegl-mesa0` or `apt-get install libosmesa6`, or use image_size=None"
)


def egl_has_device() -> bool:
    """True if libEGL loads and lists at least one device (a GPU or Mesa's software rasterizer)."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return bool(query(0, None, ctypes.byref(count))) and count.value > 0


def osmesa_loads() -> bool:
    """True if an OSMesa library is installed."""
    for name in ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False


def choose_backend() -> str:
    """Set MUJOCO_GL if the user did not, and return it: "egl", "osmesa", "disabled", or the user's value.

    Values such as "on" leave the choice to us. Raises ValueError for a value that mujoco does not know.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen not in (*BACKENDS, *OFF, *ANY, *WINDOWED):
        raise ValueError(f"MUJOCO_GL={chosen!r} is not a GL backend; unset it or use MUJOCO_GL=egl or MUJOCO_GL=osmesa")
    if chosen in ANY:
        chosen = "egl" if egl_has_device() else "osmesa" if osmesa_loads() else "disabled"
        os.environ["MUJOCO_GL"] = chosen
    return chosen


def no_gl(error: Exception) -> RuntimeError:
    """One line that names the backend and its first complaint, and how to install another."""
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return RuntimeError(f"no off-screen OpenGL (MUJOCO_GL={choose_backend()}: {reason}); {INSTALL_HINT}")


def create_context(width: int, height: int) -> Any:
    """A current off-screen GL context of the chosen backend; in software it draws in the calling thread.

    Raises RuntimeError with one line that says how to install a backend when none works.
    """
    chosen = choose_backend()
    if chosen in OFF:
        raise RuntimeError(
            f"rendering needs off-screen OpenGL, but MUJOCO_GL={chosen}: unset MUJOCO_GL or {INSTALL_HINT}"
        )
    # A picture waits for every thread of Mesa's rasterizer, which beside busy processes is far longer than it draws.
    os.environ.setdefault("LP_NUM_THREADS", "0")
    try:
        module = importlib.import_module(BACKENDS.get(chosen, "mujoco"))
        context = module.GLContext(width, height)
        context.make_current()
    except Exception as error:  # each backend has its own exception types
        raise no_gl(error) from error
    return context


BACKEND = choose_backend()
