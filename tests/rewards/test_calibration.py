"""Calibration against closed forms, simulation and brute force."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from rewards.calibration import (
    auroc,
    brier,
    calibration_error,
    fit_platt,
    rank_correlation,
    reliability,
)

RNG = np.random.default_rng(0)
LABELLED = st.lists(st.tuples(st.integers(-5, 5), st.booleans()), min_size=2, max_size=40).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


def overconfident(n=20_000):
    """Logits that are twice as large as they should be, and shifted."""
    true = RNG.normal(0, 1.5, n)
    return 2 * true + 1, (RNG.random(n) < expit(true)).astype(float)


def test_platt_undoes_overconfidence():
    logits, labels = overconfident()
    platt = fit_platt(logits, labels)
    assert platt.scale == pytest.approx(0.5, abs=0.02)
    assert platt.shift == pytest.approx(-0.5, abs=0.04)
    assert calibration_error(platt(logits), labels) < 0.01 < 0.05 < calibration_error(expit(logits), labels)
    assert brier(platt(logits), labels) < brier(expit(logits), labels)


def test_separable_data_stay_finite():
    platt = fit_platt(np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0, 0, 1, 1]))
    assert np.isfinite([platt.scale, platt.shift]).all()
    assert platt(np.array([5.0]))[0] < 1


def test_one_label_cannot_be_calibrated_or_ranked():
    for measure in (fit_platt, auroc):
        with pytest.raises(ValueError, match="successes and failures, got 3 and 0"):
            measure(np.arange(3.0), np.ones(3))


@given(LABELLED)
def test_auroc_counts_pairs(rows):
    scores, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auroc(scores, labels) == pytest.approx(np.mean(pairs))


@given(LABELLED)
def test_a_monotone_change_of_scores_changes_no_ranking(rows):
    scores, labels = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    assert auroc(np.exp(scores), labels) == pytest.approx(auroc(scores, labels))


def test_bins_hold_every_sample_once_and_their_rates():
    probabilities, labels = np.array([0.0, 0.05, 0.95, 1.0]), np.array([0.0, 1.0, 1.0, 1.0])
    low, high = reliability(probabilities, labels)
    assert (low.n, low.observed, high.n, high.observed) == (2, 0.5, 2, 1.0)
    assert calibration_error(probabilities, labels) == pytest.approx((2 * 0.475 + 2 * 0.025) / 4)


def test_rank_correlation_needs_something_that_varies():
    assert rank_correlation([0.1, 0.2, 0.9], [1, 2, 3]) == pytest.approx(1)
    assert rank_correlation([0.5, 0.5], [0, 1]) is None
