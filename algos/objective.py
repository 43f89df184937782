"""All that a method may ask of a model, and all that the learner asks of a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, Protocol, overload

import torch
from torch import Tensor, nn

from algos.batch import ObservationBatch, TokenBatch


class FlowPolicy(Protocol):
    """A flow-matching action policy: a prefix (images, text) computed once, a suffix (state, noisy actions) many times.

    `prefix` values are opaque to methods; row i of the actions uses row `rows[i]` of the prefix (identity by default).
    """

    @property
    def chunk_size(self) -> int:
        """Action tokens C."""

    @property
    def action_dim(self) -> int:
        """Padded size A of an action, 32 as released; noise is drawn with this size."""

    def encode(self, observation: ObservationBatch) -> Any:
        """What the flow reads of an observation, such as keys and values of every layer of the towers: a tensor whose
        first axis are the rows, or a `TensorRecord` of such."""

    def flow_losses(
        self, prefix: Any, actions: Tensor, noise: Tensor, time: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Flow-matching loss of each row, mean over chunk and the used action dims.

        actions [N, C, D], noise [N, C, A], time [N] in [0, 1] with 1 = pure noise, rows int64 [N] -> [N].
        """

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise [num, C, A]."""

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        """Times [num] from the density that the policy's configuration declares."""


class VelocityPolicy(FlowPolicy, Protocol):
    """A flow policy whose sampler a method may replace by its own."""

    def velocity(self, prefix: Any, x_t: Tensor, time: Tensor) -> Tensor:
        """dx/dt at x_t [B, C, A] and time [B], 1 being noise: [B, C, A]. Row i reads prefix row i."""


class SeeingPolicy(FlowPolicy, Protocol):
    """A flow policy whose vision tokens an auxiliary loss may read."""

    @overload
    def encode(self, observation: ObservationBatch, return_vision: Literal[False] = False) -> Any: ...

    @overload
    def encode(self, observation: ObservationBatch, return_vision: Literal[True]) -> tuple[Any, Tensor]: ...

    def encode(self, observation: ObservationBatch, return_vision: bool = False) -> Any:
        """With `return_vision`, (prefix, vision tokens [B, V, n, D] as they enter the last layer of the language
        tower)."""


class SeenPictures(NamedTuple):
    """M pictures of one size as a language policy sees them."""

    images: Tensor
    """float in [0, 1], [M, 3, H, W]."""
    vision: Tensor
    """Their n tokens, row by row, as they enter the last layer of the language tower, [M, n, D]."""


class TokenScores(NamedTuple):
    """What a language policy says about the tokens to learn, float32 [B, S] and 0 at all others."""

    logprobs: Tensor
    entropy: Tensor | None
    """Of the distribution that the token was drawn from, in nats, without gradient."""
    pictures: Sequence[SeenPictures] = ()
    """All that the rows show, by size; of text alone none of one size."""


class LanguagePolicy(Protocol):
    """A model of text, and of images with it."""

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False
    ) -> TokenScores:
        """Log-probability of every token where `batch.completion_mask`, given all tokens before it in its row.

        Without a temperature under the model itself; with one under the distribution that an engine samples from, which
        also leaves out tokens that are never drawn.
        """


class SeeingLanguagePolicy(LanguagePolicy, Protocol):
    """A language policy whose vision tokens an auxiliary loss may read."""

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False, pictures: bool = False
    ) -> TokenScores:
        """With `pictures`, also what the same pass makes of these."""


class NextTokens(NamedTuple):
    """Distributions over the vocabulary at the K tokens to learn, row by row, as what their logits are made from."""

    features: Tensor
    """float [K, D]."""
    logits: Callable[[Tensor], Tensor]
    """Features [n, D] -> float32 logits [n, V]."""
    vocab: int


class ComparablePolicy(LanguagePolicy, Protocol):
    """A model of text whose distributions can be compared, with B x S x V numbers never in memory."""

    def next_tokens(self, batch: TokenBatch) -> NextTokens:
        """The model's own distributions where `batch.completion_mask`."""

    def compare_tokens(
        self, batch: TokenBatch, compare: Callable[..., tuple[Tensor, ...]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        """What `compare` finds at every token where `batch.completion_mask`, each [B, S] and 0 elsewhere.

        `compare(logits, *known)` gets float32 logits [n, V] of some of the K tokens and their rows of each of `given`,
        [K, ...], and returns values [n]. It may be called several times and again going backward.
        """


class Objective(Protocol):
    """A method: the parameter groups it trains and the scalar it minimises. It holds no other state.

    It may inherit from this class, and need not.

    Where a large batch is divided, over passes or over ranks, three more methods are asked for if they exist:
    - `denominator(batch) -> int`: what the loss of the whole batch is divided by; its rows without it;
    - `draw(policy, batch, generator) -> batch`: the batch with all that is random in its loss, drawn for all rows;
    - `metric_count(name, batch) -> int`: how many things of a part a metric is a mean over; its rows without it.
    """

    groups: tuple[str, ...]
    """Subset of ("vision", "vlm", "expert")."""

    def parameters(self) -> Iterable[nn.Parameter]:
        """Trainable parameters of the objective itself (an auxiliary head); none unless it says otherwise."""
        return ()

    def loss(
        self, policy: Any, batch: Any, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and detached metrics; the policy is a `FlowPolicy` or a `LanguagePolicy`.

        All randomness comes from `generator`. The loss is a sum over the rows divided by `denominator` (default: the
        rows of this batch; methods on text count as their own `denominator(batch)` says). Gradients of the parts of a
        large batch add up to its own when each part is given the large batch's count.
        """
