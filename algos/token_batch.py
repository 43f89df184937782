"""Rows of text for a language policy: prompts with answers, and what is known about how the answers were sampled.

Letters: B rows, S tokens of a row with padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from algos.batch import TensorRecord
from algos.host import count


@dataclass(kw_only=True)
class TokenBatch(TensorRecord):
    """Rows of prompt, answer and padding; a row's valid tokens stand together."""

    stays_on_host = frozenset({"input_ids", "attention_mask", "completion_mask"})

    input_ids: Tensor
    """int64 [B, S]; images are rows of patch tokens, as the model reads them."""
    attention_mask: Tensor
    """True at valid tokens, bool [B, S]."""
    completion_mask: Tensor
    """True at the tokens to learn: what the policy (or, for imitation, a teacher) wrote; bool [B, S]."""
    visual: Any = None
    """Pictures of the rows, a record that the model understands; None for text alone."""

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def num_tokens(self) -> int:
        """Tokens to learn in all rows."""
        return count(self.completion_mask)


@dataclass(kw_only=True)
class RolloutBatch(TokenBatch):
    """Sampled answers. What is given for each token is [B, S] beside its token and 0 elsewhere."""

    stays_on_host = TokenBatch.stays_on_host | {"group", "weight_version", "finished"}

    rollout_logprobs: Tensor
    """Log-probability under the distribution that the engine drew the token from, float [B, S]; NaN: not known."""
    advantages: Tensor
    """float [B]; 0 where the reward call failed."""
    group: Tensor
    """Number of the prompt that a row answers, 0 .. P - 1, int64 [B]."""
    weight_version: Tensor
    """Version of the weights that drew every token of the row, int64 [B]: an engine takes new ones between answers."""
    finished: Tensor
    """The answer ended by itself, not at the length limit; bool [B]."""
    old_logprobs: Tensor | None = None
    """Log-probability under the trained model before the first step on this batch, float [B, S]; None: this is that
    step, so it is the current one's."""


@dataclass(kw_only=True)
class DistillationBatch(TokenBatch):
    """A student's answers with the most likely next tokens of a teacher that read them, as vLLM's `prompt_logprobs`.

    What is given for each token is [B, S, k] beside its token and anything elsewhere.
    """

    stays_on_host = TokenBatch.stays_on_host | {"teacher_tokens", "weight_version"}

    teacher_tokens: Tensor
    """The teacher's k most likely tokens, all different, the likeliest first, int64 [B, S, k]."""
    teacher_logprobs: Tensor
    """Their log-probabilities in the whole vocabulary, float [B, S, k]; -inf: this entry is not used."""
    teacher_temperature: float = 1.0
    """What the teacher's logits were divided by."""
    weight_version: Tensor | None = None
    """Version of the student's weights that wrote the row, int64 [B]; None: not known."""


@dataclass(kw_only=True)
class ScoredRolloutBatch(RolloutBatch, DistillationBatch):
    """Sampled answers with their advantages and with what a teacher says about them."""

    stays_on_host = RolloutBatch.stays_on_host | DistillationBatch.stays_on_host

    weight_version: Tensor
    """As of a `RolloutBatch`: always known."""
