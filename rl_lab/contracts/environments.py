"""The contract of an environment: `envs.contract`, on one task and variant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

from envs import contract
from rl_lab.common.errors import UserError
from rl_lab.config.environments import declared_environment

SETTINGS: dict[str, Any] = {"task": "default", "variant": "default", "image_size": 64}


def check_environment(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a declared environment, as it is found; ValueError at the first that does not.

    `settings` may be `task`, `variant` and `image_size`. UserError for others, and where it cannot be made.
    """
    if unknown := sorted(settings.keys() - SETTINGS.keys()):
        raise UserError(f"{unknown[0]} is no setting of an environment; give {', '.join(SETTINGS)}")
    env = declared_environment(source, **SETTINGS | settings)
    with closing(env.env):
        for finding in contract.check_environment(env):
            if finding.level == "error":
                raise ValueError(finding.text)
            yield finding.text if finding.level == "ok" else f"but mind: {finding.text}"
