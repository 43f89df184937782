"""Do a reward model's numbers mean what they say? Calibration of probabilities, and how well scores rank the truth.

`examine` says how good a model of answers is, on answers that it was neither trained nor calibrated on. Answers come in
clusters (scenes): intervals are by bootstrap over clusters, 95 %. Pure numpy and scipy.

Letters: N samples or answers, M members; scores are logits or probabilities [N], labels 0 or 1 [N].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit
from scipy.stats import rankdata, spearmanr

Array = NDArray[np.float64]

BINS = 10

RESAMPLES = 500

COVERAGES = (1.0, 0.9, 0.75, 0.5)
"""Shares of the answers that are kept when those with the largest disagreement are left out."""


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


def examine(members: Array, truth: Array, threshold: float, group: Array, cluster: Sequence[Any]) -> dict[str, Any]:
    """Measures of probabilities [M, N] beside true rewards [N]; an answer is correct from `threshold` on.

    `group` [N]: the question of each answer, `cluster` [N]: its scene. The model is the mean of its members.
    """
    p, correct = members.mean(0), (truth >= threshold).astype(np.float64)
    right = ((p >= 0.5) == (correct > 0.5)) & ~np.isnan(p)
    rate = float(correct.mean())
    found: dict[str, Any] = {
        "answers": len(p),
        "questions": len(np.unique(group)),
        "scenes": len(np.unique(np.asarray(cluster))),
        "correct": rate,
        "accuracy": float(right.mean()),
        "accuracy_interval": cluster_interval(lambda places: float(right[places].mean()), cluster),
        "majority": max(rate, 1 - rate),
        "auroc": _ranked(p, correct),
        "auroc_interval": cluster_interval(lambda places: _ranked(p[places], correct[places]), cluster),
        "brier": brier(p, correct),
        "brier_of_rate": rate * (1 - rate),
        "calibration_error": calibration_error(p, correct),
        "reliability": [asdict(one) for one in reliability(p, correct)],
        "rank_correlation": rank_correlation(p.tolist(), truth.tolist()),
        "pair_accuracy": pair_accuracy(p, truth, group),
    }
    if len(members) > 1:
        found |= _of_ensemble(members, right, correct)
    return found


def _of_ensemble(members: Array, right: NDArray[np.bool_], correct: Array) -> dict[str, Any]:
    """Each member alone, and what leaving out the answers on which they disagree most would gain."""
    apart = members.std(0)
    order = np.argsort(apart, kind="stable")
    kept = [order[: max(1, round(share * len(order)))] for share in COVERAGES]
    return {
        "members": [{"auroc": _ranked(row, correct), "brier": brier(row, correct)} for row in members],
        "disagreement": float(apart.mean()),
        "abstention": [
            {"kept": share, "limit": float(apart[places[-1]]), "accuracy": float(right[places].mean())}
            for share, places in zip(COVERAGES, kept, strict=True)
        ],
    }


def pair_accuracy(scores: Array, truth: Array, group: Array, margin: float = 0.0) -> float | None:
    """Share of pairs of answers to one question, true rewards more than `margin` apart, in which the better one scores
    higher, ties counting half: what a policy that is trained within groups feels. None without such pairs."""
    right = total = 0.0
    for name in np.unique(group):
        s, t = scores[group == name], truth[group == name]
        better = t[:, None] - t[None, :] > margin
        gain = s[:, None] - s[None, :]
        right += float((better & (gain > 0)).sum() + 0.5 * (better & (gain == 0)).sum())
        total += float(better.sum())
    return right / total if total else None


def cluster_interval(measure: Callable[[Array], float | None], cluster: Sequence[Any]) -> list[float] | None:
    """Percentiles 2.5 and 97.5 of a measure of answers (by their places) over resampled clusters, fixed generator.

    None where fewer than half of the resamples have the measure.
    """
    names, place = np.unique(np.asarray(cluster), return_inverse=True)
    members = [np.flatnonzero(place == number) for number in range(len(names))]
    generator, values = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(0, len(names), len(names))
        value = measure(np.concatenate([members[number] for number in drawn.tolist()]))
        values += [] if value is None else [value]
    if len(values) < RESAMPLES / 2:
        return None
    return [float(end) for end in np.quantile(values, [0.025, 0.975])]


def _ranked(scores: Array, correct: Array) -> float | None:
    return auroc(scores, correct) if 0 < correct.sum() < len(correct) else None
