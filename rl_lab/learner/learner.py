"""The learner: one model, a step counter, and an optimizer and schedule per objective.

It knows no method by name: an objective names the parameter groups it trains and turns a batch into a scalar. A batch
is learned in parts, the rows of the passes that a rank makes over it, and metrics of the whole follow from those of the
parts. Where its process is one of several ranks (`rl_lab.model.sharding`), the model is sharded over them and each
computes the loss of its share of the rows; what a step does and what is saved are those of one process, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from algos.batch import send
from algos.objective import Objective
from rl_lab.common.seeding import torch_stream
from rl_lab.learner.optim import Optimiser
from rl_lab.model.lora import Adapted
from rl_lab.model.sharding import (
    fill_unused_gradients,
    gather,
    num_ranks,
    shard,
    shard_heads,
    share_like,
    share_moments,
    this_rank,
    whole,
    whole_tensor,
)


class NonFiniteLossError(RuntimeError):
    """The loss or the gradient norm is NaN or infinite; the weights are as before the step. Carries the batch."""

    def __init__(self, objective: str, step: int, batch: Any) -> None:
        super().__init__(f"{objective}: loss or gradient is not finite at step {step}; the step was not taken")
        self.batch = batch


class Learner:
    """Owns a policy and steps it by objectives.

    On CPU the same seed and batches give the same bits; all randomness inside a step comes from a generator addressed
    by (seed, objective, step). Under several ranks all must call the same methods with equal arguments.
    """

    def __init__(self, policy: Any, *, seed: int) -> None:
        """Shards the policy in place under several ranks."""
        if num_ranks() > 1:
            shard(policy.model if isinstance(policy, Adapted) else policy)
        self.policy = policy
        self.seed = seed
        self.tracks: dict[str, _Track] = {}
        self._masters: dict[nn.Parameter, Tensor] = {}
        """float32 masters of bfloat16 weights; objectives that train the same weights share them."""
        self.average: WeightAverage | None = None
        self._averaged: str | None = None
        self._active: str | None = None

    def add(self, name: str, objective: Objective, optimiser: Optimiser) -> None:
        """Register an objective under a name of the run."""
        groups = self.policy.parameter_groups()
        unknown = set(objective.groups) - set(groups)
        if unknown:
            raise ValueError(f"{name} trains unknown parameter groups {sorted(unknown)}; there are {sorted(groups)}")
        if num_ranks() > 1:
            shard_heads(objective)
        parameters = [parameter for group in objective.groups for parameter in groups[group]]
        parameters += list(objective.parameters())
        stepper = optimiser.make(parameters, self._masters)
        self.tracks[name] = _Track(name, objective, optimiser, parameters, stepper)

    def average_weights(self, decay: float, start_step: int, after: str | None = None) -> None:
        """Keep a moving average of the weights after each step from now on, or after those of one objective."""
        self.average, self._averaged = WeightAverage(self.policy, decay, start_step), after

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
        track.stepper.zero_grad(set_to_none=True)
        self._gradients(track, batch, rows_at_once)
        found = {
            group: torch.cat(
                [whole_tensor(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters]
            )
            for group, parameters in self.policy.parameter_groups().items()
            if group in track.groups
        }
        track.stepper.zero_grad(set_to_none=True)
        return found

    def _gradients(self, track: _Track, batch: Any, rows_at_once: int | None) -> list[PartMetrics]:
        """Backward pass of the loss, of a large batch in parts whose gradients add up to its own; their metrics."""
        objective, generator = track.objective, torch_stream(self.seed, "flow", track.name, track.step)
        mine = passes(len(batch), rows_at_once)
        if len(mine) == 1 and num_ranks() == 1:
            return [self._backward(objective, batch, generator, None)]
        denominator = getattr(objective, "denominator", len)(batch)  # methods on text count tokens
        if num_ranks() > 1:
            # A rank whose rows show no picture has no gradient of vision weights, which the others have.
            fill_unused_gradients(self.policy, getattr(batch, "visual", None) is not None)
        if hasattr(objective, "draw"):
            batch = objective.draw(self.policy, batch, generator)
        found = []
        for rows in mine:
            if len(rows):
                found.append(self._backward(objective, batch.select(rows), generator, denominator))
            else:  # its weights are shards that other ranks need, for any row
                loss, _ = objective.loss(self.policy, batch.select(torch.arange(1)), generator, denominator)
                (0.0 * loss).backward()
        return found

    def _backward(self, objective: Any, batch: Any, generator: torch.Generator, denominator: int | None) -> PartMetrics:
        loss, metrics = objective.loss(self.policy, batch, generator, *([] if denominator is None else [denominator]))
        (loss * num_ranks() if num_ranks() > 1 else loss).backward()  # sharded weights get the mean over ranks
        values = {"loss": loss.detach(), **metrics}
        if denominator is None:  # the whole batch
            return PartMetrics(values, dict.fromkeys(values, 1))
        count = getattr(objective, "metric_count", lambda name, part: len(part))
        return PartMetrics(values, {name: count(name, batch) for name in values})

    def _numbers(self, found: list[PartMetrics], grad_norm: Tensor) -> dict[str, float]:
        """Metrics of the whole batch: those of all parts of all ranks, read from the device at once."""
        tensors = [value for part in found for value in part.values.values()]
        device = grad_norm.device
        norm, *numbers = read([grad_norm, *tensors], device)
        for part in found:
            part.values = {name: numbers.pop(0) for name in part.values}
        combined = combine_parts([part for rank in gather(found) for part in rank])
        return {"loss": combined.pop("loss"), "grad_norm": norm, **combined}

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
        track.stepper.zero_grad(set_to_none=True)
        found = self._gradients(track, batch, rows_at_once)
        grad_norm = nn.utils.clip_grad_norm_(track.parameters, track.optimiser.grad_clip)
        numbers = self._numbers(found, whole_tensor(grad_norm))
        if not (math.isfinite(numbers["loss"]) and math.isfinite(numbers["grad_norm"])):
            raise NonFiniteLossError(name, track.step, batch)
        lr = track.scale * track.optimiser.lr_at(track.step)
        for group in track.stepper.param_groups:
            group["lr"] = lr
        track.stepper.step()
        track.step += 1
        if self.average is not None and self._averaged in (None, name):
            self.average.update(track.step)
        return numbers | {"lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed learner needs besides code and data: tensors and numbers only.

        The same whatever the number of ranks: tensors are whole on the first, which is the one to save them.
        """
        state = {
            "policy": self.policy.state_dict(),
            "average": self.average.weights if self.average is not None else {},
            "tracks": {
                name: {
                    "step": track.step,
                    "scale": track.scale,
                    "frozen": sorted(track.frozen),
                    "stepper": track.stepper.state_dict(),
                    "objective": [parameter.detach() for parameter in track.objective.parameters()],
                }
                for name, track in self.tracks.items()
            },
        }
        return whole(state) if num_ranks() > 1 else state

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`, of any number of ranks, with the same objectives added."""
        self.roll_back(state)
        if self.average is not None:
            named = dict(self.policy.named_parameters())
            self.average.weights = {name: share_like(value, named[name]) for name, value in state["average"].items()}
        for name, saved in state["tracks"].items():
            track = self.tracks[name]
            track.step, track.scale, track.frozen = saved["step"], saved["scale"], frozenset(saved["frozen"])
        self._active = None

    @torch.no_grad()
    def roll_back(self, state: dict[str, Any]) -> None:
        """Weights and optimizers as they were in `state_dict()`; steps, rates and frozen groups as they are now."""
        weights = self.policy.state_dict()
        self.policy.load_state_dict({name: share_like(value, weights[name]) for name, value in state["policy"].items()})
        for name, saved in state["tracks"].items():
            track = self.tracks[name]
            track.stepper.load_state_dict(share_moments(saved["stepper"], track.parameters))
            for parameter, value in zip(track.objective.parameters(), saved["objective"], strict=True):
                parameter.copy_(share_like(value, parameter))


@dataclass
class _Track:
    """One objective with its own optimizer, schedule and step counter."""

    name: str
    objective: Objective
    optimiser: Optimiser
    parameters: list[nn.Parameter]
    stepper: torch.optim.Optimizer
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


@dataclass
class PartMetrics:
    """Loss and metrics of a part of a batch, and of how many things each metric is a mean."""

    values: dict[str, Any]
    """Scalars on the device, then numbers."""
    counts: dict[str, int]


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


def combine_parts(parts: Sequence[PartMetrics]) -> dict[str, float]:
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
