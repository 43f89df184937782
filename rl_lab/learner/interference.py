"""What two objectives do to the parameters they share: cosine of their gradients, drift from the start."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from rl_lab.model.sharding import whole_tensor

Groups = Mapping[str, Sequence[Tensor]]
"""Parameters by group."""


def cosines(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> dict[str, float]:
    """`cosine/GROUP` of two gradients for each group that both train, and `cosine/shared` of all of these together.

    Below 0, a step along one raises the other's loss, to first order. Empty where nothing is shared; a gradient that is
    0 has cosine 0.
    """
    shared = [group for group in first if group in second]
    if not shared:
        return {}
    found = {f"cosine/{group}": _cosine(first[group], second[group]) for group in shared}
    whole = [torch.cat([side[group] for group in shared]) for side in (first, second)]
    return found | {"cosine/shared": _cosine(*whole)}


def _cosine(first: Tensor, second: Tensor) -> float:
    product = first.double().norm() * second.double().norm()
    return (first.double() @ second.double() / product).item() if product > 0 else 0.0


@torch.no_grad()
def drift(now: Groups, start: Groups) -> dict[str, float]:
    """`drift/GROUP`: ||w - w_0|| / ||w_0|| over all weights of a group. Under several ranks all must call it."""
    return {f"drift/{group}": _distance(now[group], start[group]) / _norm(start[group]) for group in now}


def _distance(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    pairs = zip(first, second, strict=True)
    return sum((whole_tensor(a).double() - b.double()).square().sum().item() for a, b in pairs) ** 0.5


def _norm(tensors: Iterable[Tensor]) -> float:
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


class Moves:
    """What each objective has done to the parameters that skills share, since the start: sums of its steps' changes.

    They add up to the whole change. Taking one away gives the model as if that objective had only trained the rest.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.sums: dict[str, list[Tensor]] = {}
        self._before: list[Tensor] = []

    @torch.no_grad()
    def begin(self) -> None:
        """Call before steps of an objective."""
        self._before = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def end(self, objective: str) -> None:
        """Call after them."""
        sums = self.sums.setdefault(objective, [torch.zeros_like(p, dtype=torch.float32) for p in self.parameters])
        for total, parameter, before in zip(sums, self.parameters, self._before, strict=True):
            total += parameter.float() - before.float()
        self._before = []

    @torch.no_grad()
    def add(self, objective: str, sign: float) -> None:
        """Add an objective's moves to the parameters, or with -1 take them away."""
        for total, parameter in zip(self.sums.get(objective, ()), self.parameters, strict=False):
            parameter.copy_(parameter.float() + sign * total)
