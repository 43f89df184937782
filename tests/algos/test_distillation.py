"""On-policy distillation: hand values, limits, properties, gradients, and the objective on a table of logits."""

import math
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from algos.batch import DistillationBatch, TokenBatch
from algos.distillation import (
    PAPER,
    Distillation,
    DistillationOptions,
    Divergence,
    Tail,
    buckets,
    compare,
    divergence,
    jensen_shannon,
    kl_divergence,
    stored_top_tokens,
    top_tokens,
)
from rl_lab.reports.metrics import define
from tests.support.flow_policies import generator
from tests.support.language_policies import VOCAB, TablePolicy, random_rollouts

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
EXACT: dict[str, Any] = {"atol": 1e-12, "rtol": 1e-10}
kinds = pytest.mark.parametrize("kind", get_args(Divergence))


def random_logits(n: int, vocab: int, seed: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return scale * torch.randn(n, vocab, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_logprobs(n: int, vocab: int, seed: int, scale: float = 2.0) -> Tensor:
    return random_logits(n, vocab, seed, scale).log_softmax(-1)


def answers(**kwargs: Any) -> TokenBatch:
    batch = random_rollouts(**kwargs)
    names = ("input_ids", "attention_mask", "completion_mask")
    return TokenBatch(**{name: getattr(batch, name) for name in names})


def stored(batch: TokenBatch, teacher: TablePolicy, k: int, temperature: float = 1.0) -> DistillationBatch:
    """The batch with the teacher's top-k, and rubbish where nothing is learned."""
    logits = teacher.table.detach()[batch.input_ids.roll(1, dims=1)] / temperature
    found = logits.log_softmax(-1).topk(k)
    tokens, logprobs = found.indices.clone(), found.values.clone()
    tokens[~batch.completion_mask], logprobs[~batch.completion_mask] = 10**6, torch.nan
    return DistillationBatch(
        **vars(batch), teacher_tokens=tokens, teacher_logprobs=logprobs, teacher_temperature=temperature
    )


def test_two_coins_by_hand() -> None:
    teacher, student = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    forward, reverse = 0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    jsd = 0.5 * (0.5 * math.log(0.5 / 0.375) + 0.5 * math.log(0.5 / 0.625))
    jsd += 0.5 * (0.25 * math.log(0.25 / 0.375) + 0.75 * math.log(0.75 / 0.625))
    for kind, expected in zip(get_args(Divergence), (forward, reverse, jsd), strict=True):
        found = divergence(teacher, student, DistillationOptions(divergence=kind))
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_token_that_the_teacher_excludes_costs_nothing_in_the_forward_divergence() -> None:
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    student = torch.tensor([[0.25, 0.25, 0.5]]).log().requires_grad_()
    value = kl_divergence(teacher, student)
    value.sum().backward()
    assert value.item() == pytest.approx(math.log(2))
    assert student.grad is not None and student.grad.tolist() == [[-0.5, -0.5, 0.0]]


@kinds
@given(seed=st.integers(0, 999), vocab=st.integers(2, 12), beta=st.floats(0.01, 0.99), scale=st.floats(0.1, 20))
@settings(max_examples=40, deadline=None)
def test_divergences_are_0_between_equals_and_positive_otherwise(
    kind: str, seed: int, vocab: int, beta: float, scale: float
) -> None:
    options = DistillationOptions(divergence=kind, beta=beta)
    teacher, student = random_logprobs(4, vocab, seed, scale), random_logprobs(4, vocab, seed + 1, scale)
    assert divergence(teacher, teacher, options).abs().max() < 1e-12
    assert divergence(teacher, student, options).min() > 0
    if kind == "jsd":
        entropy = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
        assert divergence(teacher, student, options).max() <= entropy + 1e-12
        swapped = jensen_shannon(student, teacher, 1 - beta)
        torch.testing.assert_close(jensen_shannon(teacher, student, beta), swapped, **EXACT)


def test_jensen_shannon_is_symmetric_at_one_half_and_becomes_the_divergences_at_the_ends() -> None:
    teacher, student = random_logprobs(5, 8, 0), random_logprobs(5, 8, 1)
    torch.testing.assert_close(jensen_shannon(teacher, student, 0.5), jensen_shannon(student, teacher, 0.5), **EXACT)
    forward, reverse = kl_divergence(teacher, student), kl_divergence(student, teacher)
    torch.testing.assert_close(jensen_shannon(teacher, student, 1e-6) / 1e-6, forward, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(jensen_shannon(teacher, student, 1 - 1e-6) / 1e-6, reverse, atol=1e-4, rtol=1e-3)


@kinds
@given(seed=st.integers(0, 999), vocab=st.integers(3, 12))
@settings(max_examples=25, deadline=None)
def test_the_tail_bucket_bounds_the_whole_from_below_and_grows_to_it(kind: str, seed: int, vocab: int) -> None:
    student, teacher = random_logits(3, vocab, seed), random_logprobs(3, vocab, seed + 1)
    whole = compare(student, teacher, DistillationOptions(divergence=kind)).divergence
    last = torch.zeros_like(whole)
    for k in range(1, vocab + 1):
        found = compare(student, teacher, DistillationOptions(divergence=kind, top_k=k))
        assert (found.divergence >= last - 1e-12).all() and (found.divergence <= whole + 1e-12).all()
        last = found.divergence
    torch.testing.assert_close(last, whole, **EXACT)
    torch.testing.assert_close(found.covered, torch.ones_like(whole), **EXACT)


@kinds
@pytest.mark.parametrize("tail", get_args(Tail))
def test_top_k_of_the_whole_vocabulary_is_the_whole(kind: str, tail: str) -> None:
    student, teacher = random_logits(6, VOCAB, 0), random_logprobs(6, VOCAB, 1)
    options = DistillationOptions(divergence=kind, top_k=VOCAB, tail=tail)
    whole = compare(student, teacher, DistillationOptions(divergence=kind)).divergence
    torch.testing.assert_close(compare(student, teacher, options).divergence, whole, **EXACT)


@kinds
@pytest.mark.parametrize("tail", get_args(Tail))
def test_entries_that_a_server_did_not_fill_are_left_out(kind: str, tail: str) -> None:
    student, teacher = random_logits(4, VOCAB, 0), random_logprobs(4, VOCAB, 1)
    options, few = DistillationOptions(divergence=kind, top_k=4, tail=tail), top_tokens(teacher, 2)
    tokens = torch.cat([few.tokens, torch.zeros(4, 2, dtype=torch.long)], 1)
    logprobs = torch.cat([few.logprobs, torch.full((4, 2), -torch.inf)], 1)
    logits = student.clone().requires_grad_()
    found = compare(logits, stored_top_tokens(tokens, logprobs), options).divergence
    expected = compare(student, teacher, options.replace(top_k=2)).divergence
    torch.testing.assert_close(found, expected, **EXACT)
    found.sum().backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize("tail", get_args(Tail))
def test_buckets_are_distributions(tail: str) -> None:
    student, teacher = random_logprobs(5, 9, 0), random_logprobs(5, 9, 1)
    for side in buckets(top_tokens(teacher, 4), student, tail):
        assert side.shape == (5, 5 if tail == "bucket" else 4)
        torch.testing.assert_close(side.exp().sum(-1), torch.ones(5, dtype=torch.float64), **EXACT)


@kinds
@pytest.mark.parametrize("top_k, tail", [(None, "bucket"), (3, "bucket"), (3, "renormalise"), (VOCAB, "bucket")])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_gradients_are_those_of_finite_differences(kind: str, top_k: int | None, tail: str, temperature: float) -> None:
    options = DistillationOptions(divergence=kind, beta=0.3, temperature=temperature, top_k=top_k, tail=tail)
    teacher, logits = random_logprobs(2, VOCAB, 1), random_logits(2, VOCAB, 0).requires_grad_()

    def value(x: Tensor) -> Tensor:
        return compare(x, teacher, options).divergence

    assert torch.autograd.gradcheck(value, (logits,), eps=1e-6, atol=1e-8, rtol=1e-6)


@kinds
def test_gradients_vanish_where_the_student_is_the_teacher(kind: str) -> None:
    logits = random_logits(3, VOCAB, 0).requires_grad_()
    compare(logits, logits.detach().log_softmax(-1), DistillationOptions(divergence=kind)).divergence.sum().backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-12


def test_extreme_logits_stay_finite() -> None:
    student, teacher = torch.tensor([[300.0, 0.0, -300.0]]), torch.tensor([[-300.0, 0.0, 300.0]]).log_softmax(-1)
    for kind in get_args(Divergence):
        for top_k in (None, 1, 2):
            logits = student.clone().requires_grad_()
            value = compare(logits, teacher, DistillationOptions(divergence=kind, top_k=top_k)).divergence
            value.sum().backward()
            assert value.isfinite().all() and logits.grad is not None and logits.grad.isfinite().all(), (kind, top_k)


def test_entropy_agreement_and_coverage_are_the_students_and_the_teachers() -> None:
    student, teacher = random_logits(50, VOCAB, 0), random_logprobs(50, VOCAB, 1)
    found = compare(student, teacher, DistillationOptions(top_k=2, temperature=2.0))
    logprobs = (student / 2).log_softmax(-1)
    torch.testing.assert_close(found.entropy, -(logprobs.exp() * logprobs).sum(-1), **EXACT)
    assert found.agreement.tolist() == (student.argmax(-1) == teacher.argmax(-1)).float().tolist()
    torch.testing.assert_close(found.covered, teacher.exp().topk(2).values.sum(-1), **EXACT)


def by_hand(student: TablePolicy, teacher: TablePolicy, batch: TokenBatch) -> list[list[Tensor]]:
    """KL(teacher || student) of every token of every answer."""
    rows = []
    for ids, mask in zip(batch.input_ids.tolist(), batch.completion_mask.tolist(), strict=True):
        places = [place for place, learned in enumerate(mask) if learned]
        pairs = [(teacher.table[ids[place - 1]], student.table[ids[place - 1]]) for place in places]
        rows.append([(t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum() for t, s in pairs])
    return rows


def test_the_loss_is_the_mean_over_answers_of_the_mean_over_their_tokens() -> None:
    student, teacher, batch = TablePolicy(0), TablePolicy(1), answers()
    rows = by_hand(student, teacher, batch)
    assert len({len(row) for row in rows}) > 1, "the two means must differ"
    loss, metrics = Distillation(PAPER, teacher=teacher).loss(student, batch, generator())
    torch.testing.assert_close(loss, torch.stack([torch.stack(row).mean() for row in rows]).mean(), **CLOSE)
    over_tokens = torch.stack([value for row in rows for value in row]).mean()
    token = Distillation(DistillationOptions(average="token"), teacher=teacher)
    torch.testing.assert_close(token.loss(student, batch, generator())[0], over_tokens, **CLOSE)
    assert metrics["distill/divergence"].item() == pytest.approx(over_tokens.item(), rel=1e-5)
    assert metrics["distill/covered"].item() == pytest.approx(1.0)
    assert metrics["text/tokens"].item() == batch.num_tokens
    assert [name for name in metrics if define(name) is None] == []


@pytest.mark.parametrize("average", ["sequence", "token"])
def test_parts_of_a_batch_add_up_to_the_whole(average: str) -> None:
    student, batch = TablePolicy(0), answers()
    objective = Distillation(DistillationOptions(divergence="jsd", average=average), teacher=TablePolicy(1))
    whole = torch.autograd.grad(objective.loss(student, batch, generator())[0], student.table)[0]
    total, count = torch.zeros_like(whole), objective.denominator(batch)
    for rows in ([0], [1, 2, 3], [4, 5]):
        loss, _ = objective.loss(student, batch.select(torch.tensor(rows)), generator(), count)
        total += torch.autograd.grad(loss, student.table)[0]
    torch.testing.assert_close(total, whole, **CLOSE)


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = TablePolicy(0), TablePolicy(1)
    Distillation(PAPER, teacher=teacher).loss(student, answers(), generator())[0].backward()
    assert teacher.table.grad is None
    assert student.table.grad is not None and student.table.grad.abs().sum() > 0


@kinds
@pytest.mark.parametrize("tail", get_args(Tail))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_stored_log_probabilities_are_as_good_as_the_teacher(kind: str, tail: str, temperature: float) -> None:
    student, teacher, batch = TablePolicy(0), TablePolicy(1), answers()
    options = DistillationOptions(divergence=kind, top_k=3, tail=tail, temperature=temperature)
    loss, metrics = Distillation(options, teacher=teacher).loss(student, batch, generator())
    kept = stored(batch, teacher, 3, temperature)
    again, same = Distillation(options).loss(student, kept, generator())
    torch.testing.assert_close(again, loss, atol=1e-5, rtol=1e-5)
    for name in metrics:
        torch.testing.assert_close(same[name], metrics[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        PAPER,
        DistillationOptions(divergence="reverse_kl"),
        DistillationOptions(divergence="jsd"),
        DistillationOptions(top_k=3),
        DistillationOptions(divergence="reverse_kl", top_k=3),
    ],
    ids=lambda item: f"{item.divergence}-{item.top_k}",
)
def test_a_student_moves_to_the_teacher_on_given_answers(options: DistillationOptions) -> None:
    student, teacher, batch = TablePolicy(0), TablePolicy(1), answers(num_groups=8, longest=8)
    objective = Distillation(options, teacher=teacher)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    far = Distillation(PAPER, teacher=teacher).loss(student, batch, generator())[0].item()
    for _ in range(300):
        optimizer.zero_grad()
        objective.loss(student, batch, generator())[0].backward()
        optimizer.step()
    loss, metrics = objective.loss(student, batch, generator())
    near = Distillation(PAPER, teacher=teacher).loss(student, batch, generator())[0].item()
    assert loss.item() < 1e-3 and metrics["distill/agreement"].item() == 1.0
    assert near < (1e-3 if options.top_k is None else 0.2 * far), "a tail bucket leaves the tail's spread alone"


def test_an_answer_without_tokens_adds_nothing() -> None:
    student, batch = TablePolicy(0), answers()
    batch.completion_mask[0] = False
    objective = Distillation(PAPER, teacher=TablePolicy(1))
    loss, _ = objective.loss(student, batch, generator())
    rest, _ = objective.loss(student, batch.select(torch.arange(1, len(batch))), generator(), len(batch))
    torch.testing.assert_close(loss, rest)
    batch.completion_mask[:] = False
    assert objective.loss(student, batch, generator())[0].item() == 0.0


@pytest.mark.parametrize(
    "values, message",
    [
        ({"divergence": "kl"}, "divergence 'kl' is not supported; choose one of forward_kl, reverse_kl, jsd"),
        ({"tail": "drop", "top_k": 4}, "tail 'drop' is not supported"),
        ({"average": "row"}, "average 'row' is not supported"),
        ({"beta": 0.0}, "TRL's 0 is divergence forward_kl"),
        ({"beta": math.nan}, "beta is nan"),
        ({"temperature": 0.0}, "temperature is 0.0; it must be a positive number"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"tail": "renormalise"}, "without top_k there is no tail"),
        ({"tail": "renormalise", "top_k": 1}, "every divergence is 0"),
    ],
)
def test_options_that_cannot_work_are_refused_in_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        DistillationOptions(**values)
    assert "\n" not in str(error.value)


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    student, teacher, batch = TablePolicy(0), TablePolicy(1), answers()
    three = Distillation(DistillationOptions(top_k=3))
    cases = [
        (Distillation(PAPER, teacher=TablePolicy(1, VOCAB + 2)), batch, "has 9 tokens and the student's 7"),
        (Distillation(DistillationOptions(top_k=8), teacher=teacher), batch, "top_k is 8 but the vocabulary has 7"),
        (three, batch, "holds no teacher's log-probabilities"),
        (three, stored(batch, teacher, 2), "score the answers with that top_k"),
        (three, stored(batch, teacher, 3, 0.7), "scored at temperature 0.7 but temperature is 1.0"),
        (three, stored(batch, TablePolicy(1, 40), 3), "use models with the same tokenizer"),
        (Distillation(PAPER, teacher=teacher), stored(batch, teacher, 3), "leave one of them out"),
    ]
    for objective, given_batch, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            objective.loss(student, given_batch, generator())
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="set top_k, or pass one"):
        Distillation(PAPER)
