"""RoboTwin as the backend of a run: which one the environment names, and whether it can run what is asked."""

from __future__ import annotations

import difflib
import functools
import hashlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.robotwin import layout
from envs.robotwin.boxarms import body
from envs.robotwin.boxarms.planner import PHYSICS_HZ
from envs.robotwin.connection import (
    Connection,
    RoboTwin,
    RoboTwinError,
    RoboTwinServer,
    ServerDiedError,
    find_root,
)
from envs.robotwin.env import RoboTwinEnv
from rl_lab.common.errors import UserError
from rl_lab.common.files import folder_digests
from rl_lab.config.schema import RunConfig, WorkersConfig


def find_robotwin(workers: WorkersConfig) -> RoboTwin | None:
    """RoboTwin as ROBOTWIN_ROOT and ROBOTWIN_PYTHON name it, else the installed runtime; None if there is neither."""
    try:
        return RoboTwin.from_environment(
            start_timeout_s=workers.robotwin_start_timeout_s,
            reset_timeout_s=workers.robotwin_reset_timeout_s,
            step_timeout_s=workers.robotwin_step_timeout_s,
        )
    except ValueError:
        return None


ON_ANOTHER_ROBOT = "RoboTwin's tasks and checks on another robot, never compared with published scores"


def backend_line(config: RunConfig) -> str:
    """Where the episodes of a run happen, and why there."""
    root = find_root()
    if config.env.is_own:
        return f"your own environment {config.env.backend}"
    if config.env.backend == "robotwin":
        found = layout.detect(root or "")
        where = "RoboTwin's installed runtime" if found.is_installed else f"RoboTwin at {root}"
        return f"{where}, on the box robot: {ON_ANOTHER_ROBOT}" if found.has_box_robot else where
    return f"the embedded tabletop ({'ROBOTWIN_ROOT is not set' if root is None else _unused()})"


def _unused() -> str:
    there = "ROBOTWIN_ROOT is set" if os.environ.get("ROBOTWIN_ROOT") else "RoboTwin's runtime is installed"
    return f"{there}, but env.backend is tabletop"


def check_robotwin(config: RunConfig) -> None:
    """UserError, in one line, unless the checkout, its interpreter, the tasks and their configs are there and load.

    Starts RoboTwin's side once, without a scene.
    """
    try:
        robotwin = RoboTwin.from_environment(start_timeout_s=config.workers.robotwin_start_timeout_s)
        found = layout.detect(robotwin.root)
    except ValueError as error:
        raise UserError(str(error)) from error
    _check_names("tasks", config.env.tasks, found.tasks(), found.root)
    _check_names("variants", config.env.variants, found.task_configs(), found.root)
    _check_settings(config)
    examine(robotwin, config.env.tasks, config.env.variants, config.env.command_steps)


def _check_names(key: str, names: Sequence[str], known: Sequence[str], root: str) -> None:
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            where = "in RoboTwin variants are task configs" if key == "variants" else "tasks are its files in envs"
            raise UserError(
                f"env.{key} has {name!r}, which the RoboTwin checkout {root} lacks ({where}); {hint}; what holds in "
                f"RoboTwin only stands in the file as robotwin: {{{key}: [...]}}"
            )


def _check_settings(config: RunConfig) -> None:
    """What RoboTwin does not have."""
    if config.demos.action_noise_m > 0:
        raise UserError(
            "demos.action_noise_m disturbs an expert that reacts, but RoboTwin's is a fixed plan; set it to 0, in the "
            "file for RoboTwin alone with robotwin: {demos: {action_noise_m: 0}}"
        )
    if config.is_joint:
        raise UserError("joint training examines on seeds that RoboTwin may reject; set env.backend=tabletop")


