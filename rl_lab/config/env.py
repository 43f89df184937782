"""Settings of environments: which tasks, how they look, and what counts as success."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from envs.by_name import OwnName, is_own, split
from envs.options import AnyNumber, Pixels, PositiveFloat, nearest
from envs.tabletop import MODES, TASK_NAMES, VARIANTS, WITHOUT_TOLERANCE
from rl_lab.config.section import Section

BACKENDS = ("auto", "tabletop", "robotwin")
"""Where episodes happen, but for environments of one's own."""


class EnvConfig(Section):
    """Where episodes happen."""

    backend: OwnName = "auto"
    """auto, tabletop, robotwin, or an environment of one's own as FILE.py:FUNCTION or MODULE:FUNCTION; see
    docs/environments.md. auto: robotwin if the environment variables ROBOTWIN_ROOT and ROBOTWIN_PYTHON name a
    checkout or its runtime is installed (./setup.sh robotwin), else tabletop. An empty ROBOTWIN_ROOT means none of
    them. Its tasks and task configs are those of the checkout or the runtime."""
    tasks: AnyNumber[str] = ("handover_block",)
    """Names of tasks: of `envs.tabletop.TASK_NAMES`, or RoboTwin's files in `envs/`."""
    variants: AnyNumber[str] = ("clean",)
    """Each task runs in each of these. On the tabletop clean and randomized (lights, colours, table height, cameras,
    distractors); in RoboTwin task configs, demo_clean where nothing is given; an own environment is made by
    FUNCTION(task, variant), "default" where nothing is given."""
    image_size: Pixels = 64
    """Side of the square camera images, pixels; must be the model's."""
    command_steps: Annotated[int, Field(ge=1, le=250)] | None = None
    """Physics steps (1/250 s) that a command lasts on RoboTwin's box robot, 25 where nothing is given. Commands of the
    tabletop last 0.08 s, those of RoboTwin's own robots as long as their motion."""
    success_tolerance: PositiveFloat = 1.0
    """On the tabletop, times the distances within which an object, or a hand, has to end for success."""

    @property
    def is_own(self) -> bool:
        """Whether the backend is a function of the user's."""
        return is_own(self.backend)

    @field_validator("backend")
    @classmethod
    def _is_known(cls, backend: str) -> str:
        if is_own(backend):
            split(backend, "function")
        elif backend not in BACKENDS:
            raise ValueError(f"{backend!r} is not one of {', '.join(BACKENDS)}, nor FILE.py:FUNCTION of your own")
        return backend

    @model_validator(mode="after")
    def _names(self) -> Self:
        for key, known in (("tasks", TASK_NAMES), ("variants", VARIANTS)):
            names = getattr(self, key)
            unknown = [name for name in names if name not in known and self.backend == "tabletop"]
            if unknown:
                hint = nearest(unknown[0], known)
                raise ValueError(f"{key} has {unknown[0]!r}, which is not one of {', '.join(known)}{hint}")
            if not names or len(set(names)) < len(names):
                raise ValueError(f"{key} must name at least one, each once, but is {list(names)}")
        if self.command_steps is not None and (self.backend == "tabletop" or self.is_own):
            raise ValueError(
                f"command_steps is for RoboTwin's box robot, but the backend is {self.backend}; leave it out"
            )
        if self.success_tolerance != 1:
            rigid = [name for name in self.tasks if name in WITHOUT_TOLERANCE]
            if self.backend not in ("auto", "tabletop"):
                raise ValueError(
                    f"success_tolerance is the tabletop's, but the backend is {self.backend}; leave it out"
                )
            if rigid:
                raise ValueError(f"success_tolerance: no distance decides in {rigid[0]}; leave it out, or the task")
        return self

    def check_modes(self, modes: Sequence[str]) -> None:
        """ValueError for modes of the expert (`envs.tabletop.MODES`) that it has not got in every task."""
        for mode in modes:
            if self.backend not in ("auto", "tabletop"):
                raise ValueError(f"demos.modes are the tabletop's, but env.backend is {self.backend}; leave them out")
            without = [task for task in self.tasks if mode not in MODES.get(task, {})]
            if without:
                known = ", ".join(MODES.get(without[0], {})) or "none"
                raise ValueError(f"demos.modes: the expert of {without[0]} has no mode {mode!r}; it has {known}")
