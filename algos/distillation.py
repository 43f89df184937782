"""On-policy distillation: the student moves to a teacher's next-token distributions on its own answers.

L = E_{x, y ~ pi_student} [1/|y| sum_t KL(pi_teacher(. | x, y_<t) || pi_student(. | x, y_<t))]

is the large-to-small on-policy distillation of HY-Embodied-0.5 (arXiv:2604.07430); its number is in no text we could
read. The other divergences are those of GKD (arXiv:2306.13649, eq. 1), as TRL 1.16's `DistillationTrainer` has them. As
there, no gradient passes through the sampling of y.
Differs from TRL: the mean is first over an answer's tokens (`average: token` is TRL's); top-k for every divergence.
Letters: B rows (answers), S tokens of a row, K tokens to learn, n some of them, V vocabulary, k the teacher's top-k.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from algos.batch import DistillationBatch, TokenBatch, indices, send
from algos.grpo import GRPO
from algos.objective import ComparablePolicy, Objective
from envs.options import Fraction, Options, PositiveFloat, Rows

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Tail = Literal["bucket", "renormalise"]
_INSIDE = "it must lie between 0 and 1: TRL's 0 is divergence forward_kl and its 1 is reverse_kl"


class DistillationOptions(Options):
    """Defaults are HY-Embodied-0.5's, or ours where its paper says nothing. ValueError for what cannot work."""

    bad_choice: ClassVar[str] = "{name} {value!r} is not supported"
    divergence: Divergence = "forward_kl"
    """forward_kl: KL(teacher || student), the paper's and TRL's beta = 0; reverse_kl: KL(student || teacher), TRL's
    beta = 1; jsd: generalised Jensen-Shannon with `beta`."""
    beta: Fraction = Field(default=0.5, description=_INSIDE)
    """Share of the teacher in the mixture of `jsd`, in (0, 1); 0.5 is the symmetric one."""
    temperature: PositiveFloat = Field(default=1.0, description="it must be a positive number")
    """Both models' logits are divided by it; as in TRL the loss is not multiplied by its square. Not in the paper."""
    top_k: Rows | None = Field(
        default=None, description="it must be at least 1, or be left out for the whole vocabulary"
    )
    """Compare at the teacher's k most likely tokens; None: at the whole vocabulary, as in the paper."""
    tail: Tail = "bucket"
    """What becomes of the other tokens with `top_k`; see `buckets`."""
    average: Literal["sequence", "token"] = "sequence"
    """sequence: mean over the tokens of an answer, then over answers, as in the paper; token: mean over all tokens of
    the batch, as in TRL."""

    @model_validator(mode="after")
    def _can_work(self) -> Self:
        if not 0 < self.beta < 1:
            raise ValueError(f"beta is {self.beta}; {_INSIDE}")
        if self.top_k is None and self.tail != "bucket":
            raise ValueError(f"tail is {self.tail!r} but without top_k there is no tail; set top_k or leave tail out")
        if self.top_k == 1 and self.tail == "renormalise":
            raise ValueError(
                "top_k is 1 and tail 'renormalise', so every divergence is 0; use tail 'bucket' or a larger top_k"
            )
        return self


PAPER = DistillationOptions()
"""HY-Embodied-0.5 (arXiv:2604.07430, large-to-small distillation): forward KL of full distributions, sequence mean."""

LEAST_TAIL = 1e-7
"""Probability that the tail of stored log-probabilities has at least, as in TRL: their sum is rounded to about this."""


def kl_divergence(p_logprobs: Tensor, q_logprobs: Tensor) -> Tensor:
    """KL(p || q) = sum_v p (log p - log q) in nats, [...], of log-probabilities [..., V]; 0 log 0 is 0."""
    p = p_logprobs.exp()
    return torch.where(p > 0, p * (p_logprobs - q_logprobs), 0.0).sum(-1)


