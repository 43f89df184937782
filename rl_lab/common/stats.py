"""Statistics of reports: intervals and tests of success counts, means over replicates, spread over seeds.

All intervals are two-sided 95 % unless `level` says otherwise, every formula stands beside its source, and nothing
draws from a global random stream. Letters: n items (questions or episodes), R replicates (training runs that differ in
their seed), all on the same items, B resamples. Values are [n, R]; NaN marks one that is missing, because a reward call
failed.

Means over replicates have intervals that cover both: other seeds and other items. Every resample draws items with
replacement, the same for all replicates because all answer the same ones, and replicates with replacement. Of R
replicates only R - 1 differences are free, so that R draws vary too little by the factor (R - 1) / R; the weights of
replicates are stretched around 1 / R by sqrt(R / (R - 1)) to undo it (Rao and Wu 1988). With one replicate the interval
speaks of items alone. Simulated coverage with three replicates of 200 items: 97 of 100 where items and seeds both
matter, 82 where nothing but the seed does (five: 89); few seeds stay few.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtr, stdtrit

Array = NDArray[np.float64]
Z95 = 1.959963984540054
EPISODE_METHODS = {
    "success": "Wilson score interval (Wilson 1927)",
    "paired difference": "Newcombe's square-and-add interval for paired proportions (Newcombe 1998, method 10)",
    "p": "exact two-sided McNemar test on the episodes that changed",
    "steps": "paired bootstrap over episodes, 2,000 resamples, fixed generator, percentiles 2.5 and 97.5",
}
"""How each interval of episodes is computed, for pages and `summary.json`."""


@dataclass(frozen=True)
class Interval:
    """A point estimate and its 95 % interval, in the unit of the estimate."""

    value: float
    low: float
    high: float

    @property
    def standing(self) -> str:
        """Where the interval lies: `above` 0, `below` 0, or `open`."""
        return "above" if self.low > 0 else "below" if self.high < 0 else "open"


def wilson(successes: int, n: int) -> Interval:
    """Success rate with the Wilson score interval, (p + z^2/2n +- z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n).

    By hand: scipy's differs in the last bits, and with it Newcombe's. Unlike the Wald interval it has positive width at
    0 of n and n of n. ValueError unless 0 <= successes <= n, n >= 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"a rate needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    rate, z = successes / n, Z95
    centre = rate + z * z / (2 * n)
    half = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Interval(rate, low, high)


def _correlation(both: int, first_only: int, second_only: int, neither: int) -> float:
    """Newcombe's phi: the correlation of the two outcomes, shrunk by n/2 when positive; 0 where it is undefined."""
    n = both + first_only + second_only + neither
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if margins == 0:
        return 0.0
    product = both * neither - first_only * second_only
    return (max(product - n / 2, 0.0) if product > 0 else product) / math.sqrt(margins)


def paired_difference(both: int, first_only: int, second_only: int, neither: int) -> Interval:
    """Difference of two success rates measured on the same episodes, first minus second (Newcombe 1998, method 10).

    Joins the two Wilson intervals by their distances to the estimates and the correlation phi of the outcomes:
    low = D - sqrt(a^2 - 2 phi a b + b^2) with a = p1 - l1, b = u2 - p2, and mirrored for high. Keeps positive width
    when no episode changed, where a bootstrap would claim certainty. Counts are episodes; ValueError when all are 0.
    """
    n = both + first_only + second_only + neither
    first, second = wilson(both + first_only, n), wilson(both + second_only, n)
    phi = _correlation(both, first_only, second_only, neither)

    def reach(a: float, b: float) -> float:
        return math.sqrt(max(a * a - 2 * phi * a * b + b * b, 0.0))

    difference = first.value - second.value
    low = difference - reach(first.value - first.low, second.high - second.value)
    high = difference + reach(first.high - first.value, second.value - second.low)
    return Interval(difference, max(low, -1.0), min(high, 1.0))