@functools.cache
def examine(
    robotwin: RoboTwin, tasks: tuple[str, ...], variants: tuple[str, ...], command_steps: int | None = None
) -> dict[str, Any]:
    """What RoboTwin's side says of itself, once it has imported the tasks, and of each variant as `simulations`: robot,
    planner, renderer and physics steps of a command. UserError if it cannot run them."""
    simulations: dict[str, Any] = {}
    try:
        connection = Connection(robotwin)
    except ValueError as error:
        raise UserError(str(error)) from error
    except (ServerDiedError, RoboTwinError) as error:
        raise UserError(_in_one_line(f"ROBOTWIN_PYTHON {robotwin.python} cannot run RoboTwin", error)) from error
    try:
        for task in tasks:
            for variant in variants:
                asked = {"task": task, "config": variant, "command_steps": command_steps}
                simulations[variant] = connection.ask("check", robotwin.start_timeout_s, **asked)
        return {**connection.hello, "simulations": simulations}
    except (ServerDiedError, RoboTwinError) as error:
        raise UserError(_in_one_line(f"RoboTwin cannot load {task} ({variant})", error)) from error
    finally:
        connection.close()


def draw(server: RoboTwinServer) -> str:
    """Set a scene up and draw it: with which robot, planner and renderer, and how long a look takes after the first.
    UserError if it cannot, or if the picture is empty."""
    env = RoboTwinEnv("handover_block", image_size=64, screen=False, server=server)
    try:
        env.reset(seed=0)
        started = time.perf_counter()
        image = env.observe()["observation"]["head_camera"]["rgb"]
        milliseconds = 1000 * (time.perf_counter() - started)
        told = server.connection.ask("check", task=env.task, config=env.variant)
    except (ServerDiedError, RoboTwinError) as error:
        raise UserError(_in_one_line("RoboTwin cannot draw a scene", error)) from error
    if np.ptp(image) < 10:
        raise UserError("RoboTwin draws an empty picture")
    size = "x".join(map(str, image.shape[:2]))
    robot = f"{told['robot']} ({told['planner']}) with {told['renderer']}"
    return f"{robot}: three {size} pictures in {milliseconds:.0f} ms"


def _in_one_line(what: str, error: Exception) -> str:
    """The first line of an error and, if it says more, the last, which says why."""
    lines = str(error).strip().splitlines()
    last = lines[-1].strip()
    return f"{what}: {lines[0]}" + ("" if last in lines[0] else f" ({last})")


def on_box_robot(config: RunConfig) -> bool:
    """Whether the episodes of a run are the box robot's."""
    return config.env.backend == "robotwin" and layout.detect(find_root() or "").has_box_robot


def checkout_digest() -> str:
    """SHA-256 over RoboTwin's environments and settings: what the episodes of a seed depend on besides its packages."""
    found = layout.detect(find_root() or "")
    files = folder_digests(Path(found.root) / "envs") | folder_digests(Path(found.configs))
    lines = [f"{name} {digest}\n" for name, digest in files.items() if name.endswith((".py", ".yml"))]
    lines += ["on the box robot\n"] if found.has_box_robot else []
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def describe_robotwin(config: RunConfig) -> dict[str, Any]:
    """For environment.json: checkout, commit (None for the runtime, which has a version), versions, and robot, planner,
    renderer and length of a command in each variant."""
    robotwin = RoboTwin.from_environment(start_timeout_s=config.workers.robotwin_start_timeout_s)
    hello = examine(robotwin, config.env.tasks, config.env.variants, config.env.command_steps)
    commit = None if hello["layout"] == layout.PYPI else _commit(robotwin.root)
    return {key: hello[key] for key in ("root", "layout", "versions", "simulations")} | {"commit": commit}


def _commit(root: str) -> str | None:
    try:
        git = ["git", "-C", root, "rev-parse", "HEAD"]
        return subprocess.run(git, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def box_robot_row(robotwin: Mapping[str, Any]) -> list[dict[str, str]]:
    """What `describe_robotwin` found as a row of what stood in for what, if the box robot did for RoboTwin's own."""
    for simulation in robotwin.get("simulations", {}).values():
        if simulation["robot"] == body.NAME:
            steps = simulation["command_steps"]
            lasts = f"commands of {steps} physics steps ({steps / PHYSICS_HZ:g} s)"
            why = f"{simulation['planner']}, {simulation['renderer']}, {lasts}: {ON_ANOTHER_ROBOT}"
            return [{"wanted": "RoboTwin's own robot", "used": f"box robot ({body.NAME})", "why": why}]
    return []
