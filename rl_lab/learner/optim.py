"""float32 master weights of parameters that compute in bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class MasterAdamW(torch.optim.AdamW):
    """AdamW on float32 copies of the parameters; after each step the parameters are the rounded copies.

    bfloat16 has 8 significant bits, so without the copies a step of less than 1/512 of a weight would be lost.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], masters: dict[nn.Parameter, Tensor] | None = None, **options: Any
    ) -> None:
        """`masters` holds those that other optimizers of the same parameters have, and gets the new ones."""
        self.rounded, known = list(parameters), {} if masters is None else masters
        for parameter in self.rounded:
            if parameter not in known:
                known[parameter] = parameter.detach().to(torch.float32, copy=True)
        self.masters = [known[parameter] for parameter in self.rounded]
        super().__init__(self.masters, **options)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients of the parameters."""
        for parameter in self.rounded:
            parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # no closure
        """One step from the parameters' gradients, which are given up."""
        assert closure is None
        for master, parameter in zip(self.masters, self.rounded, strict=True):
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None
        super().step()
        for master, parameter in zip(self.masters, self.rounded, strict=True):
            parameter.copy_(master)
            master.grad = None

    def state_dict(self) -> dict[str, Any]:
        """As AdamW, with the master weights."""
        return {**super().state_dict(), "masters": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        saved: list[Tensor] = state["masters"]
        super().load_state_dict({key: value for key, value in state.items() if key != "masters"})
        for master, value in zip(self.masters, saved, strict=True):
            master.copy_(value)


def adamw(
    parameters: Sequence[nn.Parameter], masters: dict[nn.Parameter, Tensor] | None = None, **options: Any
) -> torch.optim.AdamW:
    """AdamW, with master weights where a parameter is not float32; see `MasterAdamW` for `masters`.

    Fused: all of a weight's update in one pass over memory, which is all that a step costs.
    """
    if all(parameter.dtype == torch.float32 for parameter in parameters):
        return torch.optim.AdamW(parameters, fused=True, **options)
    return MasterAdamW(parameters, masters, fused=True, **options)
