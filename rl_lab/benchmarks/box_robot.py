"""What RoboTwin's own code costs on the box robot, where its runtime is installed: rates a core beside the tabletop's.

A step is asked of the simulator's process as a worker asks it, so its CPU time is that of both processes. What a step
with a look spends is told apart inside the simulator's process, which runs `box_robot_parts.py` instead of answering.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import numpy as np

from envs.robotwin import layout
from envs.robotwin.connection import SERVER, RoboTwin, RoboTwinServer, find_root, server_environment
from envs.robotwin.env import RoboTwinEnv

TASK, SEED, IMAGE_SIZE = "handover_block", 0, 64
PARTS = Path(__file__).with_name("box_robot_parts.py")


def cpu_seconds(pid: int) -> float:
    """CPU time of this process and of another one, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return time.process_time() + (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def steps_a_second(env: RoboTwinEnv, actions: np.ndarray, images: bool, seconds: float) -> float:
    """Commands of an expert's episode, repeated for so much CPU time; `images`: with a look after each."""
    count, spent = 0, 0.0
    while spent < seconds:
        env.reset(seed=SEED)
        started = cpu_seconds(env.server.connection.pid)
        for action in actions:
            env.advance(action)
            if images:
                env.observe()
        count, spent = count + len(actions), spent + cpu_seconds(env.server.connection.pid) - started
    return count / spent


def parts() -> dict[str, float]:
    """CPU milliseconds of a step with a look inside the simulator's process: physics, planning, rendering, in all."""
    found = layout.detect(layout.find_installed() or "")
    command = [RoboTwin.from_environment().python, str(PARTS), str(SERVER), found.root, TASK, str(IMAGE_SIZE)]
    done = subprocess.run(
        command, cwd=found.home, env=server_environment(found), capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def measure(seconds: float) -> tuple[dict[str, float], dict[str, float]]:
    """Rates (commands a second of a core, without and with looks), and the shares of a step with a look."""
    server = RoboTwinServer(RoboTwin.from_environment())
    try:
        env = RoboTwinEnv(TASK, image_size=IMAGE_SIZE, screen=False, server=server)
        env.reset(seed=SEED)
        env.expert_action()
        actions = np.array(env._plan)
        rates = {"no images": steps_a_second(env, actions, False, seconds)}
        rates["images"] = steps_a_second(env, actions, True, seconds)
    finally:
        server.close()
    inside, whole = parts(), 1000 / rates["images"]
    shares = {name: inside[name] / whole for name in ("physics", "planning", "rendering")}
    shares["its Python"] = inside["all"] / whole - sum(shares.values())
    return rates, shares | {"transport": 1 - inside["all"] / whole}


def can_measure() -> bool:
    """Whether RoboTwin's runtime is what the environment names, and the box robot its robot."""
    root = find_root()
    return root is not None and layout.detect(root).has_box_robot