def mcnemar_p(wins: int, losses: int) -> float:
    """Exact two-sided p of `wins` against `losses` under a fair coin, 2 P[X <= min], X ~ Bin(wins + losses, 1/2).

    Episodes with equal outcomes carry no information on the difference; without any change p is 1.
    """
    changed = wins + losses
    tail = sum(math.comb(changed, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**changed)


def bootstrap_mean(values: Sequence[float], resamples: int = 2000, seed: int = 0) -> Interval:
    """Mean with the percentile bootstrap interval; the same values always give the same interval.

    Resampling n values equals drawing multinomial counts over the distinct ones. ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval of a mean needs at least two values, got {len(values)}")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    low, high = np.percentile(draws @ distinct / len(values), [2.5, 97.5])
    return Interval(float(np.mean(values)), float(low), float(high))


RESAMPLES = 2000
SEED = 0
REWARD_METHOD = (
    "mean over replicates of the mean over items; 95 % interval by bootstrap (2,000 resamples, fixed generator, "
    "percentiles 2.5 and 97.5): items are drawn with replacement, the same for all replicates, and replicates "
    "(training seeds) with replacement, their weights stretched by sqrt(R / (R - 1)) so that few replicates do not "
    "look like more (Rao and Wu 1988). With one replicate the interval speaks of items alone; with three it covers 82 "
    "instead of 95 of 100 true values in the worst case, where nothing but the seed matters"
)
"""How each interval of rewards is computed, for pages and `summary.json`."""


@lru_cache(maxsize=32)
def item_weights(n: int) -> Array:
    """Shares of the items in each resample, [B, n]; each row sums to 1."""
    draws = np.random.default_rng([SEED, n]).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    return draws / n


@lru_cache(maxsize=32)
def replicate_weights(count: int) -> Array:
    """Weights of the replicates in each resample, [B, R]; each row sums to 1, single ones may be below 0."""
    if count == 1:
        return np.ones((RESAMPLES, 1))
    draws = np.random.default_rng([SEED, 1, count]).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return 1 / count + math.sqrt(count / (count - 1)) * (draws - 1) / count


def plain_mean(rewards: Array) -> float:
    """Mean over replicates of the mean over their known items. ValueError if a replicate has none."""
    known = ~np.isnan(rewards)
    if not rewards.size or not known.any(0).all():
        raise ValueError("a mean needs at least one known reward of each replicate")
    return float(np.nanmean(rewards, axis=0).mean())


def resampled_means(rewards: Array) -> Array:
    """The same mean in every resample, [B]; a replicate of which a resample draws no known item keeps its own mean."""
    known = ~np.isnan(rewards)
    weights = item_weights(len(rewards))
    sums, shares = weights @ np.where(known, rewards, 0.0), weights @ known
    means = np.where(shares > 0, sums / np.where(shares > 0, shares, 1.0), np.nanmean(rewards, axis=0))
    return (means * replicate_weights(rewards.shape[1])).sum(1)


def percentile_interval(value: float, resamples: Array, level: float = 0.95) -> Interval:
    """The value with the percentiles of its resamples that hold `level` of them; they may be infinite."""
    tail = (1 - level) / 2
    low, high = np.quantile(resamples, [tail, 1 - tail], method="inverted_cdf")
    return Interval(value, float(low), float(high))


def mean_interval(rewards: Array, level: float = 0.95) -> Interval:
    """Mean reward, or mean difference, with its interval; rewards [n, R]."""
    return percentile_interval(plain_mean(rewards), resampled_means(rewards), level)


def pass_at_k(num_samples: int, num_passes: int, k: int) -> float:
    """Chance that k of the samples, drawn without replacement, hold a pass: 1 - C(n - c, k) / C(n, k).

    Its mean over items is unbiased for k fresh samples (Chen et al. 2021). ValueError for more than there are.
    """
    if not 0 <= num_passes <= num_samples or not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples and passes <= samples, got {num_passes} of {num_samples}")
    return 1.0 - math.comb(num_samples - num_passes, k) / math.comb(num_samples, k)


def first_reach(x: Array, y: Array, targets: Array) -> Array:
    """Where each curve first reaches its target, linear between points; infinite where it never does.

    x [G] rising, y [B, G], targets [B] -> [B].
    """
    reached = y >= targets[:, None]
    at = reached.argmax(1)
    before = np.maximum(at - 1, 0)
    rows = np.arange(len(y))
    rise = y[rows, at] - y[rows, before]
    share = np.where(rise > 0, (targets - y[rows, before]) / np.where(rise > 0, rise, 1.0), 1.0)
    place = x[before] + share * (x[at] - x[before])
    return np.where(reached.any(1), np.where(at == 0, x[0], place), np.inf)


def student_interval(values: Sequence[float] | Array, level: float = 0.95, least_error: float = 0.0) -> Interval:
    """Mean of one value a unit, with Student's interval, mean +- t_{(1 + level) / 2, R - 1} s / sqrt(R).

    The standard error is at least `least_error`. ValueError for fewer than two values.
    """
    mean, error = _mean_and_error(values, least_error)
    half = float(stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half)


def student_p(values: Sequence[float] | Array, least_error: float = 0.0) -> float:
    """Two-sided p of a mean of 0 by the same; with an error of 0 it is 1 where no value differs from 0, else 0."""
    mean, error = _mean_and_error(values, least_error)
    if error == 0:
        return float(mean == 0)
    return 2 * float(stdtr(len(values) - 1, -abs(mean) / error))


def _mean_and_error(values: Sequence[float] | Array, least: float) -> tuple[float, float]:
    if len(values) < 2:
        raise ValueError(f"an interval over training seeds needs at least 2 of them, got {len(values)}")
    return float(np.mean(values)), max(least, float(np.std(values, ddof=1)) / math.sqrt(len(values)))


def least_success_error(n: int) -> float:
    """Standard error of a difference in success over n episodes of which none changed: that of one more that was won
    and one more that was lost, sqrt(2) / (n + 2) (Bonett and Price 2012)."""
    return math.sqrt(2) / (n + 2)


def success_difference(differences: Array) -> tuple[Interval, float]:
    """`crossed_difference` of success (1, 0 or -1, or means of such), with `least_success_error`."""
    return crossed_difference(differences, least_success_error(len(differences)))


def crossed_difference(differences: Array, least_error: float = 0.0) -> tuple[Interval, float]:
    """Mean of paired differences [n, R], its 95 % interval and its p.

    Student's over the R seeds' means speaks of other seeds and holds what episodes add by chance, but seeds that agree
    by chance make it a point; Student's over the n episodes' means speaks of other episodes, with an error of at least
    `least_error`. Of both the wider interval and the larger p (F1 and F2, Clark 1973). Simulated coverage for success
    in 100 episodes is 94 to 99 % with 2 to 8 seeds, where both matter or one alone; Student's over seeds alone has 57 %
    with two seeds at the ceiling. ValueError for fewer than two seeds or episodes.
    """
    seeds, episodes = differences.mean(0), differences.mean(1)
    found = (student_interval(seeds), student_interval(episodes, least_error=least_error))
    return max(found, key=lambda one: one.high - one.low), max(student_p(seeds), student_p(episodes, least_error))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values that hold together (Holm 1979): of m, the k-th smallest times m - k + 1, none below an earlier one, at
    most 1; in the order given."""
    corrected, largest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(np.argsort(ps, kind="stable").tolist()):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = largest
    return corrected


LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 1000
"""Above so many the question how many seeds are needed is answered with: more than that."""


@dataclass(frozen=True)
class Spread:
    """How much of a difference between two policies comes from the items and how much from the training seeds.

    Standard deviations of the parts of a paired difference, in its unit: D_ir = mu + a_i + b_r + e_ir, crossed random
    effects of item and replicate (Searle, Casella and McCulloch, Variance Components, 1992, section 4.3, without
    replication inside the cells). They say what effect an experiment of a given size can show.
    """

    items: float
    """sigma_a: an item is harder for one policy than for the other, whatever the seed."""
    seeds: float
    """sigma_b: a training seed lifts one policy on all items; the part that no number of items averages out."""
    rest: float
    """sigma_e: what is particular to an item and a seed, sampling of answers included."""

    def standard_error(self, n: int, seeds: int) -> float:
        """SE of the mean difference: sqrt(sigma_a^2 / n + sigma_b^2 / R + sigma_e^2 / (n R))."""
        return math.sqrt(self.items**2 / n + self.seeds**2 / seeds + self.rest**2 / (n * seeds))

    def detectable(self, n: int, seeds: int, level: float = LEVEL, power: float = POWER) -> float:
        """Minimum detectable effect: the difference that a two-sided test at 1 - `level` finds with chance `power`.

        (q_{1 - alpha / 2} + q_power) SE, with quantiles of Student's t with R - 1 degrees of freedom, as few seeds
        leave; with one seed those of the normal distribution, and the effect then speaks of these trained policies.
        """
        ends = np.array([1 - (1 - level) / 2, power])
        quantiles = ndtri(ends) if seeds == 1 else stdtrit(seeds - 1, ends)
        return float(quantiles.sum()) * self.standard_error(n, seeds)

    def seeds_needed(self, effect: float, n: int, level: float = LEVEL, power: float = POWER) -> int | None:
        """Fewest training seeds, at least 2, with which `effect` is detectable; None if it takes over MOST_SEEDS."""
        counts = range(2, MOST_SEEDS + 1)
        place = bisect_left(counts, True, key=lambda count: self.detectable(n, count, level, power) <= effect)
        return counts[place] if place < len(counts) else None


class SuccessSpread(Spread):
    """Of differences in success that are tested as `success_difference` does."""

    def detectable(self, n: int, seeds: int, level: float = LEVEL, power: float = POWER) -> float:
        """The larger of what the tests over seeds and over episodes find with chance `power`."""
        rest, ends = self.rest**2 / (n * seeds), np.array([1 - (1 - level) / 2, power])
        over_seeds = math.sqrt(self.seeds**2 / seeds + rest)
        over_episodes = max(math.sqrt(self.items**2 / n + rest), least_success_error(n))
        errors = ((seeds, over_seeds), (n, over_episodes))
        return max(float(stdtrit(units - 1, ends).sum()) * error for units, error in errors)


def spread(differences: Array) -> Spread:
    """Estimates from differences [n, R] by the method of moments, negative variances set to 0.

    Rows with a missing value (NaN) are left out. ValueError for fewer than two complete items or two replicates: one
    replicate says nothing of how seeds differ.
    """
    known = differences[~np.isnan(differences).any(1)]
    n, seeds = known.shape
    if n < 2 or seeds < 2:
        raise ValueError(f"a spread needs at least 2 items and 2 training seeds, got {n} and {seeds}")
    mean, of_items, of_seeds = known.mean(), known.mean(1), known.mean(0)
    rest = known - of_items[:, None] - of_seeds[None, :] + mean
    by_item = seeds * ((of_items - mean) ** 2).sum() / (n - 1)
    by_seed = n * ((of_seeds - mean) ** 2).sum() / (seeds - 1)
    error = (rest**2).sum() / ((n - 1) * (seeds - 1))
    return Spread(
        items=math.sqrt(max(0.0, by_item - error) / seeds),
        seeds=math.sqrt(max(0.0, by_seed - error) / n),
        rest=math.sqrt(error),
    )
