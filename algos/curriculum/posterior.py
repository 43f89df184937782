"""What the rewards of an item say about it: a decayed Beta posterior of its pass rate and where that lies.

A group of rollouts with rewards r in [0, 1] at weight version v adds to three sums, in which older evidence fades:

    S = sum_k g^(V - v_k) r_k,    N = sum_k g^(V - v_k),    Q = sum_k g^(V - v_k) r_k^2,    g = 2^(-1 / half_life)

with V the newest version observed, so that the order in which groups arrive does not matter. The pass rate is
Beta(a0 + S, b0 + N - S); a dense reward counts as a fractional pass, for which the posterior is of the mean reward and
errs on the wide side (no reward in [0, 1] varies more than a coin). N items are done at once; all arrays are [N].
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

UNIFORM_VARIANCE = 1.0 / 12.0
"""Variance of a uniform reward in [0, 1]: the prior guess of an item's spread, worth one rollout."""
_FRACTION_TERMS = 300
_lgamma = np.frompyfunc(math.lgamma, 1, 1)


def decay_factor(versions: NDArray[np.int64], half_life: float) -> Floats:
    """g^versions = 2^(-versions / half_life): what evidence is worth after so many weight versions."""
    return np.exp2(-np.asarray(versions, dtype=np.float64) / half_life)


def beta_cdf(a: Floats, b: Floats, x: float) -> Floats:
    """P[X <= x] for X ~ Beta(a, b): the regularised incomplete beta function I_x(a, b), absolute error below 1e-9.

    Uses I_x(a, b) = 1 - I_(1-x)(b, a) on the side where the fraction is slow.
    """
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    if x <= 0.0 or x >= 1.0:
        return np.full(a.shape, float(x >= 1.0))
    swap = x >= (a + 1) / (a + b + 2)
    log_front = _log_gamma(a + b) - _log_gamma(a) - _log_gamma(b) + a * math.log(x) + b * math.log1p(-x)
    result = np.empty(a.shape)
    for side, first, second, at in ((~swap, a, b, x), (swap, b, a, 1.0 - x)):
        if side.any():
            tail = np.exp(log_front[side]) * _beta_fraction(first[side], second[side], at) / first[side]
            result[side] = 1 - tail if side is swap else tail
    return np.clip(result, 0.0, 1.0)


def _log_gamma(x: Floats) -> Floats:
    return np.asarray(_lgamma(x), dtype=np.float64)


def _beta_fraction(a: Floats, b: Floats, x: float) -> Floats:
    """Continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's algorithm.

    It converges fast for x < (a + 1) / (a + b + 2); terms of items that have converged stay at 1.
    """
    tiny = 1e-300
    d = 1.0 / np.where(np.abs(1 - (a + b) * x / (a + 1)) < tiny, tiny, 1 - (a + b) * x / (a + 1))
    c, value = np.ones_like(a), d.copy()
    for m in range(1, _FRACTION_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 + term * d
            d = 1.0 / np.where(np.abs(d) < tiny, tiny, d)
            c = 1 + term / c
            c = np.where(np.abs(c) < tiny, tiny, c)
            value *= c * d
        if np.all(np.abs(c * d - 1) < 1e-12):
            break
    return value


def normal_cdf(z: Floats) -> Floats:
    """Standard normal distribution function in Page's approximation (1977), absolute error below 2e-4."""
    return 0.5 * (1 + np.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))


def chi_square_cdf(x: Floats, dof: Floats) -> Floats:
    """P[chi^2_dof <= x] by Wilson and Hilferty (1931): (X / dof)^(1/3) is nearly normal.

    Absolute error below 0.04, and below 0.01 from dof = 3 on.
    """
    spread = 2.0 / (9.0 * dof)
    return normal_cdf((np.cbrt(x / dof) - (1 - spread)) / np.sqrt(spread))


def variance(total: Floats, evidence: Floats, squares: Floats) -> Floats:
    """Decayed variance of the rewards, Q/N - (S/N)^2, at least 0; 0 without evidence."""
    n = np.maximum(evidence, 1e-12)
    return np.maximum(squares / n - (total / n) ** 2, 0.0) * (evidence > 0)


def spread_probability(total: Floats, evidence: Floats, squares: Floats, min_spread: float) -> Floats:
    """Probability that the standard deviation of an item's rewards exceeds `min_spread`.

    Scaled inverse chi-square posterior with one prior rollout of variance 1/12:
    P[sigma > t] = P[chi^2_n < n s^2 / t^2], n = 1 + N, n s^2 = 1/12 + N var. Without evidence it is close to 1.
    """
    if min_spread <= 0.0:
        return np.ones(np.shape(evidence))
    scatter = UNIFORM_VARIANCE + evidence * variance(total, evidence, squares)
    return chi_square_cdf(scatter / min_spread**2, 1.0 + evidence)


def is_binary(mean: Floats, spread: Floats) -> NDArray[np.bool_]:
    """Whether rewards with this mean and standard deviation are all 0 or 1: their variance is then mean (1 - mean)."""
    return np.abs(np.square(spread) - mean * (1 - mean)) < 1e-5


def has_signal(mean: Floats, spread: Floats, min_spread: float) -> NDArray[np.bool_]:
    """Whether a group teaches: binary rewards differ at all, dense ones have a standard deviation above `min_spread`.

    A dense group that is nearly flat would have its noise blown up by the division by its standard deviation.
    """
    return np.where(is_binary(mean, spread), spread > 1e-6, spread > min_spread)


def partial_success(mean: Floats, spread: Floats, low: float, high: float, min_spread: float) -> NDArray[np.bool_]:
    """The paper's filter on one probe: 0 < pass rate < 1 if binary, else a signal and a mean inside (low, high)."""
    inside = is_binary(mean, spread) | ((mean > low) & (mean < high))
    return has_signal(mean, spread, min_spread) & inside