def jensen_shannon(teacher_logprobs: Tensor, student_logprobs: Tensor, beta: float) -> Tensor:
    """GKD eq. 1: beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student, [...].

    Divided by beta it becomes KL(teacher || student) as beta -> 0, and divided by 1 - beta the reverse as beta -> 1.
    """
    mixture = torch.logaddexp(student_logprobs + math.log1p(-beta), teacher_logprobs + math.log(beta))
    return beta * kl_divergence(teacher_logprobs, mixture) + (1 - beta) * kl_divergence(student_logprobs, mixture)


def divergence(teacher_logprobs: Tensor, student_logprobs: Tensor, options: DistillationOptions) -> Tensor:
    """The divergence that the options name, [...], at least 0, of log-probabilities [..., V] that sum to 1."""
    if options.divergence == "forward_kl":
        return kl_divergence(teacher_logprobs, student_logprobs)
    if options.divergence == "reverse_kl":
        return kl_divergence(student_logprobs, teacher_logprobs)
    return jensen_shannon(teacher_logprobs, student_logprobs, options.beta)


class TopTokens(NamedTuple):
    """The teacher's k most likely tokens at n places."""

    tokens: Tensor
    """int64 [n, k], the likeliest first."""
    logprobs: Tensor
    """In the whole vocabulary, [n, k]; -inf: this entry is not used."""
    rest: Tensor
    """Log-probability of all other tokens together, [n, 1]."""


def rest_logprob(logprobs: Tensor, tokens: Tensor) -> Tensor:
    """Log of the probability of all tokens but `tokens` [n, k], [n, 1], of log-probabilities [n, V]."""
    return logprobs.scatter(-1, tokens, -torch.inf).logsumexp(-1, keepdim=True)


def top_tokens(logprobs: Tensor, k: int) -> TopTokens:
    """The k most likely tokens of log-probabilities [n, V]."""
    found = logprobs.topk(k, dim=-1)
    return TopTokens(found.indices, found.values, rest_logprob(logprobs, found.indices))


def stored_top_tokens(tokens: Tensor, logprobs: Tensor) -> TopTokens:
    """The same from tokens and log-probabilities [n, k] alone; the rest is 1 - their sum, at least `LEAST_TAIL`."""
    total = logprobs.logsumexp(-1, keepdim=True).clamp(max=-LEAST_TAIL)
    return TopTokens(tokens, logprobs, (-torch.expm1(total)).log())


def buckets(top: TopTokens, student_logprobs: Tensor, tail: str) -> tuple[Tensor, Tensor]:
    """Teacher and student log-probabilities of the same k or k + 1 buckets, of the student's [n, V].

    - bucket: each of the teacher's top-k tokens, and one more for all other tokens together. Both stay distributions,
      so the divergence is at least 0, grows with k and never exceeds that of the whole vocabulary; what the student
      gives to tokens outside is held against it, but not how it spreads it. At k = V there is no such bucket.
    - renormalise: the top-k tokens alone, each model's probabilities divided by their sum; what the student gives to
      other tokens costs nothing.
    """
    known = top.logprobs > -torch.inf
    tokens = torch.where(known, top.tokens, top.tokens[:, :1])
    teacher, student = top.logprobs, student_logprobs.gather(-1, tokens).masked_fill(~known, -torch.inf)
    if tail == "renormalise":
        teacher, student = (x - x.logsumexp(-1, keepdim=True) for x in (teacher, student))
    elif tokens.shape[-1] < student_logprobs.shape[-1]:
        teacher = torch.cat([teacher, top.rest], -1)
        student = torch.cat([student, rest_logprob(student_logprobs, tokens)], -1)
        known = F.pad(known, (0, 1), value=True)
    # A bucket of log-probability 0 on both sides adds 0 to every divergence, and no gradient.
    return teacher.masked_fill(~known, 0.0), student.masked_fill(~known, 0.0)


class Comparison(NamedTuple):
    """What teacher and student say about tokens, [n] or [B, S]; only the divergence has a gradient."""

    divergence: Tensor
    entropy: Tensor
    """Of the student, in nats."""
    agreement: Tensor
    """1 where both find the same token most likely."""
    covered: Tensor
    """The teacher's probability of the tokens compared one by one."""


