"""Outcome reward models: hand values of both losses, and what a batch must look like."""

import math
from dataclasses import replace

import pytest
import torch

from algos.batch import TokenBatch
from algos.outcome import AnswerPairs, BradleyTerry, Correctness, LabelledAnswers, OutcomeHead, outcome_scores
from tests.support.language_policies import VOCAB, TablePolicy

GENERATOR = torch.Generator()


def answers(*last: int) -> TokenBatch:
    """Rows of three tokens, scored at the third; the policy's features depend on the second, `last`."""
    ids = torch.tensor([[1, token, 0] for token in last])
    ends = torch.zeros_like(ids, dtype=torch.bool)
    ends[:, 2] = True
    return TokenBatch(input_ids=ids, attention_mask=torch.ones_like(ends), completion_mask=ends)


def head(scale: float = 0.0, bias: float = 0.0) -> OutcomeHead:
    """Scores are `bias`, plus `scale` times the sum of the normed features."""
    made = OutcomeHead(VOCAB)
    torch.nn.init.constant_(made.linear.weight, scale)
    torch.nn.init.constant_(made.linear.bias, bias)
    return made


def test_cross_entropy_of_a_constant_score_by_hand():
    """Score ln 3: p = 3/4. Of two correct answers and a wrong one: -(2 ln 3/4 + ln 1/4) / 3."""
    batch = LabelledAnswers(answers=answers(2, 3, 4), correct=torch.tensor([1.0, 1.0, 0.0]))
    loss, metrics = Correctness(head(bias=math.log(3))).loss(TablePolicy(), batch, GENERATOR)
    assert loss.item() == pytest.approx(-(2 * math.log(0.75) + math.log(0.25)) / 3)
    assert metrics["outcome/accuracy"].item() == pytest.approx(2 / 3)
    assert metrics["outcome/correct"].item() == pytest.approx(2 / 3)


def test_bradley_terry_by_hand():
    policy, scorer = TablePolicy(), head(scale=0.3)
    pairs = AnswerPairs(chosen=answers(2, 3), rejected=answers(3, 3))
    loss, metrics = BradleyTerry(scorer).loss(policy, pairs, GENERATOR)
    two, three = outcome_scores(policy, scorer, answers(2, 3)).tolist()
    expected = (math.log1p(math.exp(-(two - three))) + math.log(2)) / 2
    assert loss.item() == pytest.approx(expected)
    assert metrics["outcome/margin"].item() == pytest.approx((two - three) / 2)


@pytest.mark.parametrize("kind", [Correctness, BradleyTerry])
def test_parts_of_a_batch_add_up_to_it(kind):
    policy, objective = TablePolicy(), kind(head(scale=0.3))
    left, right = answers(2, 3, 4), answers(5, 2, 1)
    batch = (
        LabelledAnswers(answers=left, correct=torch.tensor([1.0, 0.0, 1.0]))
        if kind is Correctness
        else AnswerPairs(chosen=left, rejected=right)
    )
    whole, _ = objective.loss(policy, batch, GENERATOR)
    parts = [objective.loss(policy, batch.select(torch.tensor(rows)), GENERATOR, 3)[0] for rows in ([0, 2], [1])]
    assert sum(part.item() for part in parts) == pytest.approx(whole.item())


def test_a_head_learns_which_answer_is_correct():
    policy, objective = TablePolicy(), Correctness(head())
    batch = LabelledAnswers(answers=answers(2, 3, 4, 5), correct=torch.tensor([1.0, 0.0, 1.0, 0.0]))
    adam = torch.optim.Adam([*policy.parameters(), *objective.parameters()], lr=0.1)
    for _ in range(60):
        adam.zero_grad()
        loss, metrics = objective.loss(policy, batch, GENERATOR)
        loss.backward()
        adam.step()
    assert loss.item() < 0.1
    assert metrics["outcome/accuracy"].item() == 1.0


def test_a_row_that_is_scored_at_two_tokens_is_refused():
    batch = answers(2, 3)
    with pytest.raises(ValueError, match="scored at one token"):
        outcome_scores(TablePolicy(), head(), replace(batch, completion_mask=torch.ones(2, 3, dtype=torch.bool)))
