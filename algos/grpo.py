"""GRPO (arXiv:2402.03300) with the variants and option names of TRL 1.16's `GRPOTrainer`.

Every prompt gets G sampled answers; an answer is worth its reward relative to the group's. Differs from TRL:
- a group whose rewards are all equal has advantages of exactly 0, not rounding errors over 1e-4;
- denominators are arguments, so that parts of a batch add up to the whole batch whatever their sizes;
- without `old_logprobs` the engine's correction uses the current model, which is what TRL recomputes them with.
Letters: B rows (answers), S tokens of a row, P prompts, G answers of each, m(i, t) mask of the tokens to learn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from algos.grpo_metrics import grpo_metrics
from algos.grpo_options import GRPOOptions
from algos.host import count, send
from algos.objective import LanguagePolicy
from algos.token_batch import RolloutBatch

STD_FLOOR = 1e-4
"""Added to the standard deviation, as in TRL."""


def group_advantages(rewards: Tensor, scale_rewards: str = "group") -> Tensor:
    """A = (r - mean of the group) / (std + 1e-4), [P, G], of rewards [P, G]; NaN is a failed reward call.

    The standard deviation (unbiased) is the group's, the batch's (arXiv:2508.08221) or left out ("none",
    arXiv:2503.20783). Failed calls count in no mean, and their advantage is 0: mask their rows. So is the advantage of
    a group without two different rewards.
    """
    scored = ~rewards.isnan()
    centred = rewards - rewards.nanmean(dim=1, keepdim=True)
    highest = rewards.masked_fill(~scored, -torch.inf).amax(1, keepdim=True)
    lowest = rewards.masked_fill(~scored, torch.inf).amin(1, keepdim=True)
    if scale_rewards != "none":
        centred = centred / (_std(rewards, scale_rewards) + STD_FLOOR)
    return torch.where(scored & (highest > lowest), centred, 0.0)


def _std(rewards: Tensor, scale_rewards: str) -> Tensor:
    """Unbiased standard deviation of the rewards that are numbers, of each group [P, 1] or of all [1, 1]."""
    of = rewards if scale_rewards == "group" else rewards.reshape(1, -1)
    squares = (of - of.nanmean(dim=1, keepdim=True)).square()
    return (squares.nansum(dim=1, keepdim=True) / ((~of.isnan()).sum(1, keepdim=True) - 1)).sqrt()


def ratios(log_ratio: Tensor, mask: Tensor, level: str) -> Tensor:
    """pi / pi_old of tokens, [B, S], or of rows: exp of the mean log ratio over its tokens, [B, 1] (GSPO, eq. 7)."""
    if level == "sequence":
        log_ratio = (log_ratio * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
    return log_ratio.exp()


def surrogate(ratio: Tensor, advantages: Tensor, options: GRPOOptions) -> Tensor:
    """-min(min(rho, delta) A, clip(rho, 1 - epsilon, 1 + epsilon_high) A), of the shape of `ratio`.

    GRPO eq. 3 with DAPO's upper bound; delta from INTELLECT-2 (arXiv:2505.07291). Advantages are [B, 1].
    """
    clipped = ratio.clamp(*options.ratio_bounds)
    bounded = ratio if options.delta is None else ratio.clamp(max=options.delta)
    return -torch.minimum(bounded * advantages, clipped * advantages)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """GRPO eq. 4: rho - log rho - 1 with rho = pi_ref / pi, of each token, at least 0."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.exp() - log_ratio - 1


@torch.no_grad()
def engine_correction(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor, options: GRPOOptions) -> Tensor:
    """Weights pi_old / pi_engine, of tokens [B, S] or of whole rows [B, 1] (product over its tokens), within bounds.

    Modes `*_truncate` move weights to the bounds, `*_mask` set those outside to 0; the names are TRL's. A token whose
    log-probability the engine did not tell counts as equal.
    """
    difference = ((old_logprobs - rollout_logprobs) * mask).nan_to_num(nan=0.0)
    level, action = options.vllm_importance_sampling_mode.split("_")
    weights = (difference.sum(1, keepdim=True) if level == "sequence" else difference).exp()
    low, high = options.importance_bounds
    if action == "truncate":
        return weights.clamp(low, high)
    return weights.masked_fill((weights < low) | (weights > high), 0.0)


def aggregate(losses: Tensor, mask: Tensor, options: GRPOOptions, denominator: int) -> Tensor:
    """One number of token losses [B, S]; `denominator` counts rows, or tokens for `dapo`, of the whole batch.

    - grpo: mean over rows of the mean over a row's tokens (arXiv:2402.03300)
    - dr_grpo: sum over tokens / (rows * max_completion_length) (arXiv:2503.20783)
    - dapo: mean over all tokens of the whole batch (arXiv:2503.14476)
    - bnpo: mean over the tokens of this part, and over parts by their rows; equal to dapo on an undivided batch
    """
    summed = (losses * mask).sum(1)
    if options.loss_type == "grpo":
        return (summed / mask.sum(1).clamp(min=1)).sum() / denominator
    if options.loss_type == "dr_grpo":
        return summed.sum() / (denominator * options.max_completion_length)
    if options.loss_type == "bnpo":
        return summed.sum() / mask.sum().clamp(min=1) * (len(losses) / denominator)
    return summed.sum() / denominator