def compare(student_logits: Tensor, teacher: Tensor | TopTokens, options: DistillationOptions) -> Comparison:
    """Compare logits [n, V] with the teacher's log-probabilities [n, V], or with what is known of them."""
    student = (student_logits / options.temperature).log_softmax(-1)
    if isinstance(teacher, Tensor) and options.top_k is not None:
        teacher = top_tokens(teacher, options.top_k)
    with torch.no_grad():
        if isinstance(teacher, Tensor):
            likeliest, covered = teacher.argmax(-1), torch.ones_like(teacher[:, 0])
        else:
            likeliest, covered = teacher.tokens[:, 0], teacher.logprobs.exp().sum(-1)
        agreement = (student.argmax(-1) == likeliest).float()
        entropy = -(student.exp() * student).sum(-1)
    pair = (teacher, student) if isinstance(teacher, Tensor) else buckets(teacher, student, options.tail)
    return Comparison(divergence(*pair, options), entropy, agreement, covered)


def aggregate(divergences: Tensor, mask: Tensor, average: str, denominator: int) -> Tensor:
    """One number of divergences [B, S]: their sum over tokens, or the sum over rows of a row's mean, by denominator."""
    summed = (divergences * mask).sum(1)
    if average == "sequence":
        summed = summed / mask.sum(1).clamp(min=1)
    return summed.sum() / denominator


