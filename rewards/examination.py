"""How good a reward model of answers is, on answers that it was neither trained nor calibrated on.

Letters: M members, N answers. Answers come in clusters (scenes): intervals are by bootstrap over clusters, 95 %.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rewards.calibration import auroc, brier, calibration_error, rank_correlation, reliability

Array = NDArray[np.float64]
RESAMPLES = 500
COVERAGES = (1.0, 0.9, 0.75, 0.5)
"""Shares of the answers that are kept when those with the largest disagreement are left out."""


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
