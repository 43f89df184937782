"""Do a reward model's numbers mean what they say? Calibration of probabilities, and how well scores rank the truth.

Letters: N samples; scores are logits or probabilities [N], labels 0 or 1 [N]. Pure numpy and scipy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata, spearmanr

Array = NDArray[np.float64]
BINS = 10


@dataclass(frozen=True)
class Platt:
    """p = sigmoid(scale * logit + shift) (Platt 1999), fitted on labels that the model was not trained on."""

    scale: float = 1.0
    shift: float = 0.0

    def __call__(self, logits: Array) -> Array:
        """Probabilities [N]."""
        return expit(self.scale * np.asarray(logits, dtype=np.float64) + self.shift)


def fit_platt(logits: Array, labels: Array) -> Platt:
    """Maximum likelihood with Platt's targets (N+ + 1) / (N+ + 2) and 1 / (N- + 2), so that separable data stay finite.

    ValueError unless both labels occur.
    """
    x, y = np.asarray(logits, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    positives = int(y.sum())
    negatives = len(y) - positives
    if not positives or not negatives:
        raise ValueError(f"calibration needs successes and failures, got {positives} and {negatives}")
    targets = np.where(y > 0.5, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: Array) -> tuple[float, Array]:
        z = parameters[0] * x + parameters[1]
        error = expit(z) - targets
        return float((np.logaddexp(0, z) - targets * z).mean()), np.array([(error * x).mean(), error.mean()])

    found = minimize(loss, np.array([1.0, 0.0]), jac=True, method="BFGS")
    return Platt(float(found.x[0]), float(found.x[1]))


def brier(probabilities: Array, labels: Array) -> float:
    """Mean squared error of probabilities (Brier 1950); 0 is perfect, p (1 - p) is what the base rate p alone earns."""
    return float(np.mean((np.asarray(probabilities, dtype=np.float64) - labels) ** 2))


@dataclass(frozen=True)
class Bin:
    """Samples whose probability falls into one stretch."""

    n: int
    predicted: float
    """Mean probability."""
    observed: float
    """Share of positive labels."""


def reliability(probabilities: Array, labels: Array, bins: int = BINS) -> list[Bin]:
    """Predicted beside observed rates in `bins` stretches of equal width of [0, 1]; empty ones are left out."""
    p, y = np.asarray(probabilities, dtype=np.float64), np.asarray(labels, dtype=np.float64)
    place = np.minimum((p * bins).astype(int), bins - 1)
    members = [place == index for index in range(bins)]
    return [Bin(int(m.sum()), float(p[m].mean()), float(y[m].mean())) for m in members if m.any()]


def calibration_error(probabilities: Array, labels: Array, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of n / N |predicted - observed| (Naeini et al. 2015)."""
    found = reliability(probabilities, labels, bins)
    return sum(one.n * abs(one.predicted - one.observed) for one in found) / len(probabilities)


def auroc(scores: Array, labels: Array) -> float:
    """Chance that a positive sample outranks a negative one, ties counting half: the Mann-Whitney statistic.

    ValueError unless both labels occur.
    """
    y = np.asarray(labels) > 0.5
    positives, negatives = int(y.sum()), int((~y).sum())
    if not positives or not negatives:
        raise ValueError(f"a ranking needs successes and failures, got {positives} and {negatives}")
    ranks = rankdata(scores)[y].sum()
    return float((ranks - positives * (positives + 1) / 2) / (positives * negatives))


def rank_correlation(scores: Sequence[float], truth: Sequence[float]) -> float | None:
    """Spearman's rho; None where one of them does not vary."""
    if len(set(scores)) < 2 or len(set(truth)) < 2:
        return None
    return float(spearmanr(scores, truth).statistic)
