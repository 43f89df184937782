"""What a GRPO step reports about itself.

Letters: B rows, S tokens of a row.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from algos.token_batch import RolloutBatch

if TYPE_CHECKING:
    from algos.grpo import TokenTerms


def mismatch(old_logprobs: Tensor, rollout_logprobs: Tensor, mask: Tensor) -> Tensor:
    """|log pi_trainer - log pi_engine| of the tokens of `mask` that both know, flat; [0.0] if there is none."""
    difference = (old_logprobs - rollout_logprobs).detach().abs()
    known = difference[mask & ~difference.isnan()]
    return known if len(known) else known.new_zeros(1)


def share_with_signal(batch: RolloutBatch) -> Tensor:
    """Share of the batch's groups in which some answer has an advantage other than 0."""
    groups, index = batch.group.unique(return_inverse=True)
    signals = (batch.advantages != 0).float()
    return (signals.new_zeros(len(groups)).index_add(0, index, signals) > 0).float().mean()


def _spread(name: str, values: Tensor) -> dict[str, Tensor]:
    return {f"{name}/mean": values.mean(), f"{name}/min": values.min(), f"{name}/max": values.max()}


@torch.no_grad()
def grpo_metrics(
    terms: TokenTerms, entropy: Tensor | None, batch: RolloutBatch, bounds: tuple[float, float]
) -> dict[str, Tensor]:
    """Means over the tokens that count, or over rows where a row has one ratio; 0 if nothing counts.

    ratio: pi / pi_old; clip: shares whose clipping holds their gradient back, above for positive advantages and below
    for negative ones; importance: weights of the engine's correction, zero = share that it masks; mismatch: of the
    log-probabilities of trainer and engine, of all tokens and of those of the newest weight version in the batch.
    """
    low, high = bounds
    positive, negative = batch.advantages[:, None] > 0, batch.advantages[:, None] < 0
    ratio = _counted(terms.ratio, terms.mask)
    clip_low = _counted((terms.ratio < low) & negative, terms.mask).float().mean()
    clip_high = _counted((terms.ratio > high) & positive, terms.mask).float().mean()
    newest = (batch.weight_version == batch.weight_version.max())[:, None]
    every = mismatch(terms.old_logprobs, batch.rollout_logprobs, terms.mask)
    metrics = _spread("ratio", ratio) | {
        "clip/low": clip_low,
        "clip/high": clip_high,
        "clip/region": clip_low + clip_high,
        "mismatch/mean": every.mean(),
        "mismatch/max": every.max(),
        "mismatch/newest": mismatch(terms.old_logprobs, batch.rollout_logprobs, terms.mask & newest).mean(),
        "groups/with_signal": share_with_signal(batch),
        "text/tokens": terms.mask.sum(),
    }
    if terms.importance is not None:
        weights = _counted(terms.importance, terms.mask)
        metrics |= _spread("importance", weights) | {"importance/zero": (weights == 0).float().mean()}
    if terms.kl is not None:
        metrics["kl"] = _counted(terms.kl, terms.mask).mean()
    if entropy is not None:
        metrics["entropy"] = _counted(entropy, terms.mask).mean()
    return metrics


def _counted(values: Tensor, mask: Tensor) -> Tensor:
    """Values [B, S] of the tokens that count, or [B, 1] of the rows with such a token, flat; [0.0] if there is none."""
    kept = values[mask] if values.shape[1] == mask.shape[1] else values[mask.any(1)].flatten()
    return kept if len(kept) else values.new_zeros(1)
