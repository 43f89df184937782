"""The learner: one model, a step counter, and an optimizer and schedule per objective.

It knows no method by name: an objective names the parameter groups it trains and turns a batch into a scalar.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algos.host import send
from algos.objective import Objective
from rl_lab.learning.master_weights import adamw
from rl_lab.seeding import torch_stream


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient norm is NaN or infinite; the weights are as before the step. Carries the batch."""

    def __init__(self, objective: str, step: int, batch: Any) -> None:
        super().__init__(f"{objective}: loss or gradient is not finite at step {step}; the step was not taken")
        self.batch = batch


@dataclass(frozen=True)
class Optimiser:
    """AdamW with linear warm-up from 0 and a cosine to `final_lr_fraction * lr` at `steps`."""

    lr: float
    steps: int
    warmup: int = 0
    final_lr_fraction: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0

    def lr_at(self, step: int) -> float:
        """Learning rate of step 0, 1, ... ; constant at its floor after `steps`."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.lr * (self.final_lr_fraction + (1.0 - self.final_lr_fraction) * cosine)


@dataclass
class _Track:
    """One objective with its own optimizer, schedule and step counter."""

    name: str
    objective: Objective
    optimiser: Optimiser
    parameters: list[nn.Parameter]
    adamw: torch.optim.AdamW
    step: int = 0
    scale: float = 1.0
    """Times the schedule's learning rate; lowered by a guard."""
    frozen: frozenset[str] = frozenset()
    """Groups of the objective that are no longer trained."""

    @property
    def groups(self) -> frozenset[str]:
        """Parameter groups that a step of this objective changes."""
        return frozenset(self.objective.groups) - self.frozen


class WeightAverage:
    """Exponential moving average of the trained weights, started at `start_step`: w_ema = d w_ema + (1 - d) w.

    In float32, where a small part of a bfloat16 weight is not lost.
    """

    def __init__(self, policy: nn.Module, decay: float, start_step: int) -> None:
        self.policy, self.decay, self.start_step = policy, decay, start_step
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Fold in the weights after step number `step` (1-based)."""
        if step < self.start_step:
            return
        current = {name: value for name, value in self.policy.named_parameters() if value.requires_grad}
        if not self.weights:
            self.weights = {name: value.detach().to(torch.float32, copy=True) for name, value in current.items()}
            return
        now = [current[name].float() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), now, 1.0 - self.decay)

    @torch.no_grad()
    def copy_into_policy(self) -> None:
        """Replace the policy's weights by their average, if it has started."""
        parameters = dict(self.policy.named_parameters())
        for name, value in self.weights.items():
            parameters[name].copy_(value)


def read(values: Iterable[Tensor], device: torch.device) -> list[float]:
    """Numbers of scalars on the device or the host, in one transfer."""
    return torch.stack([send(value.detach(), device).double() for value in values]).tolist()


