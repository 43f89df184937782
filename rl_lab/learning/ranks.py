"""The ranks of a learner: processes that hold a part of its weights each, and take a part of the rows of every batch.

A process is a rank where torch's process group was initialised (`rl_lab.workers.ranks` does); else there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from rl_lab.model.sharding import shard, share_like


def num_ranks() -> int:
    """How many processes the learner has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process writes the files of its learner."""
    return this_rank() == 0


def gather(value: Any) -> list[Any]:
    """A plain value of every rank, on every rank; all must call this."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def shard_heads(objective: Any) -> None:
    """Shard the modules whose parameters an objective trains; a frozen reference stays whole on every rank."""
    trained = {id(parameter) for parameter in objective.parameters()}
    for module in vars(objective).values():
        if isinstance(module, nn.Module) and trained & {id(parameter) for parameter in module.parameters()}:
            shard(module)


def share_moments(saved: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state with this rank's parts of all that is as large as the parameters."""

    def share(value: Any, parameter: nn.Parameter) -> Any:
        return share_like(value, parameter) if isinstance(value, Tensor) else value

    state = {
        index: {key: share(value, parameters[index]) for key, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    if "masters" in saved:
        state_of_masters = [share(*pair) for pair in zip(saved["masters"], parameters, strict=True)]
        return saved | {"state": state, "masters": state_of_masters}
    return saved | {"state": state}
