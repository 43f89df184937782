"""What a curriculum remembers of each item, as columns over the whole pool, and how a group of rewards changes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from algos.curriculum.options import CurriculumOptions
from algos.curriculum.posterior import beta_cdf, decay_factor, has_signal, spread_probability

Array = NDArray[Any]

BANDS = ("unseen", "hard", "frontier", "easy", "flat")
"""Where an item most probably lies: below, inside or above the frontier band; flat is inside it without any spread."""
UNSEEN, HARD, FRONTIER, EASY, FLAT = range(5)

COLUMNS: dict[str, tuple[str, Any]] = {
    "category": ("u1", 0),
    "cell": ("u4", 0),
    "band": ("u1", UNSEEN),
    "pinned": ("?", False),
    "retired": ("?", False),
    "pending": ("?", False),
    "successes": ("f8", 0.0),
    "evidence": ("f8", 0.0),
    "squares": ("f8", 0.0),
    "band_probability": ("f4", 0.0),
    "last_mean": ("f4", 0.0),
    "last_spread": ("f4", 0.0),
    "version": ("i4", -1),
    "observed_step": ("i4", -1),
    "selected_step": ("i4", -1),
    "candidate_stage": ("i4", -1),
    "kept_stage": ("i4", -1),
    "groups": ("i4", 0),
    "rollouts": ("i4", 0),
    "failures": ("i4", 0),
    "selections": ("i4", 0),
}
"""Column -> type and value of a new item. cell: code of its task and level; successes, evidence, squares: the sums S,
N, Q of `algos.curriculum.posterior`; pending: selected, result not there yet; last_*: of the newest group; version:
newest weight version observed; groups, rollouts: scored ones; failures: masked rollouts (failed reward calls);
*_stage: last stage that probed or kept it."""

PSEUDO = 4.0
"""Items whose worth a category's mean has where little is known of a cell."""
PART = 2**18
"""Items that are looked at together where all are: what is made of them meanwhile takes little memory."""
RECORD = np.dtype([(name, kind) for name, (kind, _) in COLUMNS.items()])
"""One item as bytes: what is stored."""


@dataclass(frozen=True)
class Observation:
    """What one batch of groups said, [n] each, in the order of the call."""

    numbers: Array
    version: Array
    """Weight version that produced the group."""
    rollouts: Array
    """Scored rollouts."""
    failures: Array
    """Masked rollouts."""
    mean: Array
    spread: Array
    """Standard deviation of the group's rewards; 0 without any."""
    signal: Array
    """bool: the group's rewards differ enough to learn from."""
    band_before: Array
    band: Array
    band_probability: Array
    successes: Array
    evidence: Array
    """The sums S and N after the group."""

    def flow(self) -> Array:
        """Number of items that went from band i (row) to band j (column), [5, 5]."""
        pairs = self.band_before.astype(np.int64) * len(BANDS) + self.band
        return np.bincount(pairs, minlength=len(BANDS) ** 2).reshape(len(BANDS), len(BANDS))


def parts_of(count: int) -> Iterator[Array]:
    """The numbers 0 to count - 1, PART at a time."""
    return (np.arange(first, min(first + PART, count)) for first in range(0, count, PART))


