"""What the learner hands to an objective: rows of actions for a flow policy, rows of text for a language policy.

Tensors whose values decide shapes or counts (masks, numbers of pairs, token ids) stay on the host, also in a batch that
was moved to a device: see `TensorRecord.stays_on_host`. Whatever follows from them is worked out there and sent, so
that the host never waits for the device to tell.

Letters: B observations or rows of text, V cameras, K history frames, S image side (of text: tokens of a row with
padding), T text tokens, C chunk length, A padded action size (32 as released), N rows of actions (N >= B when an
observation is used several times).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor


def send(x: Tensor, device: torch.device | str) -> Tensor:
    """`x` on a device; a copy from the host is not waited for."""
    if x.device.type != "cpu":
        return x.to(device)
    if torch.device(device).type == "cuda":
        x = x.pin_memory()  # from other memory CUDA may wait for earlier work before it copies
    return x.to(device, non_blocking=True)


def indices(mask: Tensor, device: torch.device | str) -> Tensor:
    """Flat places of the true entries of a mask on the host, int64, sent to a device."""
    return send(torch.from_numpy(np.flatnonzero(mask.numpy())), device)


def count(mask: Tensor) -> int:
    """True entries of a mask on the host."""
    return int(np.count_nonzero(mask.numpy()))


class TensorRecord:
    """Shared behaviour of the batches: move every tensor, or take rows of it (first axis)."""

    stays_on_host: ClassVar[frozenset[str]] = frozenset()
    """Tensors whose values decide shapes or counts; `to` leaves them where they are."""

    def _map(self, function, but: frozenset[str] = frozenset()) -> Self:
        changes: dict[str, Any] = {}
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.name not in but and isinstance(value, (Tensor, TensorRecord)):
                changes[item.name] = function(value)
        return replace(self, **changes)  # type: ignore[type-var]

    def to(self, device: torch.device | str) -> Self:
        """Copy every tensor but those that stay on the host to a device, without waiting for it."""
        return self._map(
            lambda value: value.to(device) if isinstance(value, TensorRecord) else send(value, device),
            but=self.stays_on_host,
        )

    def select(self, rows: Tensor) -> Self:
        """Rows of the first axis of every tensor, in the order given."""
        return self._map(lambda value: take_rows(value, rows))


def take_rows(value: Any, rows: Tensor) -> Any:
    """Rows of the first axis of a tensor or of a record of tensors."""
    return value.select(rows) if isinstance(value, TensorRecord) else value[rows]


def join_rows(parts: Sequence[Any]) -> Any:
    """The rows of several tensors, or of records of one kind, behind each other."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    return type(first)(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(first)))


def num_bytes(value: Any) -> int:
    """Of a tensor, or of all tensors of a record."""
    return value.nbytes if isinstance(value, Tensor) else sum(one.nbytes for one in vars(value).values())


@dataclass
class ObservationBatch(TensorRecord):
    """What a policy sees: images, its own arms, the instruction."""

    images: Tensor
    """uint8 or float in [0, 1], [B, V, 3, S, S], or [B, V, K, 3, S, S] with the current frame last; with `seen` frames
    of all rows, [F, V, 3, S, S], to which rows refer because many see the same ones."""
    state: Tensor
    """Normalised encoded state, float [B, E]."""
    tokens: Tensor
    """Instruction token ids, right-padded, int64 [B, T]."""
    token_mask: Tensor
    """True on valid instruction tokens, bool [B, T]."""
    seen: Tensor | None = None
    """Frames of each row among `images`, int64 [B, K], -1 for black ones; `select` looks them up, no policy does."""
    truth: Tensor | None = None
    """Of the simulator, float [B, n]; only for policies of studies, which read it in place of images."""

    def __len__(self) -> int:
        return len(self.state)

    def select(self, rows: Tensor) -> Self:
        """Rows in the order given, with images of their own."""
        if self.seen is None:
            return super().select(rows)
        seen = self.seen[rows]
        views = self.images[seen.clamp(min=0)]
        views[seen < 0] = 0
        images = views[:, 0] if seen.shape[1] == 1 else views.transpose(1, 2)
        return replace(
            self,
            images=images,
            state=self.state[rows],
            tokens=self.tokens[rows],
            token_mask=self.token_mask[rows],
            seen=None,
            truth=None if self.truth is None else self.truth[rows],
        )


@dataclass
class FlowDraws(TensorRecord):
    """Random points of the flow for B rows, R of each; parts of a batch take their rows of the whole batch's draws."""

    noise: Tensor
    """float [B, R, C, A]."""
    time: Tensor
    """float [B, R]."""


