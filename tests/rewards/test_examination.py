"""Measures of a reward model on planted answers."""

import numpy as np
import pytest

from rewards.calibration import cluster_interval, examine, pair_accuracy


def test_pairs_are_of_the_same_question_and_ties_count_half():
    group = np.array([0, 0, 1, 1, 2, 2])
    truth = np.array([1.0, 0.0, 0.9, 0.1, 0.5, 0.5])
    assert pair_accuracy(np.array([0.9, 0.1, 0.2, 0.8, 0.3, 0.4]), truth, group) == 0.5
    assert pair_accuracy(np.array([0.9, 0.1, 0.5, 0.5, 0.3, 0.4]), truth, group) == 0.75
    assert pair_accuracy(np.zeros(2), np.ones(2), np.zeros(2)) is None


def test_an_interval_is_as_wide_as_its_clusters_are_few():
    """The same answers, each a scene of its own, or all of a scene alike."""
    rng = np.random.default_rng(1)
    alike = np.repeat(rng.random(20), 20)

    def mean(places):
        return float(alike[places].mean())

    few = cluster_interval(mean, np.repeat(np.arange(20), 20).tolist())
    many = cluster_interval(mean, list(range(400)))
    assert few[1] - few[0] > 3 * (many[1] - many[0])


def planted(noise: float, members: int = 3, n: int = 600):
    rng = np.random.default_rng(0)
    truth = rng.random(n)
    logits = 6 * (truth - 0.5) + rng.normal(0, noise, (members, n))
    return examine(1 / (1 + np.exp(-logits)), truth, 0.5, np.arange(n) // 6, (np.arange(n) // 12).tolist())


def test_a_model_that_knows_beats_one_that_guesses():
    knows, guesses = planted(0.3), planted(30.0)
    assert knows["accuracy"] > 0.9 > 0.7 > guesses["accuracy"]
    assert knows["auroc_interval"][0] > guesses["auroc_interval"][1]
    assert knows["brier"] < 0.12 < knows["brier_of_rate"]
    assert knows["rank_correlation"] > 0.9
    assert knows["pair_accuracy"] > 0.85
    assert (knows["answers"], knows["questions"], knows["scenes"]) == (600, 100, 50)


def test_leaving_out_what_members_disagree_on_makes_the_rest_more_accurate():
    found = planted(2.0)
    accuracies = [row["accuracy"] for row in found["abstention"]]
    assert accuracies[0] == pytest.approx(found["accuracy"])
    assert accuracies[-1] > accuracies[0] + 0.05
    assert len(found["members"]) == 3


@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_probability_that_is_no_number_is_never_right():
    found = examine(np.full((1, 10), np.nan), np.zeros(10), 0.5, np.arange(10), list(range(10)))
    assert found["accuracy"] == 0.0


def test_answers_that_are_all_correct_have_no_ranking():
    found = examine(np.full((1, 10), 0.9), np.ones(10), 0.5, np.arange(10), list(range(10)))
    assert found["auroc"] is None and found["auroc_interval"] is None and found["rank_correlation"] is None
    assert found["accuracy"] == 1.0