class Items:
    """Columns [num_items] of the pool; an item is its row number for good."""

    def __init__(self, records: Array | None = None) -> None:
        records = np.empty(0, RECORD) if records is None else records
        self.columns = {name: np.array(records[name]) for name in COLUMNS}

    @classmethod
    def of(cls, count: int, parts: Iterable[Array]) -> Items:
        """The first `count` items of records that come in parts, of which one at a time is held beside the columns."""
        items, filled = cls(), 0
        items.columns = {name: np.zeros(count, kind) for name, (kind, _) in COLUMNS.items()}
        for part in parts:
            for name, column in items.columns.items():
                room = column[filled : filled + len(part)]
                room[:] = part[name][: len(room)]
            filled += len(part)
        return items

    def __len__(self) -> int:
        return len(self.columns["category"])

    def __getattr__(self, name: str) -> Array:
        try:
            return self.__dict__["columns"][name]
        except KeyError:
            raise AttributeError(name) from None

    def append(self, categories: Array, cells: Array, options: CurriculumOptions) -> None:
        """New, unseen items with these category and cell codes; their band probability is the prior's."""
        new = {name: np.full(len(categories), value, kind) for name, (kind, value) in COLUMNS.items()}
        new["category"][:], new["cell"][:] = categories, cells
        new["band_probability"][:] = band_probabilities(np.zeros((3, 1)), options)[1]
        self.columns = {name: np.concatenate([old, new[name]]) for name, old in self.columns.items()}

    def records(self, numbers: Array) -> Array:
        """Rows as records of type RECORD, in the shape of `numbers`."""
        records = np.empty(numbers.shape, RECORD)
        for name, column in self.columns.items():
            records[name] = column[numbers]
        return records


def band_probabilities(sums: Array, options: CurriculumOptions) -> Array:
    """P[pass rate below, inside, above the band], [3, n], from S, N and Q, [3, n]; inside counts only with spread."""
    total, evidence, squares = sums
    a, b = options.prior[0] + total, options.prior[1] + np.maximum(evidence - total, 0.0)
    below, upto = beta_cdf(a, b, options.low), beta_cdf(a, b, options.high)
    spread = spread_probability(total, evidence, squares, options.min_spread)
    return np.stack([below, (upto - below) * spread, 1 - upto])


class Seen:
    """What the observed items of each cell say, and whose each cell is; kept up as items change.

    Probabilities are summed in whole numbers of 1 / UNIT: no order in which items come and go changes such a sum.
    """

    UNIT = 2.0**32

    def __init__(self, items: Items, num_categories: int) -> None:
        self.num_categories, size = num_categories, int(items.cell.max(initial=0)) + 1
        self.owner = np.zeros(size, np.int64)
        """Category of each cell."""
        self.owner[items.cell] = items.category
        self.observed, self.probability = np.zeros((2, size), np.int64)
        """Items observed, and the sum of their band probabilities, [cells]."""
        self.open_unseen, self.open_probability = np.zeros((2, size), np.int64)
        """Items not observed, and the sum of band probabilities of those that were, without the retired, [cells]."""
        for numbers in parts_of(len(items)):
            self.count(items, numbers, 1)

    def count(self, items: Items, numbers: Array, sign: int) -> None:
        """Add items (sign 1), or take them out before they change (-1)."""
        cells, observed, active = items.cell[numbers], items.groups[numbers] > 0, ~items.retired[numbers]
        units = np.rint(items.band_probability[numbers] * self.UNIT).astype(np.int64) * observed
        np.add.at(self.observed, cells, sign * observed)
        np.add.at(self.probability, cells, sign * units)
        np.add.at(self.open_unseen, cells, sign * (active & ~observed))
        np.add.at(self.open_probability, cells, sign * units * active)

    def promised(self, options: CurriculumOptions) -> Array:
        """Probability that an unseen item of each cell lies in the frontier, float64 [cells].

        The mean of the band probabilities of the cell's n observed items, drawn to that of its category, and that to
        the prior's, as if PSEUDO items more had that mean: p_cell = (sum_i p_i + PSEUDO p_category) / (n + PSEUDO).
        """
        prior = float(band_probabilities(np.zeros((3, 1)), options)[1][0])
        sums, counts = self.probability / self.UNIT, self.observed
        known, seen = self.by_category(sums), self.by_category(counts)
        category = (known + PSEUDO * prior) / (seen + PSEUDO)
        return (sums + PSEUDO * category[self.owner]) / (counts + PSEUDO)

    def expected(self, promise: Array) -> Array:
        """Items of each category that lie in the frontier, float64 [C], with what unseen ones of a cell promise."""
        return self.by_category(self.open_probability / self.UNIT + self.open_unseen * promise)

    def by_category(self, amounts: Array) -> Array:
        """Sums over the cells of each category, float64 [C]."""
        return np.bincount(self.owner, amounts, self.num_categories)


