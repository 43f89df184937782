"""Flow losses of preference pairs: each distinct chunk once, policy and reference on the same noise and time.

Letters: B rows, P pairs, R draws of (noise, time) per row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from algos.batch import PreferenceBatch, TrajectoryBatch
from algos.flow_matching import draw_flow
from algos.host import indices, send
from algos.objective import FlowPolicy


@dataclass
class PairLosses:
    """Flow losses of each pair by policy and reference, [P]; on an identical pair the loser's is the winner's."""

    winner: Tensor
    loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor
    identical: Tensor
    """bool [P], on the host."""


Sides = Callable[[FlowPolicy, Any], tuple[Tensor, Tensor]]
"""(model, its prefix) -> losses of winner and loser of each pair, both [P]."""


def _by_policy_and_reference(
    sides: Sides, models: tuple[FlowPolicy, FlowPolicy], prefixes: tuple[Any, Any], identical: Tensor
) -> PairLosses:
    """The same losses by the policy, with gradients, and by the reference, without."""
    policy = sides(models[0], prefixes[0])
    with torch.no_grad():
        reference = sides(models[1], prefixes[1])
    return PairLosses(*policy, *reference, identical=identical)


def state_losses(
    models: tuple[FlowPolicy, FlowPolicy],
    prefixes: tuple[Any, Any],
    batch: PreferenceBatch,
    draws: int,
    generator: torch.Generator,
) -> PairLosses:
    """Losses of (policy, reference) on the winner of each row and on the losers that differ, in one call each."""
    noise, time, rows = draw_flow(models[0], batch, draws, generator)
    real = indices(~batch.identical, rows.device)
    real_draws = (real[:, None] * draws + torch.arange(draws, device=real.device)).flatten()
    index = torch.cat([torch.arange(len(rows), device=real.device), real_draws])
    actions = torch.cat([batch.winner[rows], batch.loser[rows[real_draws]]])
    noise, time, rows = noise[index], time[index], rows[index]

    def both_sides(model: FlowPolicy, prefix: Any) -> tuple[Tensor, Tensor]:
        losses = model.flow_losses(prefix, actions, noise, time, rows).view(-1, draws).mean(dim=1)
        winner, loser = losses[: len(batch)], losses[len(batch) :]
        return winner, winner.index_copy(0, real, loser)

    return _by_policy_and_reference(both_sides, models, prefixes, batch.identical)


def trajectory_losses(
    models: tuple[FlowPolicy, FlowPolicy],
    prefixes: tuple[Any, Any],
    batch: TrajectoryBatch,
    draws: int,
    generator: torch.Generator,
) -> PairLosses:
    """Mean losses of (policy, reference) over the winner rows and over the loser rows of each pair.

    Trajectory-wise preference sums the log-ratios; the mean keeps beta comparable with the per-state loss. Raises
    ValueError for a pair without winner rows.
    """
    noise, time, rows = draw_flow(models[0], batch, draws, generator)
    num_pairs, device = len(batch), rows.device
    masks, pair = (batch.is_winner, ~batch.is_winner), send(batch.pair, device)
    counts = [np.bincount(batch.pair.numpy()[mask.numpy()], minlength=num_pairs) for mask in masks]
    if not counts[0].all():
        raise ValueError(f"pair {counts[0].argmin()} has no winner rows; every pair of a TrajectoryBatch needs some")
    identical = torch.from_numpy(counts[1] == 0)
    sides = [indices(mask, device) for mask in masks]
    divisors = [send(torch.from_numpy(count), device).clamp(min=1) for count in counts]
    is_identical = send(identical, device)

    def both_sides(model: FlowPolicy, prefix: Any) -> tuple[Tensor, Tensor]:
        losses = model.flow_losses(prefix, batch.actions[rows], noise, time, rows).view(-1, draws).mean(dim=1)
        zeros = losses.new_zeros(num_pairs)
        sums = [zeros.index_add(0, pair[side], losses[side]) for side in sides]
        winner, loser = (total / divisor for total, divisor in zip(sums, divisors, strict=True))
        return winner, torch.where(is_identical, winner, loser)

    return _by_policy_and_reference(both_sides, models, prefixes, identical)