@dataclass
class ObservedRows(TensorRecord):
    """Rows of chunks at what a policy saw, and what was made of it beforehand."""

    observation: ObservationBatch | None
    """May be None where every prefix that is needed is stored."""
    prefix: Any = field(default=None, kw_only=True)
    """Stored `policy.encode(observation)` of B rows; only while vision and language are frozen."""
    draws: FlowDraws | None = field(default=None, kw_only=True)
    """What the loss would draw for these rows; None: it draws itself."""


@dataclass
class FlowBatch(ObservedRows):
    """Observations with the chunk to imitate (flow matching)."""

    actions: Tensor
    """Normalised chunks, float [B, C, D]."""
    truth: Tensor | None = None
    """Standardised simulator ground truth, float [B, n]; only for auxiliary losses."""

    def __len__(self) -> int:
        return len(self.actions)


@dataclass
class PreferenceBatch(ObservedRows):
    """Per-state preference tuples (s, winner chunk, loser chunk)."""

    stays_on_host = frozenset({"identical", "source", "weight_version"})

    winner: Tensor
    """Normalised chunks, float [B, C, D]."""
    loser: Tensor
    """Same shape; equal to `winner` where `identical`."""
    identical: Tensor
    """True for states of winners and of demonstrations, bool [B]."""
    source: Tensor
    """Buffer of each row: 0 this round's pairs, 1 older rounds, 2 demonstrations, 3 ranked chunks; int64 [B]."""
    weight_version: Tensor
    """Version of the weights that produced the row (0 for demonstrations), int64 [B]."""
    reference_prefix: Any = None
    """Stored `reference.encode(observation)`; fixed for a round, so it may be stored whatever is trained."""

    def __len__(self) -> int:
        return len(self.winner)

    @property
    def actions(self) -> Tensor:
        """The chunks that imitation learns from: the winner's, [B, C, D]."""
        return self.winner


@dataclass
class TrajectoryBatch(ObservedRows):
    """Rows of whole preference pairs, for one comparison a pair. A pair without loser rows is an identical pair."""

    stays_on_host = frozenset({"pair", "is_winner", "source", "weight_version"})

    actions: Tensor
    """Normalised recorded chunks, float [B, C, D]."""
    pair: Tensor
    """Number of the pair that a row belongs to, 0 .. P - 1 without gaps, int64 [B]."""
    is_winner: Tensor
    """Side of each row, bool [B]; every pair has at least one winner row."""
    source: Tensor
    """Buffer of each row, as in `PreferenceBatch`, int64 [B]."""
    weight_version: Tensor
    """Version of the weights that produced the row, int64 [B]."""
    reference_prefix: Any = None
    """As in `PreferenceBatch`."""

    def __len__(self) -> int:
        """Number of pairs, which is what a mean over the batch divides by."""
        return int(self.pair.numpy().max()) + 1

    def select(self, rows: Tensor) -> Self:
        """These pairs, with all their rows and numbered anew from 0 in ascending order."""
        kept = super().select(torch.from_numpy(np.flatnonzero(np.isin(self.pair.numpy(), rows.numpy()))))
        return replace(kept, pair=torch.from_numpy(np.unique(kept.pair.numpy(), return_inverse=True)[1]))


@dataclass
class ExploredBatch(ObservedRows):
    """Decisions of a policy that explored, for policy gradients."""

    path: Tensor
    """What denoising went through, from noise to the chunk, float [B, K + 1, C, A]; of a sampler without noise of its
    own the chunk alone, [B, 1, C, D]."""
    advantages: Tensor
    """Of the episode that a decision is of, float [B]."""
    state: Tensor
    """Normalised encoded state, float [B, E]."""
    executed: Tensor
    """Which numbers of the chunk the robot ran, bool [B, C, A]: no command after the next decision, and no padding."""
    old_logprobs: Tensor | None = None
    """What `algos.policy_gradients.clipped.PolicyGradient.logprobs` is under the policy that explored, float [B, K]."""

    def __len__(self) -> int:
        return len(self.path)

    @property
    def actions(self) -> Tensor:
        """The chunks that were run, [B, C, A]."""
        return self.path[:, -1]


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

    @property
    def num_pictures(self) -> int:
        """Pictures in all rows, one that several show counted in each."""
        return 0 if self.visual is None else self.visual.num_shown


@dataclass(kw_only=True)
class MixedBatch(TokenBatch):
    """Rows of several sources, which metrics tell apart."""

    stays_on_host = TokenBatch.stays_on_host | {"source"}

    source: Tensor
    """Number of each row's source, int64 [B]."""
    names: tuple[str, ...]
    """Of all sources, those without a row in the batch among them."""

    def of(self, name: str) -> Tensor:
        """Which tokens to learn are of a source, bool [B, S]."""
        return self.completion_mask & (self.source == self.names.index(name))[:, None]


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
