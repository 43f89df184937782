"""RPRO, the loss of FlowPRO (arXiv:2606.14409, eqs. 6-9): preference learning for a flow policy.

Differs from the paper: t = 1 is noise, as in the released code; flow losses are means over chunk and action dims, and
the rewards use the mean of a few (noise, time) draws. beta and both lambdas are not given there.
Letters: B tuples, P pairs (= B, except for whole trajectories). `w` winner, `l` loser, `x` = r_w - r_l.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algos.batch import PreferenceBatch, TrajectoryBatch
from algos.flow_matching import check_draws, is_frozen_prefix, policy_prefix, with_draws
from algos.flowpro_metrics import loss_coefficients, rpro_metric_count, rpro_metrics, source_metrics
from algos.objective import FlowPolicy
from algos.pairs import state_losses, trajectory_losses


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


def pro_loss(r_w: Tensor, r_l: Tensor) -> Tensor:
    """Eq. 8: preference and proximal term, [B]."""
    return preference_loss(r_w, r_l) + proximal_loss(r_w, r_l)


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


class RPRO:
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

    def parameters(self) -> Iterable[nn.Parameter]:
        """None: the objective has no weights of its own."""
        return ()

    def draw(self, policy: FlowPolicy, batch: PreferenceBatch | TrajectoryBatch, generator: torch.Generator) -> Any:
        """See `Objective`: the batch with its random points, before it is divided."""
        return with_draws(policy, batch, self.draws_per_sample, generator)

    def metric_count(self, name: str, batch: PreferenceBatch | TrajectoryBatch) -> int:
        """See `Objective`: metrics are means over pairs, real pairs, identical pairs, rows, or collected rows."""
        return rpro_metric_count(name, batch)

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
