"""Cross-entropy on written answers: cold start and rejection-sampling fine-tuning of the vision-language model.

L = -1/N sum log pi(y_t | x, y_<t) over the N tokens of all answers of the batch, as TRL's `SFTTrainer` with
`assistant_only_loss` (its loss type nll): the end token counts, prompts and images do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from algos.batch import MixedBatch, TokenBatch, count, send
from algos.objective import ComparablePolicy, LanguagePolicy, Objective


class CrossEntropy(Objective):
    """The objective on a `TokenBatch`."""

    def __init__(self, *, groups: tuple[str, ...] = ("vision", "vlm")) -> None:
        self.groups = groups

    def denominator(self, batch: TokenBatch) -> int:
        """What the loss of this whole batch is divided by: its tokens to learn."""
        return max(1, batch.num_tokens)

    def metric_count(self, name: str, batch: Any) -> int:
        """See `Objective`: all metrics are means over tokens, of one source or of all."""
        source = name.removeprefix("source/").removesuffix("/loss") if name.startswith("source/") else None
        return batch.num_tokens if source is None else count(batch.of(source))

    def loss(
        self, policy: LanguagePolicy, batch: TokenBatch, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics; see `Objective.loss`. Uses no randomness."""
        logprobs = policy.token_logprobs(batch).logprobs
        num_tokens = self.denominator(batch)
        summed = -(logprobs * send(batch.completion_mask, logprobs.device)).sum()
        return summed / (denominator or num_tokens), {
            "text/cross_entropy": summed.detach() / num_tokens,
            "text/tokens": torch.tensor(batch.num_tokens),
            **(_by_source(logprobs.detach(), batch) if isinstance(batch, MixedBatch) else {}),
        }


def _by_source(logprobs: Tensor, batch: MixedBatch) -> dict[str, Tensor]:
    """The loss of every source that has a row in the batch."""
    masks = {name: batch.of(name) for name in batch.names}
    return {
        f"source/{name}/loss": -(logprobs * send(mask, logprobs.device)).sum() / count(mask)
        for name, mask in masks.items()
        if count(mask)
    }


@torch.no_grad()
def token_scores(policy: ComparablePolicy, batch: TokenBatch) -> tuple[Tensor, Tensor, Tensor]:
    """-log pi of every token to learn, whether it is the likeliest, and 1; float32 [B, S] each, 0 at other tokens."""

    def compare(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        own = send(wanted, logits.device)
        nll = -logits.log_softmax(-1).gather(1, own[:, None])[:, 0]
        return nll, (logits.argmax(-1) == own).float(), torch.ones_like(nll)

    nll, right, ones = policy.compare_tokens(batch, compare, batch.input_ids[batch.completion_mask])
    return nll, right, ones
