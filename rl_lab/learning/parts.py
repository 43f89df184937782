"""A batch in parts: rows of the passes that a rank makes over it, and metrics of the whole from those of the parts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from algos.host import send
from rl_lab.learning.ranks import num_ranks, this_rank


def passes(num_rows: int, rows_at_once: int | None) -> list[Tensor]:
    """Rows of the passes of this rank: equally many on all ranks, because their weights meet in each.

    Rank r of W takes the r-th of W neighbouring shares; a rank with less to do than others ends with empty passes.
    """
    share = -(-num_rows // num_ranks())
    at_once = min(rows_at_once or share, share)
    mine = torch.arange(num_rows).tensor_split(num_ranks())[this_rank()]
    found = list(mine.split(at_once)) if len(mine) else []
    return found + [mine[:0]] * (-(-share // at_once) - len(found))


def read(values: Iterable[Tensor], device: torch.device) -> list[float]:
    """Numbers of scalars on the device or the host, in one transfer."""
    return torch.stack([send(value.detach(), device).double() for value in values]).tolist()


@dataclass
class Part:
    """Loss and metrics of a part of a batch, and of how many things each metric is a mean."""

    values: dict[str, Any]
    """Scalars on the device, then numbers."""
    counts: dict[str, int]


def combine(name: str, values: Sequence[float], counts: Sequence[int]) -> float:
    """A metric of a whole batch from those of its parts, which are means over so many things.

    Counts and losses add up; minima, maxima; norms of means over rows add up in squares; the rest are weighted means.
    """
    if len(values) == 1:
        return values[0]
    if name.endswith(("/min", "/max")):
        return (min if name.endswith("/min") else max)(values)
    if name == "loss" or name.endswith("/tokens"):
        return math.fsum(values)
    shares = [count / max(1, sum(counts)) for count in counts]
    weighted = [value * share for value, share in zip(values, shares, strict=True)]
    return math.hypot(*weighted) if name.startswith("gradient/") else math.fsum(weighted)


def combine_parts(parts: Sequence[Part]) -> dict[str, float]:
    """Metrics of a whole batch; one that says nothing about a part (no such row in it) is left out of it."""
    names = dict.fromkeys(name for part in parts for name in part.values)
    found = {}
    for name in names:
        having = [part for part in parts if name in part.values]
        found[name] = combine(name, [part.values[name] for part in having], [part.counts[name] for part in having])
    if len(parts) > 1:
        total = math.fsum(value for name, value in found.items() if name.startswith("gradient/"))
        for name in [name for name in found if name.startswith("gradient_share/")]:
            found[name] = found[name.replace("gradient_share/", "gradient/")] / max(total, 1e-12)
    return found
