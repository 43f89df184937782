"""Flow matching for action chunks (Lipman et al., arXiv:2210.02747): the sign convention, that of the released code.

t = 1 is noise and t = 0 is the action, so the path is x_t = t e + (1 - t) a, its velocity u = e - a, and sampling goes
from t = 1 down to 0. (The paper arXiv:2606.14409, eq. 3, writes the same with 1 - t and -u.)
Letters: N rows, C chunk length, A padded action size, D used action dims (20), B observations, R draws of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from algos.auxiliary import VisionHead, add_losses
from algos.batch import ExploredBatch, FlowBatch, FlowDraws, PreferenceBatch, TrajectoryBatch, send
from algos.objective import FlowPolicy, SeeingPolicy

ActionBatch = FlowBatch | PreferenceBatch | TrajectoryBatch | ExploredBatch


def interpolate(actions: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """Point of the path, x_t = t e + (1 - t) a: [..., C, A], [..., C, A], [...] -> [..., C, A]."""
    t = _over_chunk(time)
    return t * noise + (1.0 - t) * actions


def _over_chunk(time: Tensor) -> Tensor:
    return time[..., None, None]


def velocity_target(actions: Tensor, noise: Tensor) -> Tensor:
    """Velocity of the path, dx_t/dt = e - a, the same at every t: [..., C, A]."""
    return noise - actions


def velocity_from_clean(x_t: Tensor, clean: Tensor, time: Tensor, min_time: float = 1e-3) -> Tensor:
    """Velocity of a predicted clean chunk, v = (x_t - a_hat) / t, with t not below `min_time`: [..., C, A]."""
    return (x_t - clean) / _over_chunk(time).clamp(min=min_time)


def loss_weight(time: Tensor, clip: float | None) -> Tensor:
    """Weight of the squared velocity error: 1, or (t / max(t, clip))^2, which is bounded in a_hat as t goes to 0: [N].

    (v - u)^2 = (a_hat - a)^2 / t^2 for a predicted clean chunk, so the clipped loss divides by max(t, clip)^2 instead.
    """
    return torch.ones_like(time) if clip is None else (time / time.clamp(min=clip)) ** 2


def chunk_loss(velocity: Tensor, target: Tensor, weight: Tensor, num_dims: int) -> Tensor:
    """Weighted squared error of each row, mean over the chunk and the first `num_dims` of A, in fp32: [N, C, A] -> [N].

    Padded dims are an input of the network but carry no loss, as released.
    """
    error = (velocity[..., :num_dims] - target[..., :num_dims]).float()
    return weight * error.square().mean(dim=(-2, -1))


def check_draws(draws_per_sample: int) -> None:
    """Raise ValueError for fewer than one draw."""
    if draws_per_sample < 1:
        raise ValueError(f"draws_per_sample is {draws_per_sample}; it must be at least 1")


def with_draws(policy: FlowPolicy, batch: ActionBatch, draws: int, generator: torch.Generator) -> Any:
    """The batch with the (noise, time) that a loss on all of it would draw, so that its parts take their rows of them.

    Then the losses of the parts are those of the whole batch, however it is divided.
    """
    num_rows, device = len(batch.actions), batch.actions.device
    noise = send(policy.sample_noise(num_rows * draws, generator), device).unflatten(0, (num_rows, draws))
    time = send(policy.sample_time(num_rows * draws, generator), device).unflatten(0, (num_rows, draws))
    return replace(batch, draws=FlowDraws(noise, time))


def draw_flow(
    policy: FlowPolicy, batch: ActionBatch, draws: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Several (noise, time) of each row, drawn or those of the batch: noise [B * R, C, A], time [B * R], rows [B * R].

    The draws of a row are neighbours, so [B * R] tensors view as [B, R].
    """
    drawn = batch.draws if batch.draws is not None else with_draws(policy, batch, draws, generator).draws
    rows = torch.arange(len(batch.actions) * draws, device=batch.actions.device) // draws
    return drawn.noise.flatten(0, 1), drawn.time.flatten(0, 1), rows


def is_frozen_prefix(groups: tuple[str, ...]) -> bool:
    """True when vision and language towers are not trained, so that the prefix of an observation never changes."""
    return not {"vision", "vlm"} & set(groups)


def policy_prefix(policy: FlowPolicy, batch: ActionBatch, groups: tuple[str, ...]) -> Any:
    """The stored prefix of a batch, or the policy's for its observation (without a graph where it is frozen).

    Raises ValueError for a stored prefix whose towers are trained: it would be stale and would receive no gradient.
    """
    frozen = is_frozen_prefix(groups)
    if batch.prefix is not None:
        if not frozen:
            raise ValueError(f"the batch stores its prefix but {groups} are trained; store it only for ('expert',)")
        return batch.prefix
    assert batch.observation is not None, "a batch has an observation or a stored prefix"
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        return policy.encode(batch.observation)


class FlowMatching:
    """Imitation of a chunk: SFT on demonstrations, or DAgger when the chunks are corrections (`PreferenceBatch`).

    loss = sum_b mean_r l(b, r) / denominator [+ weight * head's loss], with l of `FlowPolicy.flow_losses`.
    """

    def __init__(
        self,
        groups: tuple[str, ...] = ("vision", "vlm", "expert"),
        draws_per_sample: int = 1,
        heads: Sequence[VisionHead] = (),
    ) -> None:
        check_draws(draws_per_sample)
        if heads and is_frozen_prefix(groups):
            names = ", ".join(head.name for head in heads)
            raise ValueError(
                f"auxiliary losses train vision and language, but only {groups} are trained; leave the {names} out"
            )
        self.groups = groups
        self.draws_per_sample = draws_per_sample
        self.heads = tuple(heads)

    def parameters(self) -> Iterable[nn.Parameter]:
        """The heads' weights; they are not part of the policy."""
        return [parameter for head in self.heads for parameter in head.parameters()]

    def draw(self, policy: FlowPolicy, batch: ActionBatch, generator: torch.Generator) -> Any:
        """See `Objective`: the batch with its random points, before it is divided."""
        return with_draws(policy, batch, self.draws_per_sample, generator)

    def loss(
        self,
        policy: FlowPolicy,
        batch: FlowBatch | PreferenceBatch,
        generator: torch.Generator,
        denominator: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics `flow/loss` and `flow/NAME` of every head; see the class and `Objective.loss`.

        Raises ValueError when there are heads and the batch has not what they are to tell.
        """
        count = denominator or len(batch)
        prefix, auxiliary = self._encode(policy, batch)
        noise, time, rows = draw_flow(policy, batch, self.draws_per_sample, generator)
        losses = policy.flow_losses(prefix, batch.actions[rows], noise, time, rows)
        total = losses.view(-1, self.draws_per_sample).mean(dim=1).sum() / count
        metrics = {"flow/loss": total.detach() * (count / len(batch))}  # a mean over the rows of this part
        return add_losses(total, metrics, "flow", self.heads, auxiliary, count), metrics

    def _encode(self, policy: FlowPolicy, batch: FlowBatch | PreferenceBatch) -> tuple[Any, list[Tensor]]:
        """Prefix, and the losses of each row of every head."""
        if not self.heads:
            return policy_prefix(policy, batch, self.groups), []
        if not isinstance(batch, FlowBatch) or batch.observation is None:
            raise ValueError("auxiliary losses need a FlowBatch with its observation; leave them out for other batches")
        prefix, vision = cast(SeeingPolicy, policy).encode(batch.observation, return_vision=True)
        return prefix, [head.group_losses([(vision, head.target(batch))]) for head in self.heads]
