"""CPU milliseconds of a step with a look, told apart where they are spent; run in the simulator's process:

python box_robot_parts.py SERVER ROOT TASK IMAGE_SIZE
"""

from __future__ import annotations

import importlib.util
import json
import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np

SPENT: defaultdict[str, float] = defaultdict(float)


def timed(owner: Any, name: str, part: str) -> None:
    """Count the CPU time of a method."""
    call = getattr(owner, name)

    def count(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return call(*args, **kwargs)
        finally:
            SPENT[part] += time.process_time() - started

    setattr(owner, name, count)


def main(server_file: str, root: str, task: str, image_size: int) -> dict[str, float]:
    """Play the expert's commands with a look after each."""
    spec = importlib.util.spec_from_file_location("_rl_lab_robotwin_server", server_file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.Server(module.layouts.detect(root))
    server.hello(module.protocol.VERSION)
    asked = {"command_steps": None, "picture_px": image_size}
    server.reset(task, "demo_clean", 0, "seen", False, asked)
    frames = server.expert("state")["frames"]
    arms = ("left", "right")
    actions = [
        np.concatenate([[*frame["endpose"][f"{arm}_endpose"], frame["endpose"][f"{arm}_gripper"]] for arm in arms])
        for frame in frames
    ]
    server.reset(task, "demo_clean", 0, "seen", False, asked)
    planner = type(server.env.robot.left_planner)
    timed(type(server.env.scene), "step", "physics")
    timed(planner, "plan_path", "planning")
    timed(type(server.env), "get_obs", "rendering")
    started = time.process_time()
    for action in actions:
        server.step(action, "ee")
        server.observe(True)
    SPENT["all"] = time.process_time() - started
    return {part: 1000 * spent / len(actions) for part, spent in SPENT.items()}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
