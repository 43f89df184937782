"""Optimizers and learning rates, and float32 master weights of parameters that compute in bfloat16."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rl_lab.config.section import OptimiserName, ScheduleName


@dataclass(frozen=True)
class Optimiser:
    """Linear warm-up from 0, then a schedule that ends at `final_lr_fraction * lr` at `steps`; and who takes the steps.

    The rate is a function of the step alone, so that nothing but the step is saved.
    """

    lr: float
    steps: int
    warmup: int = 0
    final_lr_fraction: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    schedule: ScheduleName = "cosine"
    decay_fraction: float = 0.2
    """Share of the steps, the last ones, in which warmup_stable_decay falls."""
    name: OptimiserName = "adamw"

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ... ; constant at its floor after `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        begin = self.warmup
        if self.schedule == "warmup_stable_decay":
            begin = max(begin, self.steps - round(self.decay_fraction * self.steps))
        if self.schedule == "constant" or step < begin:
            return self.lr
        progress = min(1.0, (step - begin) / max(1, self.steps - begin))
        left = 1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * (self.final_lr_fraction + (1.0 - self.final_lr_fraction) * left)

    def make(
        self, parameters: Sequence[nn.Parameter], masters: dict[nn.Parameter, Tensor] | None = None
    ) -> torch.optim.Optimizer:
        """The optimizer of some parameters; see `Masters` for `masters`."""
        options: dict[str, Any] = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.name == "adamw":
            return adamw(parameters, masters, betas=self.betas, **options)
        if all_float32(parameters):
            return torch.optim.Adafactor(parameters, **options)
        return MasterAdafactor(parameters, masters, **options)


class Masters(torch.optim.Optimizer):
    """An optimizer on float32 copies of the parameters; after each step the parameters are the rounded copies.

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
        """As the optimizer's, with the master weights."""
        return {**super().state_dict(), "masters": self.masters}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`."""
        saved: list[Tensor] = state["masters"]
        super().load_state_dict({key: value for key, value in state.items() if key != "masters"})
        for master, value in zip(self.masters, saved, strict=True):
            master.copy_(value)


class MasterAdamW(Masters, torch.optim.AdamW):
    """AdamW of `Masters`."""


class MasterAdafactor(Masters, torch.optim.Adafactor):
    """Adafactor of `Masters`."""


def all_float32(parameters: Sequence[nn.Parameter]) -> bool:
    """Whether no parameter needs a master."""
    return all(parameter.dtype == torch.float32 for parameter in parameters)


def adamw(
    parameters: Sequence[nn.Parameter], masters: dict[nn.Parameter, Tensor] | None = None, **options: Any
) -> torch.optim.AdamW:
    """AdamW, with master weights where a parameter is not float32; see `Masters` for `masters`.

    Fused: all of a weight's update in one pass over memory, which is all that a step costs.
    """
    if all_float32(parameters):
        return torch.optim.AdamW(parameters, fused=True, **options)
    return MasterAdamW(parameters, masters, fused=True, **options)
