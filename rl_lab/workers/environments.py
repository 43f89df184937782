"""The environments of one simulation process: made once, reset by every episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import gymnasium

from envs.robotwin.connection import RoboTwin, RoboTwinServer
from envs.robotwin.env import RoboTwinEnv
from envs.types import BimanualEnv


@dataclass(frozen=True)
class EnvSpec:
    """Which environment a unit runs in."""

    backend: str
    task: str
    variant: str
    image_size: int
    instruction_split: str = "seen"


class Environments:
    """Environments by kind. All of RoboTwin's share the one server of this process, so they take turns."""

    def __init__(self, robotwin: RoboTwin | None = None) -> None:
        """`robotwin` is None on machines without."""
        self._server = None if robotwin is None else RoboTwinServer(robotwin)
        self._made: dict[EnvSpec, list[BimanualEnv]] = {}

    def of(self, spec: EnvSpec, count: int) -> list[BimanualEnv]:
        """`count` environments of a kind."""
        made = self._made.setdefault(spec, [])
        while len(made) < count:
            made.append(self._make(spec))
        return made[:count]

    def close(self) -> None:
        """End RoboTwin's server, if there is one."""
        if self._server is not None:
            self._server.close()

    def _make(self, spec: EnvSpec) -> BimanualEnv:
        options: dict[str, Any] = {
            "variant": spec.variant,
            "image_size": spec.image_size,
            "instruction_split": spec.instruction_split,
        }
        if spec.backend == "robotwin":
            assert self._server is not None, "preflight found RoboTwin"
            return cast(BimanualEnv, RoboTwinEnv(spec.task, server=self._server, **options))
        env = gymnasium.make(f"{spec.backend}/{spec.task}-v0", disable_env_checker=True, **options)
        return cast(BimanualEnv, env.unwrapped)
