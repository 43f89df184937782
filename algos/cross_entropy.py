"""Cross-entropy on written answers: cold start and rejection-sampling fine-tuning of the vision-language model.

L = -1/N sum log pi(y_t | x, y_<t) over the N tokens of all answers of the batch, as TRL's `SFTTrainer` with
`assistant_only_loss` (its loss type nll): the end token counts, prompts and images do not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from algos.batch import TokenBatch, send
from algos.objective import LanguagePolicy, Objective


class CrossEntropy(Objective):
    """The objective on a `TokenBatch`."""

    def __init__(self, *, groups: tuple[str, ...] = ("vision", "vlm")) -> None:
        self.groups = groups

    def denominator(self, batch: TokenBatch) -> int:
        """What the loss of this whole batch is divided by: its tokens to learn."""
        return max(1, batch.num_tokens)

    def metric_count(self, name: str, batch: TokenBatch) -> int:
        """See `Objective`: all metrics are means over tokens."""
        return batch.num_tokens

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
        }
