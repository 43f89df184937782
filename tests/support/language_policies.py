"""A language policy of a few numbers, and batches of sampled answers for it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from algos.batch import RolloutBatch, TokenBatch
from algos.objective import NextTokens, TokenScores

VOCAB = 7


class TablePolicy(nn.Module):
    """Logits of a token depend on the one before it: a table [V, V]."""

    def __init__(self, seed: int = 0, vocab: int = VOCAB) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(seed)))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"vision": [], "vlm": [self.table]}

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False
    ) -> TokenScores:
        logits = self.table[batch.input_ids.roll(1, dims=1)] / (temperature or 1.0)
        logprobs = logits.log_softmax(-1)
        own = logprobs.gather(2, batch.input_ids[..., None])[..., 0] * batch.completion_mask
        spread = -(logprobs.exp() * logprobs).sum(-1).detach() * batch.completion_mask
        return TokenScores(own, spread if entropy else None)

    def next_tokens(self, batch: TokenBatch) -> NextTokens:
        logits = self.table[batch.input_ids.roll(1, dims=1)][batch.completion_mask]
        return NextTokens(logits, lambda some: some, logits.shape[-1])

    def compare_tokens(
        self, batch: TokenBatch, compare: Callable[..., tuple[Tensor, ...]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        found = compare(self.next_tokens(batch).features, *given)
        rows = [torch.zeros(batch.input_ids.shape, dtype=values.dtype) for values in found]
        return tuple(row.masked_scatter(batch.completion_mask, values) for row, values in zip(rows, found, strict=True))


class TapePolicy(nn.Module):
    """Log-probabilities that are given, as parameters."""

    def __init__(self, logprobs: Tensor) -> None:
        super().__init__()
        self.logprobs = nn.Parameter(logprobs.clone())

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False
    ) -> TokenScores:
        return TokenScores(self.logprobs * batch.completion_mask, None)


def random_rollouts(num_groups: int = 2, size: int = 3, prompt: int = 2, longest: int = 5, seed: int = 0) -> Any:
    """Answers of 1 to `longest` tokens to prompts of equal length, right-padded, with advantages of random rewards."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = num_groups * size, prompt + longest
    lengths = torch.randint(1, longest + 1, (rows, 1), generator=generator)
    columns = torch.arange(width)
    valid = columns < prompt + lengths
    learned = valid & (columns >= prompt)
    return RolloutBatch(
        input_ids=torch.randint(0, VOCAB, (rows, width), generator=generator) * valid,
        attention_mask=valid,
        completion_mask=learned,
        rollout_logprobs=-torch.rand(rows, width, generator=generator) * learned,
        advantages=torch.randn(rows, generator=generator),
        group=torch.arange(num_groups).repeat_interleave(size),
        weight_version=torch.zeros(rows, dtype=torch.long),
        finished=torch.rand(rows, generator=generator) < 0.5,
    )