class Distillation(Objective):
    """The objective on a `TokenBatch` of the student's answers.

    With a teacher, a model of the same vocabulary, its distributions are made beside the student's, without gradient;
    without one the batch is a `DistillationBatch`, which holds the teacher's top-k.
    """

    def __init__(
        self,
        options: DistillationOptions,
        *,
        groups: tuple[str, ...] = ("vision", "vlm"),
        teacher: ComparablePolicy | None = None,
    ) -> None:
        if teacher is None and options.top_k is None:
            raise ValueError(
                "without a teacher model only stored log-probabilities are compared; set top_k, or pass one"
            )
        self.options, self.groups, self.teacher = options, groups, teacher

    def denominator(self, batch: TokenBatch) -> int:
        """What the loss of this whole batch is divided by: rows, or tokens with `average: token`."""
        return max(1, batch.num_tokens) if self.options.average == "token" else len(batch)

    def metric_count(self, name: str, batch: TokenBatch) -> int:
        """See `Objective`: all metrics but the loss are means over tokens."""
        return batch.num_tokens

    def loss(
        self, policy: ComparablePolicy, batch: TokenBatch, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and metrics; see `Objective.loss`. Uses no randomness.

        ValueError where teacher and student have different vocabularies, or the batch does not hold what is compared.
        """
        compared = self._by_stored if self.teacher is None else self._by_model
        found = Comparison(*compared(policy, batch))
        mask = send(batch.completion_mask, found.divergence.device)
        loss = aggregate(found.divergence, mask, self.options.average, denominator or self.denominator(batch))
        num_tokens = max(1, batch.num_tokens)
        return loss, {
            "distill/divergence": found.divergence.detach().sum() / num_tokens,
            "distill/agreement": found.agreement.sum() / num_tokens,
            "distill/covered": found.covered.sum() / num_tokens,
            "entropy": found.entropy.sum() / num_tokens,
            "text/tokens": torch.tensor(batch.num_tokens),
        }

    def _by_model(self, policy: ComparablePolicy, batch: TokenBatch) -> tuple[Tensor, ...]:
        """Comparison [B, S] with the teacher model."""
        assert self.teacher is not None
        if isinstance(batch, DistillationBatch):
            raise ValueError(
                "the batch holds a teacher's log-probabilities but a teacher was passed; leave one of them out"
            )
        with torch.no_grad():
            given = self.teacher.next_tokens(batch)
        if self.options.top_k is not None and self.options.top_k > given.vocab:
            raise ValueError(
                f"top_k is {self.options.top_k} but the vocabulary has {given.vocab} tokens; leave it out for all"
            )

        def with_teacher(logits: Tensor, features: Tensor) -> Comparison:
            if logits.shape[-1] != given.vocab:
                raise ValueError(
                    f"the teacher's vocabulary has {given.vocab} tokens and the student's {logits.shape[-1]}; "
                    "use models with the same tokenizer"
                )
            with torch.no_grad():
                teacher = (given.logits(features) / self.options.temperature).log_softmax(-1)
            return compare(logits, teacher, self.options)

        return policy.compare_tokens(batch, with_teacher, given.features)

    def _by_stored(self, policy: ComparablePolicy, batch: TokenBatch) -> tuple[Tensor, ...]:
        """Comparison [B, S] with what the batch holds of the teacher."""
        if not isinstance(batch, DistillationBatch):
            raise ValueError("the batch holds no teacher's log-probabilities and no teacher was passed; pass one")
        check_stored(batch, self.options)
        known = batch.teacher_tokens.numpy()[batch.completion_mask.numpy()]
        least, most = int(known.min(initial=0)), int(known.max(initial=0))

        def with_stored(logits: Tensor, tokens: Tensor, logprobs: Tensor) -> Comparison:
            if least < 0 or most >= logits.shape[-1]:
                raise ValueError(
                    f"the teacher names tokens {least} .. {most} but the student has 0 .. {logits.shape[-1] - 1}; "
                    "use models with the same tokenizer"
                )
            return compare(logits, stored_top_tokens(tokens, logprobs), self.options)

        device = batch.teacher_logprobs.device
        places = indices(batch.completion_mask, device)
        tokens = send(batch.teacher_tokens, device).flatten(0, 1)[places]
        return policy.compare_tokens(batch, with_stored, tokens, batch.teacher_logprobs.flatten(0, 1)[places].float())


def check_stored(batch: DistillationBatch, options: DistillationOptions) -> None:
    """ValueError if what a batch holds of the teacher is not what the options ask for."""
    shape, stored = (*batch.input_ids.shape, options.top_k), list(batch.teacher_tokens.shape)
    if batch.teacher_tokens.shape != shape or batch.teacher_logprobs.shape != shape:
        raise ValueError(
            f"top_k is {options.top_k} for {list(shape[:2])} tokens, but the batch stores teacher tokens {stored} and "
            f"log-probabilities {list(batch.teacher_logprobs.shape)}; score the answers with that top_k"
        )
    if batch.teacher_temperature != options.temperature:
        raise ValueError(
            f"the teacher was scored at temperature {batch.teacher_temperature} but temperature is "
            f"{options.temperature}; a stored top-k cannot be changed to another, so score it again or use its own"
        )


class RewardedDistillation(Objective):
    """The divergence to a teacher plus a weighted GRPO loss, on the same answers.

    L = L_distillation + reward_weight * L_GRPO. Ours; HY-Embodied-0.5 (arXiv:2604.07430) distils without rewards. A
    reward tells apart answers of one prompt that the teacher finds equally likely, so there must be several of each.
    Batches are a `RolloutBatch` (with stored top-k, a `ScoredRolloutBatch`); each objective has its own count.
    """

    def __init__(self, distillation: Distillation, grpo: GRPO, reward_weight: float) -> None:
        if distillation.groups != grpo.groups:
            raise ValueError(f"distillation trains {distillation.groups} but GRPO {grpo.groups}; train the same groups")
        self.distillation, self.grpo, self.reward_weight = distillation, grpo, reward_weight
        self.groups = distillation.groups

    def denominator(self, batch: Any) -> tuple[int, int]:
        """What the losses of this whole batch are divided by: the divergence, then GRPO's."""
        return self.distillation.denominator(batch), self.grpo.denominator(batch)

    def metric_count(self, name: str, batch: Any) -> int:
        """See `Objective`; the two losses are sums."""
        part = self.distillation if name.startswith("distill/") else self.grpo
        return part.metric_count(name, batch)

    def loss(  # type: ignore[override]  # there are two counts
        self, policy: Any, batch: Any, generator: torch.Generator, denominator: tuple[int, int] | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and the metrics of both; see `Objective.loss`. Uses no randomness."""
        first, second = denominator or self.denominator(batch)
        divergence, metrics = self.distillation.loss(policy, batch, generator, first)
        surrogate, more = self.grpo.loss(policy, batch, generator, second)
        return divergence + self.reward_weight * surrogate, metrics | more