def classify(sums: Array, options: CurriculumOptions) -> tuple[Array, Array]:
    """Band code (uint8) and probability of the frontier (float32) of observed items, from S, N and Q, [3, n]."""
    below, inside, above = band_probabilities(sums, options)
    within = 1 - below - above
    code = np.array([HARD, FRONTIER, EASY], np.uint8)[np.argmax([below, within, above], axis=0)]
    code[(code == FRONTIER) & (inside < 0.5 * within)] = FLAT
    return code, inside.astype(np.float32)


def check_rewards(numbers: Array, rewards: Array, num_items: int) -> None:
    """ValueError unless every row is another item of the pool and every reward is in [0, 1] or NaN (masked)."""
    if rewards.ndim != 2 or rewards.shape[0] != len(numbers):
        raise ValueError(f"rewards of shape {rewards.shape} do not fit {len(numbers)} items; give [items, rollouts]")
    if len(np.unique(numbers)) != len(numbers) or (
        len(numbers) and not 0 <= numbers.min() <= numbers.max() < num_items
    ):
        raise ValueError(f"item numbers must be distinct and in [0, {num_items}); give one row of rewards an item")
    outside = rewards[~np.isnan(rewards) & ~((rewards >= 0) & (rewards <= 1))]
    if outside.size:
        raise ValueError(f"a reward is {outside[0]}; the pool takes rewards in [0, 1], NaN for a failed call")


def observe(
    items: Items, step: int, numbers: Array, rewards: Array, versions: Array, options: CurriculumOptions
) -> Observation:
    """Add one group an item to its sums; rewards float [n, G] in [0, 1], NaN where the reward call failed.

    A group without any score leaves the item as it was, no longer pending. The input must pass `check_rewards`.
    """
    scored = ~np.isnan(rewards)
    values, count = np.where(scored, rewards, 0.0), scored.sum(1)
    new = np.stack([values.sum(1), count, np.square(values).sum(1)]).astype(np.float64)
    mean = new[0] / np.maximum(count, 1)
    spread = np.sqrt((np.square(values - mean[:, None]) * scored).sum(1) / np.maximum(count, 1))
    before = items.band[numbers].copy()
    _add_sums(items, numbers[count > 0], new[:, count > 0], versions[count > 0], options)
    some = numbers[count > 0]
    items.last_mean[some], items.last_spread[some] = mean[count > 0], spread[count > 0]
    items.observed_step[some] = step
    items.groups[some] += 1
    items.rollouts[numbers] += count.astype(np.int32)
    items.failures[numbers] += (~scored).sum(1).astype(np.int32)
    items.pending[numbers] = False
    return Observation(
        numbers=numbers,
        version=versions,
        rollouts=count,
        failures=(~scored).sum(1),
        mean=mean,
        spread=spread,
        signal=has_signal(mean, spread, options.min_spread) & (count > 1),
        band_before=before,
        band=items.band[numbers].copy(),
        band_probability=items.band_probability[numbers].copy(),
        successes=items.successes[numbers].copy(),
        evidence=items.evidence[numbers].copy(),
    )


def _add_sums(items: Items, numbers: Array, new: Array, versions: Array, options: CurriculumOptions) -> None:
    """S, N and Q of the items with both parts decayed to the newer of the two versions, and the bands that follow."""
    if not len(numbers):
        return
    newest = np.maximum(items.version[numbers], versions)
    old = np.stack([items.successes[numbers], items.evidence[numbers], items.squares[numbers]])
    sums = old * decay_factor(newest - items.version[numbers], options.half_life)
    sums += new * decay_factor(newest - versions, options.half_life)
    items.successes[numbers], items.evidence[numbers], items.squares[numbers] = sums
    items.version[numbers] = newest
    items.band[numbers], items.band_probability[numbers] = classify(sums, options)