def combine(name: str, values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """A metric of a whole batch from those of its parts: counts add up, the rest are means by rows, minima, maxima."""
    stacked = torch.stack([value.detach().float() for value in values])
    if name.endswith(("/min", "/max")):
        return stacked.amin() if name.endswith("/min") else stacked.amax()
    if name.endswith("/tokens"):
        return stacked.sum()
    return (stacked * torch.tensor(shares, device=stacked.device)).sum()


class Learner:
    """Owns a policy and steps it by objectives.

    On CPU the same seed and batches give the same bits; all randomness inside a step comes from a generator addressed
    by (seed, objective, step).
    """

    def __init__(self, policy: Any, *, seed: int) -> None:
        self.policy = policy
        self.seed = seed
        self.tracks: dict[str, _Track] = {}
        self._masters: dict[nn.Parameter, Tensor] = {}
        """float32 masters of bfloat16 weights; objectives that train the same weights share them."""
        self.average: WeightAverage | None = None
        self._active: str | None = None

    def add(self, name: str, objective: Objective, optimiser: Optimiser) -> None:
        """Register an objective under a name of the run."""
        groups = self.policy.parameter_groups()
        unknown = set(objective.groups) - set(groups)
        if unknown:
            raise ValueError(f"{name} trains unknown parameter groups {sorted(unknown)}; there are {sorted(groups)}")
        parameters = [parameter for group in objective.groups for parameter in groups[group]]
        parameters += list(objective.parameters())
        options = {"lr": optimiser.lr, "betas": optimiser.betas, "weight_decay": optimiser.weight_decay}
        stepper = adamw(parameters, self._masters, **options)
        self.tracks[name] = _Track(name, objective, optimiser, parameters, stepper)

    def average_weights(self, decay: float, start_step: int) -> None:
        """Keep a moving average of the weights from now on."""
        self.average = WeightAverage(self.policy, decay, start_step)

    def _activate(self, name: str) -> None:
        """Only the parameter groups of this objective require gradients."""
        if name == self._active:
            return
        for group, parameters in self.policy.parameter_groups().items():
            for parameter in parameters:
                parameter.requires_grad_(group in self.tracks[name].groups)
        self._active = name

    def scale_lr(self, name: str, factor: float) -> None:
        """Multiply the learning rate of an objective's further steps."""
        self.tracks[name].scale *= factor

    def freeze(self, name: str, groups: Iterable[str]) -> None:
        """Train these groups no longer by this objective; others may. ValueError if that leaves it nothing."""
        track = self.tracks[name]
        if not track.groups - set(groups):
            raise ValueError(f"{name} trains only {sorted(track.groups)}; without them it has nothing to train")
        track.frozen |= set(groups)
        self._active = None

    def gradients(self, name: str, batch: Any, rows_at_once: int | None = None) -> dict[str, Tensor]:
        """Gradient of an objective's next step on a batch, without the step: a vector of each group that it trains."""
        track = self.tracks[name]
        self._activate(name)
        self.policy.train()
        track.adamw.zero_grad(set_to_none=True)
        self._gradients(track, batch, rows_at_once)
        found = {
            group: torch.cat(
                [(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
            )
            for group, parameters in self.policy.parameter_groups().items()
            if group in track.groups
        }
        track.adamw.zero_grad(set_to_none=True)
        return found

    def _gradients(self, track: _Track, batch: Any, rows_at_once: int | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Backward pass of the loss, of a large batch in parts whose gradients add up to its own; loss and metrics."""
        generator = torch_stream(self.seed, "flow", track.name, track.step)
        if rows_at_once is None or len(batch) <= rows_at_once:
            loss, metrics = track.objective.loss(self.policy, batch, generator)
            loss.backward()
            return loss, metrics
        denominator = getattr(track.objective, "denominator", len)(batch)  # methods on text count tokens
        found = []
        for rows in torch.arange(len(batch)).split(rows_at_once):
            loss, metrics = track.objective.loss(self.policy, batch.select(rows), generator, denominator)
            loss.backward()
            found.append((loss.detach(), metrics, len(rows) / len(batch)))
        return torch.stack([loss for loss, _, _ in found]).sum(), {
            key: combine(key, [metrics[key] for _, metrics, _ in found], [share for _, _, share in found])
            for key in found[0][1]
        }

    def step(self, name: str, batch: Any, rows_at_once: int | None = None) -> dict[str, float]:
        """One optimizer step of an objective; its metrics with `lr` and `grad_norm` added.

        `rows_at_once` bounds the activations in memory: the loss of a larger batch is computed in parts.
        Raises NonFiniteLossError, with the weights untouched, when loss or gradient is not finite. To tell, the host
        waits for the device once in a step, before the optimizer, and reads all metrics then: so the device updates the
        weights while the host already prepares the next step.
        """
        track = self.tracks[name]
        self._activate(name)
        self.policy.train()
        track.adamw.zero_grad(set_to_none=True)
        loss, metrics = self._gradients(track, batch, rows_at_once)
        grad_norm = nn.utils.clip_grad_norm_(track.parameters, track.optimiser.grad_clip)
        values = {"loss": loss, "grad_norm": grad_norm, **metrics}
        numbers = dict(zip(values, read(values.values(), loss.device), strict=True))
        if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])):
            raise NonFiniteLossError(name, track.step, batch)
        lr = track.scale * track.optimiser.lr_at(track.step)
        for group in track.adamw.param_groups:
            group["lr"] = lr
        track.adamw.step()
        track.step += 1
        if self.average is not None:
            self.average.update(track.step)
        return numbers | {"lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed learner needs besides code and data: tensors and numbers only."""
        return {
            "policy": self.policy.state_dict(),
            "average": self.average.weights if self.average is not None else {},
            "tracks": {
                name: {
                    "step": track.step,
                    "scale": track.scale,
                    "frozen": sorted(track.frozen),
                    "adamw": track.adamw.state_dict(),
                    "objective": [parameter.detach() for parameter in track.objective.parameters()],
                }
                for name, track in self.tracks.items()
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()` with the same objectives added."""
        self.roll_back(state)
        if self.average is not None:
            self.average.weights = state["average"]
        for name, saved in state["tracks"].items():
            track = self.tracks[name]
            track.step, track.scale, track.frozen = saved["step"], saved["scale"], frozenset(saved["frozen"])
        self._active = None

    @torch.no_grad()
    def roll_back(self, state: dict[str, Any]) -> None:
        """Weights and optimizers as they were in `state_dict()`; steps, rates and frozen groups as they are now."""
        self.policy.load_state_dict(state["policy"])
        for name, saved in state["tracks"].items():
            track = self.tracks[name]
            track.adamw.load_state_dict(saved["adamw"])
            for parameter, value in zip(track.objective.parameters(), saved["objective"], strict=True):
                parameter.copy_(value)
