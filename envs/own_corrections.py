"""Failure detectors and correctors of a user's own, as `envs.rollback` calls them; what does not fit is named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from envs.by_name import OwnCodeError, brief, calling, needs

Commands = Callable[[Any, int, np.ndarray], Iterator[np.ndarray]]


def detector_class(code: str) -> Callable[..., Any]:
    """What makes a detector for each episode. OwnCodeError if it cannot be called for one."""
    return calling(code, "the settings of collect", "an environment")


def own_detector(code: str, config: Any, env: Any) -> Any:
    """A detector of an episode that has begun. OwnCodeError for what is none."""
    made = detector_class(code)(config, env)
    needs(code, made, "detector", update="diagnosis, step")
    return made


def own_commands(code: str) -> Commands:
    """`Corrector.commands` of a function. OwnCodeError if it cannot be called so, and once it yields nothing."""
    function = calling(code, "an environment", "its seed", "the frames before")

    def commands(env: Any, seed: int, before: np.ndarray) -> Iterator[np.ndarray]:
        given = function(env, seed, before)
        if not isinstance(given, Iterable):
            raise OwnCodeError(f"{code} gave {brief(given)}; it must yield one command at a time")
        yield from given

    return commands
