"""Where things lie in a RoboTwin checkout: the classic 2.0 layout, or the one of its main branch since July 2026.

Read by both interpreters: the standard library only (and PyYAML, which RoboTwin itself requires, for `read_yaml`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

CLASSIC, JULY_2026 = "classic", "2026-07"
MARKERS = {
    CLASSIC: ("envs/_base_task.py", "script", "task_config/_camera_config.yml"),
    JULY_2026: ("envs/_base_task.py", "scripts", "env_cfg/task_config/_camera_config.yml"),
}
"""Paths that must all exist for a layout."""
CONFIG_FOLDER = {CLASSIC: "task_config", JULY_2026: "env_cfg/task_config"}
SCRIPT_FOLDER = {CLASSIC: "script", JULY_2026: "scripts"}


@dataclass(frozen=True)
class Checkout:
    """One checkout."""

    name: str
    root: str

    @property
    def configs(self) -> str:
        """Folder of the task configs, cameras, embodiments and step limits."""
        return os.path.join(self.root, CONFIG_FOLDER[self.name])

    @property
    def import_paths(self) -> list[str]:
        """What RoboTwin's own scripts put on sys.path, first entry first."""
        return [self.root, os.path.join(self.root, SCRIPT_FOLDER[self.name]), self.description_utils]

    @property
    def description_utils(self) -> str:
        """Folder of `generate_episode_instructions.py`."""
        return os.path.join(self.root, "description", "utils")

    def tasks(self) -> list[str]:
        """Names of the tasks, by their files."""
        names = (name[:-3] for name in os.listdir(os.path.join(self.root, "envs")) if name.endswith(".py"))
        return sorted(name for name in names if not name.startswith("_"))

    def task_configs(self) -> list[str]:
        """Names such as demo_clean."""
        names = (name[:-4] for name in os.listdir(self.configs) if name.endswith(".yml"))
        return sorted(name for name in names if not name.startswith("_"))

    def step_limits(self) -> dict[str, int]:
        """Policy steps per task; RoboTwin takes 1000 for a task that is not listed."""
        return {str(task): int(n) for task, n in self.read_config("_eval_step_limit").items()}

    def read_config(self, name: str) -> dict[str, Any]:
        """A file of the config folder; ValueError that lists what is there."""
        path = os.path.join(self.configs, f"{name}.yml")
        if os.path.basename(name) != name or not os.path.isfile(path):
            raise ValueError(f"no config {name!r} in {self.configs}; it has {', '.join(self.task_configs())}")
        return read_yaml(path)


def detect(root: str) -> Checkout:
    """The layout of a checkout; ValueError that names what was found if it is neither, or both."""
    root = os.path.realpath(root)
    if not os.path.isdir(root):
        raise ValueError(f"ROBOTWIN_ROOT {root} is not a folder; clone RoboTwin there, or point it at your checkout")
    missing = {
        name: [marker for marker in markers if not os.path.exists(os.path.join(root, marker))]
        for name, markers in MARKERS.items()
    }
    found = [name for name, lacking in missing.items() if not lacking]
    if len(found) == 1:
        return Checkout(found[0], root)
    if found:
        left_over = [MARKERS[name][-1] for name in found]
        raise ValueError(f"{root} has both RoboTwin layouts ({' and '.join(left_over)}); remove the one left over")
    there = ", ".join(sorted(name for name in os.listdir(root) if not name.startswith("."))) or "nothing"
    lacks = "; ".join(f"{name} lacks {', '.join(lacking)}" for name, lacking in missing.items())
    raise ValueError(f"unknown RoboTwin layout at {root}: {lacks}. The folder has: {there}")


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file as a dict, loaded safely."""
    import yaml

    with open(path, encoding="utf-8") as file:
        content = yaml.safe_load(file)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a mapping of names to values")
    return content
