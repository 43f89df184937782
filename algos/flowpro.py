"""RPRO, the loss of FlowPRO (arXiv:2606.14409, eqs. 6-9): preference learning for a flow policy.

Each distinct chunk of a pair is computed once, by policy and reference on the same noise and time.
Differs from the paper: t = 1 is noise, as in the released code; flow losses are means over chunk and action dims, and
the rewards use the mean of a few (noise, time) draws. beta and both lambdas are not given there.
Letters: B tuples or rows, P pairs (= B, except for whole trajectories), R draws of (noise, time) per row. `w` winner,
`l` loser, `x` = r_w - r_l.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from algos.batch import PreferenceBatch, TrajectoryBatch, count, indices, send
from algos.flow_matching import check_draws, draw_flow, is_frozen_prefix, policy_prefix, with_draws
from algos.objective import FlowPolicy, Objective


def implicit_reward(loss: Tensor, reference_loss: Tensor, beta: float) -> Tensor:
    """Eq. 7: r = beta/2 (l_ref - l_theta), [B]. Positive = fits better than the frozen reference."""
    return 0.5 * beta * (reference_loss.detach() - loss)


def preference_loss(r_w: Tensor, r_l: Tensor) -> Tensor:
    """First term of eq. 8, which alone is Flow-DPO (arXiv:2501.13918): -log s(r_w - r_l), [B]."""
    return -F.logsigmoid(r_w - r_l)


def proximal_loss(r_w: Tensor, r_l: Tensor) -> Tensor:
    """Second term of eq. 8: -1/2 sum over both of log s(r) + log s(-r), [B]. Pulls each reward towards zero."""
    winner, loser = (F.logsigmoid(r) + F.logsigmoid(-r) for r in (r_w, r_l))
    return -0.5 * (winner + loser)


def rpro_loss(
    policy_winner: Tensor,
    policy_loser: Tensor,
    reference_winner: Tensor,
    reference_loser: Tensor,
    *,
    beta: float,
    lambda_pro: float,
    lambda_sft: float,
    proximal: bool = True,
    denominator: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Eq. 9: lambda_pro L_PRO + lambda_sft l_w, summed over the samples and divided by `denominator` (default B).

    Takes flow losses (B,) of policy and frozen reference, computed with the same noise and time; no gradient flows into
    the reference's. `proximal=False` is Flow-DPO. Returns the scalar and its parts, each (B,) and not yet weighted by
    the lambdas: preference, proximal (zeros without it), sft, reward_winner, reward_loser, margin.

    Raises ValueError for losses that are not vectors of one length and for impossible weights. A loss that is not a
    number comes out as one, so that the learner can stop with the batch in hand.
    """
    check_weights(beta, lambda_pro, lambda_sft)
    _check_losses(
        policy_winner=policy_winner,
        policy_loser=policy_loser,
        reference_winner=reference_winner,
        reference_loser=reference_loser,
    )
    r_w = implicit_reward(policy_winner, reference_winner, beta)
    r_l = implicit_reward(policy_loser, reference_loser, beta)
    parts = {
        "preference": preference_loss(r_w, r_l),
        "proximal": proximal_loss(r_w, r_l) if proximal else torch.zeros_like(r_w),
        "sft": policy_winner,
        "reward_winner": r_w,
        "reward_loser": r_l,
        "margin": r_w - r_l,
    }
    losses = lambda_pro * (parts["preference"] + parts["proximal"]) + lambda_sft * parts["sft"]
    return losses.sum() / (denominator or len(losses)), parts


