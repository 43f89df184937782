"""Verdicts on simulated sweeps whose truth is known."""

import numpy as np
import pytest

from rl_lab.reports.sweep_verdict import Scope, Standing, judge_variant


def differences(rng, mean=0.0, n=300, seeds=3, seed_sd=0.01, item_sd=0.2):
    return mean + rng.normal(0, seed_sd, (1, seeds)) + rng.normal(0, item_sd, (n, seeds))


def test_a_large_effect_is_found_for_other_seeds_too():
    verdict = judge_variant(differences(np.random.default_rng(0), 0.1))
    assert (verdict.standing, verdict.scope) == (Standing.BETTER, Scope.SEEDS)
    assert "holds for other training seeds too" in verdict.sentence("judge", "verifier")


def test_a_harm_is_called_worse():
    assert judge_variant(differences(np.random.default_rng(1), -0.1)).standing is Standing.WORSE


def test_seeds_that_disagree_leave_a_verdict_on_these_policies_only():
    """One seed gained much, two a little: certain over items, not over seeds."""
    rng = np.random.default_rng(2)
    data = rng.normal(0, 0.1, (300, 3)) + np.array([[0.2, 0.01, -0.02]])
    verdict = judge_variant(data)
    assert (verdict.standing, verdict.scope) == (Standing.BETTER, Scope.ITEMS)
    assert "other training seeds may turn it around" in verdict.sentence("a", "b")


def test_one_seed_speaks_of_items_alone_and_says_so():
    verdict = judge_variant(differences(np.random.default_rng(3), 0.1, seeds=1))
    assert verdict.scope is Scope.ITEMS
    assert verdict.detectable is None
    assert "give at least 3" in verdict.sentence("a", "b")


def test_no_effect_is_not_distinguishable_and_the_line_says_what_would_be():
    verdict = judge_variant(differences(np.random.default_rng(4)))
    assert verdict.standing is Standing.OPEN
    line = verdict.sentence("a", "b")
    assert "not distinguishable from b" in line
    assert "training seeds" in line


def test_more_variants_ask_for_more_evidence():
    rng = np.random.default_rng(5)
    data = differences(rng, 0.028, seeds=5)
    alone, among = judge_variant(data), judge_variant(data, variants=20)
    width = [one.difference.high - one.difference.low for one in (alone, among)]
    assert width[1] > 1.2 * width[0]
    assert among.level == pytest.approx(0.9975)


def test_a_sweep_of_equals_hardly_ever_names_a_winner():
    """40 sweeps of four variants that are all the baseline: 5 % should be wrong, few seeds cost some. A test without
    correction for the four would be wrong in 20 %, and one over items alone in most."""
    rng, wrong = np.random.default_rng(6), 0
    for _ in range(40):
        verdicts = [judge_variant(differences(rng, n=40, seeds=5, item_sd=0.3), 4) for _ in range(4)]
        wrong += any(v.standing is not Standing.OPEN and v.scope is Scope.SEEDS for v in verdicts)
    assert wrong <= 4


def test_a_verdict_says_how_much_seeds_differ():
    found = judge_variant(differences(np.random.default_rng(8), seeds=40, seed_sd=0.05))
    assert found.spread.seeds == pytest.approx(0.05, rel=0.3)
    assert judge_variant(differences(np.random.default_rng(8), seeds=1)).spread is None


def test_a_seed_that_failed_is_left_out():
    data = differences(np.random.default_rng(7), 0.1, seeds=4)
    data[:, 2] = np.nan
    assert judge_variant(data).seeds == 3


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="no pair"):
        judge_variant(np.full((5, 2), np.nan))


def test_policies_that_never_succeed_say_nothing_of_how_seeds_differ():
    verdict = judge_variant(np.zeros((6, 3)))
    assert verdict.spread is None and verdict.detectable is None and verdict.seeds_needed is None
    assert "says nothing of how seeds differ" in verdict.sentence("random", "none")
