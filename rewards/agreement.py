"""Do judge and verifier say the same about items that have both?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Of two raters with the verdicts right and wrong."""

    rate: float | None
    """Share of items with the same verdict; None for n = 0."""
    kappa: float | None
    """Cohen's kappa; None where chance alone agrees always (both raters constant and alike) and for n = 0."""
    n: int
    """Items with both values."""


def agreement(judge: Sequence[float | None], verifier: Sequence[float | None], threshold: float = 0.5) -> Agreement:
    """Agreement of two lists of rewards in 0..1; at least `threshold` means right, items with a None are left out.

    kappa = (p_o - p_e) / (1 - p_e): p_o the rate, p_e = j v + (1 - j)(1 - v) with the shares j, v each calls right
    (Cohen 1960). ValueError for lists of different lengths.
    """
    if len(judge) != len(verifier):
        raise ValueError(
            f"the judge has {len(judge)} values and the verifier {len(verifier)}; give one of each an item"
        )
    pairs = [(a >= threshold, b >= threshold) for a, b in zip(judge, verifier, strict=True) if None not in (a, b)]  # type: ignore[operator]
    n = len(pairs)
    if n == 0:
        return Agreement(None, None, 0)
    rate = sum(a == b for a, b in pairs) / n
    judged, verified = (sum(pair[rater] for pair in pairs) / n for rater in (0, 1))
    chance = judged * verified + (1 - judged) * (1 - verified)
    return Agreement(rate, (rate - chance) / (1 - chance) if chance < 1 else None, n)