def check_weights(beta: float, lambda_pro: float, lambda_sft: float) -> None:
    """Raise ValueError unless beta > 0 and both lambdas are finite, not negative and not both zero."""
    if not (math.isfinite(beta) and beta > 0):
        raise ValueError(f"beta is {beta}; it must be a positive number")
    for name, value in (("lambda_pro", lambda_pro), ("lambda_sft", lambda_sft)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is {value}; it must be a number of at least 0")
    if lambda_pro == 0 and lambda_sft == 0:
        raise ValueError("lambda_pro and lambda_sft are both 0, so nothing would be learned; set one of them")


def _check_losses(**losses: Tensor) -> None:
    """Raise ValueError unless all are floating point vectors of one length."""
    for name, value in losses.items():
        if value.ndim != 1 or not value.is_floating_point():
            raise ValueError(
                f"{name} is {value.dtype} of shape {tuple(value.shape)}; pass per-sample losses of shape (B,)"
            )
    if len({len(value) for value in losses.values()}) != 1:
        shapes = ", ".join(f"{name} {len(value)}" for name, value in losses.items())
        raise ValueError(f"the losses have different lengths ({shapes}); pass the same B samples in each")


def loss_coefficients(
    r_w: Tensor, r_l: Tensor, *, beta: float, lambda_pro: float, lambda_sft: float, proximal: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """Derivative of each weighted term of eq. 9 by (l_w, l_l), each [B], in closed form.

    preference: (+, -) lambda_pro beta/2 s(-x); proximal: -lambda_pro beta/2 (s(r) - 1/2) for each; sft: lambda_sft on
    l_w. A positive sum pulls that flow loss down. For an identical pair both act on the same loss: the preference
    cancels and lambda_sft - lambda_pro beta (s(r) - 1/2) is left.
    """
    scale = 0.5 * beta * lambda_pro
    contrast = scale * torch.sigmoid(r_l - r_w)
    pull = scale if proximal else 0.0
    return {
        "preference": (contrast, -contrast),
        "proximal": (-pull * (torch.sigmoid(r_w) - 0.5), -pull * (torch.sigmoid(r_l) - 0.5)),
        "sft": (torch.full_like(r_w, lambda_sft), torch.zeros_like(r_l)),
    }


class RPRO(Objective):
    """Preference objective on `PreferenceBatch` (a pair per state) or `TrajectoryBatch` (one comparison a pair).

    One prefix and one suffix call serve winners and losers; policy and reference share noise and time; an identical
    pair is computed once. The reference is the frozen policy of the previous round (or of SFT); with vision and
    language frozen it must have the policy's towers, since it then reads the policy's prefix.
    """

    def __init__(
        self,
        reference: FlowPolicy,
        *,
        beta: float = 1.0,
        lambda_pro: float = 1.0,
        lambda_sft: float = 1.0,
        proximal: bool = True,
        draws_per_sample: int = 1,
        groups: tuple[str, ...] = ("expert",),
    ) -> None:
        check_weights(beta, lambda_pro, lambda_sft)
        check_draws(draws_per_sample)
        self.reference = reference
        self.weights = {"beta": beta, "lambda_pro": lambda_pro, "lambda_sft": lambda_sft}
        self.proximal = proximal
        self.draws_per_sample = draws_per_sample
        self.groups = groups

    @property
    def shares_prefix(self) -> bool:
        """The reference reads the policy's prefix, because neither trains vision or language."""
        return is_frozen_prefix(self.groups)

    def draw(self, policy: FlowPolicy, batch: PreferenceBatch | TrajectoryBatch, generator: torch.Generator) -> Any:
        """See `Objective`: the batch with its random points, before it is divided."""
        return with_draws(policy, batch, self.draws_per_sample, generator)

    def metric_count(self, name: str, batch: PreferenceBatch | TrajectoryBatch) -> int:
        """See `Objective`: metrics are means over pairs, real pairs, identical pairs, rows, or collected rows."""
        if name.startswith("rows/"):
            return len(batch.source)
        if name == "weight_version":
            return count(batch.source != SOURCES.index("demonstrations"))
        if not name.startswith(("flow/", "reward/", "capped/")):
            return len(batch)
        real = count_real(batch)
        return len(batch) - real if "/identical" in name else real

    def loss(
        self,
        policy: FlowPolicy,
        batch: PreferenceBatch | TrajectoryBatch,
        generator: torch.Generator,
        denominator: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics of eq. 9 over the pairs of the batch; see `Objective.loss` and `rpro_metrics`."""
        prefixes = self._prefixes(policy, batch)
        models, draws = (policy, self.reference), self.draws_per_sample
        if isinstance(batch, TrajectoryBatch):
            pairs = trajectory_losses(models, prefixes, batch, draws, generator)
        else:
            pairs = state_losses(models, prefixes, batch, draws, generator)
        loss, parts = rpro_loss(
            pairs.winner,
            pairs.loser,
            pairs.reference_winner,
            pairs.reference_loser,
            **self.weights,
            proximal=self.proximal,
            denominator=denominator,
        )
        coefficients = loss_coefficients(
            parts["reward_winner"].detach(), parts["reward_loser"].detach(), **self.weights, proximal=self.proximal
        )
        return loss, rpro_metrics(pairs, parts, coefficients) | source_metrics(batch.source, batch.weight_version)

    def _prefixes(self, policy: FlowPolicy, batch: PreferenceBatch | TrajectoryBatch) -> tuple[Any, Any]:
        """Prefixes for policy and reference, from the batch where it stores them."""
        prefix = policy_prefix(policy, batch, self.groups)
        if batch.reference_prefix is not None:
            return prefix, batch.reference_prefix
        if self.shares_prefix:
            return prefix, prefix
        assert batch.observation is not None, "a batch has an observation or a stored reference prefix"
        with torch.no_grad():
            return prefix, self.reference.encode(batch.observation)


@dataclass
class PairLosses:
    """Flow losses of each pair by policy and reference, [P]; on an identical pair the loser's is the winner's."""

    winner: Tensor
    loser: Tensor
    reference_winner: Tensor
    reference_loser: Tensor
    identical: Tensor
    """bool [P], on the host."""


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


SOURCES = ("new", "older", "demonstrations", "ranked")
"""Names of the buffers, by `PreferenceBatch.source`."""


def rpro_metrics(
    pairs: PairLosses, parts: dict[str, Tensor], coefficients: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Losses beside the reference's, rewards, and how much each term pulls, of one batch of pairs.

    Every value is a mean over the rows it names, and absent from a batch that has no such row; "winner" and "loser" are
    those of real pairs only.

    loss/<part> unweighted parts of eq. 9 over all pairs; flow/<side> and flow/<side>_reference flow losses;
    reward/<side> implicit rewards, reward/margin r_w - r_l, reward/accuracy share of r_w > r_l; capped/<side> share of
    pairs whose winner loss the whole objective no longer pulls down; see also `gradient_metrics`.
    """
    device = pairs.winner.device
    real, identical = (indices(mask, device) for mask in (~pairs.identical, pairs.identical))
    metrics = {f"loss/{part}": parts[part].detach().mean() for part in ("preference", "proximal", "sft")}
    pull_winner = torch.stack([winner for winner, _ in coefficients.values()]).sum(dim=0)
    pull_identical = pull_winner + torch.stack([loser for _, loser in coefficients.values()]).sum(dim=0)
    for name, values, rows in (
        ("flow/winner", pairs.winner, real),
        ("flow/winner_reference", pairs.reference_winner, real),
        ("flow/loser", pairs.loser, real),
        ("flow/loser_reference", pairs.reference_loser, real),
        ("flow/identical", pairs.winner, identical),
        ("flow/identical_reference", pairs.reference_winner, identical),
        ("reward/winner", parts["reward_winner"], real),
        ("reward/loser", parts["reward_loser"], real),
        ("reward/identical", parts["reward_winner"], identical),
        ("reward/margin", parts["margin"], real),
        ("reward/accuracy", parts["margin"] > 0, real),
        ("capped/winner", pull_winner <= 0, real),
        ("capped/identical", pull_identical <= 0, identical),
    ):
        _add_mean(metrics, name, values, rows)
    return metrics | gradient_metrics(coefficients, send(pairs.identical, device))


def gradient_metrics(coefficients: dict[str, tuple[Tensor, Tensor]], identical: Tensor) -> dict[str, Tensor]:
    """How hard each term pulls: `gradient/<term>`, the norm of the batch loss's derivative by the distinct flow losses,
    and `gradient_share/<term>`, that norm over the sum of the terms' norms. On an identical pair both derivatives add.
    """
    norms = {}
    for term, (winner, loser) in coefficients.items():
        squares = torch.where(identical, (winner + loser).square(), winner.square() + loser.square())
        norms[term] = squares.sum().sqrt() / len(winner)
    total = torch.stack(list(norms.values())).sum().clamp(min=1e-12)
    return {f"gradient/{term}": norm for term, norm in norms.items()} | {
        f"gradient_share/{term}": norm / total for term, norm in norms.items()
    }


def source_metrics(source: Tensor, weight_version: Tensor) -> dict[str, Tensor]:
    """Share of each buffer, `rows/<name>`, and the mean version of the weights that produced the collected rows; all on
    the host."""
    metrics = {f"rows/{name}": (source == number).float().mean() for number, name in enumerate(SOURCES)}
    collected = indices(source != SOURCES.index("demonstrations"), weight_version.device)
    _add_mean(metrics, "weight_version", weight_version, collected)
    return metrics


def _add_mean(metrics: dict[str, Tensor], name: str, values: Tensor, rows: Tensor) -> None:
    """Add the mean over these rows, if there are any."""
    if len(rows):
        metrics[name] = values.detach()[rows].float().mean()


def count_real(batch: PreferenceBatch | TrajectoryBatch) -> int:
    """Pairs with a loser of their own."""
    if isinstance(batch, TrajectoryBatch):
        return len(np.unique(batch.pair.numpy()[~batch.is_winner.numpy()]))
    return count(~batch.identical)
