"""What a model says about the tokens of a batch that are to be learned: only their logits are made, a part at a time.

Letters: B rows, S tokens of a row, T packed tokens, K tokens to learn, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from algos.host import indices, send
from algos.objective import NextTokens, TokenScores
from algos.token_batch import TokenBatch
from rl_lab.model.backbone import VisionLanguageModel
from rl_lab.model.packing import Layout
from rl_lab.model.pictures import batch_layout
from rl_lab.model.vlm_config import VISUAL_ROLES

LOGITS_AT_ONCE = 2**26
"""Logits in memory at a time, 256 MiB in float32; with more of them, each part is computed again going backward."""
NEVER_DRAWN = ("image", "video")
"""Tokens that stand for patches. The engine's samplers lower their logits by `NEVER_DRAWN_BIAS`."""
NEVER_DRAWN_BIAS = -100.0


def sampling_bias(model: VisionLanguageModel) -> Tensor:
    """What the engine adds to the logits before it divides by the temperature, float32 [V]."""
    weight = model.language_model.lm_head.weight
    bias = torch.zeros(weight.shape[0], device=weight.device)
    for role in NEVER_DRAWN:
        bias[model.special_token_ids[role]] = NEVER_DRAWN_BIAS
    return bias


def score_tokens(
    model: VisionLanguageModel, hidden: Tensor, targets: Tensor, temperature: float | None, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of targets [K], and entropy [K] of their distributions, of residual streams [K, D]; float32."""
    logits = model.logits(hidden).float()
    if temperature is not None:
        logits = (logits + sampling_bias(model)) / temperature
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, targets[:, None])[:, 0]
    if not entropy:
        return own, None
    with torch.no_grad():
        return own, -(logprobs.exp() * logprobs).sum(-1)


def score_in_parts(
    model: VisionLanguageModel, hidden: Tensor, targets: Tensor, temperature: float | None, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """`score_tokens` with at most `LOGITS_AT_ONCE` logits in memory."""
    size = max(1, LOGITS_AT_ONCE // model.language_model.lm_head.weight.shape[0])
    if len(targets) <= size:
        return score_tokens(model, hidden, targets, temperature, entropy)
    parts = [
        checkpoint(score_tokens, model, some, ids, temperature, entropy, use_reentrant=False)
        for some, ids in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, spread = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(spread) if entropy else None


def token_before(layout: Layout, places: Tensor) -> Tensor:
    """Packed token just before each of the flat places [K] in the rows; that one predicts it."""
    return places - 1 if layout.source.token is None else layout.source.token[places - 1]


def residual_before(model: VisionLanguageModel, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Residual streams [K, D] that predict the tokens to learn, those tokens [K], and their flat places [K].

    ValueError for a model that does not know its visual tokens and for a row whose first token is to be learned:
    nothing predicts it.
    """
    if not set(VISUAL_ROLES) <= model.special_token_ids.keys():
        raise ValueError(f"the model's special_token_ids must hold {', '.join(VISUAL_ROLES)} to read text and images")
    valid, learned = batch.attention_mask.numpy(), batch.completion_mask.numpy()
    if (learned & ~(valid & (valid.cumsum(1) > 1))).any():
        raise ValueError("completion_mask marks padding or the first token of a row; mark tokens after the prompt")
    device = model.language_model.lm_head.weight.device
    layout, input_ids = batch_layout(batch, model.special_token_ids).to(device), send(batch.input_ids, device)
    pixels = None if batch.visual is None else batch.visual.pixels
    hidden = model.run(input_ids, layout, pixels if pixels is None or layout.num_patches else pixels[:0])
    places = indices(batch.completion_mask, device)
    return hidden[token_before(layout, places)], input_ids.flatten()[places], places


def in_rows(batch: TokenBatch, places: Tensor, values: Tensor) -> Tensor:
    """Values [K] at their flat places, 0 elsewhere, [B, S]."""
    return values.new_zeros(batch.input_ids.numel()).index_copy(0, places, values).view(batch.input_ids.shape)


def token_scores(
    model: VisionLanguageModel, batch: TokenBatch, temperature: float | None = None, entropy: bool = False
) -> TokenScores:
    """Scores [B, S] of the tokens where `batch.completion_mask`; see `algos.objective.LanguagePolicy`.

    ValueError as `residual_before`.
    """
    before, targets, places = residual_before(model, batch)
    logprobs, spread = score_in_parts(model, before, targets, temperature, entropy)
    return TokenScores(in_rows(batch, places, logprobs), None if spread is None else in_rows(batch, places, spread))


def next_tokens(model: VisionLanguageModel, batch: TokenBatch) -> NextTokens:
    """Distributions at the tokens to learn, whose logits are yet to be made; ValueError as `residual_before`."""
    before, _, _ = residual_before(model, batch)
    return NextTokens(before, lambda some: model.logits(some).float(), model.language_model.lm_head.weight.shape[0])


def compare_tokens(
    model: VisionLanguageModel,
    batch: TokenBatch,
    compare: Callable[..., tuple[Tensor, ...]],
    given: tuple[Tensor, ...],
) -> tuple[Tensor, ...]:
    """What `compare` finds at the tokens to learn, each [B, S]; see `algos.objective.ComparablePolicy`.

    Logits are made in parts of at most half of `LOGITS_AT_ONCE`: `compare` may make as many of another model.
    ValueError as `residual_before`.
    """
    before, _, places = residual_before(model, batch)
    size = max(1, LOGITS_AT_ONCE // 2 // model.language_model.lm_head.weight.shape[0])

    def part(hidden: Tensor, *known: Tensor) -> tuple[Tensor, ...]:
        return compare(model.logits(hidden).float(), *known)

    if len(places) <= size:
        found = part(before, *given)
    else:
        parts = [
            checkpoint(part, *some, use_reentrant=False)
            for some in zip(before.split(size), *(known.split(size) for known in given), strict=True)
        ]
        found = tuple(torch.cat(values) for values in zip(*parts, strict=True))
    return tuple(in_rows(batch, places, values) for values in found)