@dataclass
class TokenTerms:
    """What the loss of a batch is made of, each [B, S], or [B, 1] where a row has one value."""

    mask: Tensor
    logprobs: Tensor
    old_logprobs: Tensor
    ratio: Tensor
    losses: Tensor
    importance: Tensor | None = None
    kl: Tensor | None = None


def token_terms(
    logprobs: Tensor, batch: RolloutBatch, mask: Tensor, options: GRPOOptions, ref_logprobs: Tensor | None = None
) -> TokenTerms:
    """Losses of the tokens: surrogate, times the engine's correction, plus beta KL to `ref_logprobs`."""
    old = logprobs.detach() if batch.old_logprobs is None else batch.old_logprobs
    ratio = ratios(logprobs - old, mask, options.importance_sampling_level)
    losses = surrogate(ratio, batch.advantages[:, None], options)
    terms = TokenTerms(mask, logprobs, old, ratio, losses.expand_as(logprobs))
    if options.vllm_importance_sampling_correction:
        terms.importance = engine_correction(old, batch.rollout_logprobs, mask, options)
        terms.losses = terms.losses * terms.importance
    if ref_logprobs is not None:
        terms.kl = kl_estimate(logprobs, ref_logprobs)
        weight = ratio if options.use_bias_correction_kl else 1.0
        terms.losses = terms.losses + options.beta * terms.kl * weight
    return terms


class GRPO:
    """The objective on a `RolloutBatch`. A reference is needed exactly when beta > 0."""

    def __init__(
        self,
        options: GRPOOptions,
        *,
        groups: tuple[str, ...] = ("vision", "vlm"),
        reference: LanguagePolicy | None = None,
    ) -> None:
        if (options.beta > 0) != (reference is not None):
            state = "without a reference; pass one" if reference is None else "but a reference was passed; leave it out"
            raise ValueError(f"beta is {options.beta} {state}")
        self.options, self.groups, self.reference = options, groups, reference

    def parameters(self) -> Iterable[nn.Parameter]:
        """None: the objective has no weights of its own."""
        return ()

    def mask(self, batch: RolloutBatch) -> Tensor:
        """Tokens that count, bool [B, S], on the host."""
        if not self.options.mask_truncated_completions:
            return batch.completion_mask
        return batch.completion_mask & batch.finished[:, None]

    def denominator(self, batch: RolloutBatch) -> int:
        """What the loss of this whole batch is divided by: tokens for `dapo`, rows for the others."""
        return max(1, count(self.mask(batch))) if self.options.loss_type == "dapo" else len(batch)

    def metric_count(self, name: str, batch: RolloutBatch) -> int:
        """See `Objective`: metrics are means over groups, over rows where a row has one value, or over tokens."""
        if name == "groups/with_signal":
            return len(np.unique(batch.group.numpy()))
        options, mask = self.options, self.mask(batch)
        per_row = name.startswith(("ratio/", "clip/")) and options.importance_sampling_level == "sequence"
        correction = options.vllm_importance_sampling_mode
        per_row |= name.startswith("importance/") and correction.startswith("sequence")
        return count(mask.any(1)) if per_row else count(mask)

    @torch.no_grad()
    def prepare(self, policy: LanguagePolicy, batch: RolloutBatch) -> RolloutBatch:
        """The batch with `old_logprobs` of the policy as it is now; call it before several steps on one batch."""
        return replace(batch, old_logprobs=policy.token_logprobs(batch, temperature=self.options.temperature).logprobs)

    def loss(
        self,
        policy: LanguagePolicy,
        batch: RolloutBatch,
        generator: torch.Generator,
        denominator: int | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics; see `Objective.loss`, `aggregate` and `grpo_metrics`. Uses no randomness."""
        scores = policy.token_logprobs(batch, temperature=self.options.temperature, entropy=True)
        ref_logprobs = None
        if self.reference is not None:
            with torch.no_grad():
                ref_logprobs = self.reference.token_logprobs(batch, temperature=self.options.temperature).logprobs
        mask = self.mask(batch)
        terms = token_terms(scores.logprobs, batch, send(mask, scores.logprobs.device), self.options, ref_logprobs)
        loss = aggregate(terms.losses, terms.mask, self.options, denominator or self.denominator(batch))
        return loss, grpo_metrics(terms, scores.entropy, batch, mask, self.options.ratio_bounds)
