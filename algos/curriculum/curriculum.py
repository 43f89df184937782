"""Which items to roll out next: those that the current model solves sometimes (HY-Embodied-0.5, arXiv:2604.07430).

The paper samples every candidate several times, keeps partial success balanced over four categories, and starts a fresh
set each stage. Numbers and thresholds are not given there. Schemes, all of them one `select` and one `observe`:

* `frontier`, mode `online`: of each category's equal share of the batch, `explore` goes to items never observed,
  `reprobe` to stale ones, and the rest is drawn with weights w = P[pass rate in (low, high) | rewards] ** sharpness.
  The frontier gets at most ceil(sum w) places: what it lacks goes to exploration. Unseen items are drawn by the same
  weights, with the probability that the observed items of their task and level have on average. The posterior does
  not know that an item was just trained on, so an item that was selected rests (weight * RESTING) until the frontier
  could have been read once: E / places - 1 steps, E = sum of P over the category. So it is read in passes, not drilled.
* `frontier`, mode `stage`, as in the paper: probe candidates, keep partial success, train, start afresh. Stage s = 0,
  1, ...: (1) the candidates, balanced over the categories and least recently probed first, are rolled out once each (a
  group is several samples); (2) those with partial success (`partial_success` of their group) are kept, balanced and
  at most `stage_size`; (3) they are read in `stage_epochs` shuffled passes. Then s + 1, by the newer model.
* `uniform`: every item alike, in shuffled passes. `dynamic`: uniform, and groups without signal are replaced (DAPO,
  arXiv:2503.14476, section 3.2). `difficulty_pools`: fixed shares from an easy, a normal and a hard pool (prime-rl).
* Schemes of one's own weight the items (`algos.curriculum.own`).

A selection is a function of (seed, step, round) and the items' columns, so a resumed run selects what the unbroken one
did. Pinned items come first in every scheme; retired items and items whose result is still out never come.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from algos.curriculum.draws import ALL, Selection, WeightedDraw, Weights, balanced_places, by_weight, evenly
from algos.curriculum.frontier import Frontier
from algos.curriculum.items import BANDS, Array, Items, Observation, check_rewards, observe, parts_of
from algos.curriculum.options import CurriculumOptions
from algos.curriculum.own import ItemWeights, make_scheme, own_weights
from algos.curriculum.posterior import partial_success

ASKED = np.iinfo(np.int32).max
"""In place of how often items were selected: they are not to be."""


class Curriculum:
    """Items of a pool, the scheme that selects from them, and what their rewards taught."""

    def __init__(
        self,
        options: CurriculumOptions,
        seed: int,
        num_categories: int,
        items: Items | None = None,
        progress: StageProgress | None = None,
    ) -> None:
        self.options, self.seed, self.num_categories = options, seed, num_categories
        self.items = items or Items()
        self.progress = progress or StageProgress()
        self._index()

    def add(self, categories: Array, cells: Array | None = None) -> None:
        """Append unseen items with these category codes, and codes of their task and level (None: one a category).

        ValueError for a category outside [0, num_categories).
        """
        if len(categories) and not 0 <= np.min(categories) <= np.max(categories) < self.num_categories:
            raise ValueError(f"category codes must be in [0, {self.num_categories}), got {np.unique(categories)}")
        self.items.append(categories, categories if cells is None else cells, self.options)
        self._index()

    def _index(self) -> None:
        """What follows from the columns: which items may be selected, the number in each band, the frontier's sums."""
        items, options = self.items, self.options
        self._free = ~(items.retired | items.pending)
        self.band_counts = np.zeros((self.num_categories, len(BANDS)), np.int64)
        """Items of each category in each band, [C, 5], retired ones left out."""
        self._frontier = None
        for numbers in parts_of(len(items)):
            self._count(numbers, 1)
        if options.mode == "online" and options.scheme == "frontier":
            self._frontier = Frontier(items, self._free, options, self.num_categories)

    def _count(self, numbers: Array, sign: int) -> None:
        active = numbers[~self.items.retired[numbers]]
        np.add.at(self.band_counts, (self.items.category[active], self.items.band[active]), sign)
        if self._frontier:
            self._frontier.seen.count(self.items, numbers, sign)

    @contextmanager
    def _changing(self, numbers: Array) -> Iterator[None]:
        """Around every change to items: what follows from their columns is brought up to date."""
        self._count(numbers, -1)
        yield
        self._count(numbers, 1)
        self._set_free(numbers, ~(self.items.retired[numbers] | self.items.pending[numbers]))

    def _set_free(self, numbers: Array, value: Array | bool) -> None:
        self._free[numbers] = value
        if self._frontier:
            self._frontier.update(numbers)

    @contextmanager
    def _without(self, numbers: Array) -> Iterator[None]:
        """None of these items is drawn meanwhile."""
        numbers = numbers[self._free[numbers]]
        self._set_free(numbers, False)
        try:
            yield
        finally:
            self._set_free(numbers, True)

    def select(self, step: int, version: int, places: Array | None = None, round_: int = 0) -> Selection:
        """The batch of a step, or a refill of `places` [C] items of each category; its items are pending from now on.

        `version` is the current weight version: what is stale depends on it. ValueError when no item is left to select.
        """
        rng = np.random.default_rng((self.seed, step, round_))
        total = self.options.batch_size if places is None else int(np.sum(places))
        with self._without(np.flatnonzero(self.items.selected_step == step) if round_ else np.empty(0, np.int64)):
            trains = self.options.mode == "online" or self._stage_trains(step, round_)
            pinned = list(self._pinned(total)) if trains and round_ == 0 else []
            taken = np.concatenate([np.empty(0, np.int64), *(draw.numbers for draw in pinned)])
            with self._without(taken):
                draws = [*pinned, *self._draws(rng, step, version, places, total, taken)]
        selection = Selection(step, round_, tuple(draw for draw in draws if len(draw.numbers)), trains)
        numbers = selection.numbers
        if not len(numbers) and trains and round_ == 0:
            raise ValueError(
                f"no item is left to select: {len(self.items)} items, {int(self.items.retired.sum())} retired, "
                f"{int(self.items.pending.sum())} waiting for a result; add items or take some back"
            )
        with self._changing(numbers):
            self.items.pending[numbers] = True
            self.items.selected_step[numbers] = step
            self.items.selections[numbers] += 1
        return selection

    def _stage_trains(self, step: int, round_: int) -> bool:
        """Whether stage mode trains on what it reads now. A refill begins no new phase: it takes what this one has."""
        return self.progress.training if round_ else settle(self, step, self._free)

    def refill_places(self, observation: Observation) -> Array:
        """Places to refill, [C]: groups without signal of each category; none for schemes that do not refill."""
        lost = observation.numbers[~observation.signal] if self.options.refills else np.empty(0, np.int64)
        return np.bincount(self.items.category[lost], minlength=self.num_categories)

    def observe(self, step: int, numbers: Array, rewards: Array, versions: Array) -> Observation:
        """Take the rewards float [n, G] of one group an item, NaN where the call failed, sampled at `versions` [n].

        ValueError for rewards outside [0, 1] and for items that are not in the pool or come twice.
        """
        numbers, versions = np.asarray(numbers, np.int64), np.asarray(versions, np.int64)
        rewards = np.asarray(rewards, np.float64)
        check_rewards(numbers, rewards, len(self.items))
        with self._changing(numbers):
            return observe(self.items, step, numbers, rewards, versions, self.options)

    def release(self, numbers: Array) -> None:
        """Items whose rollouts will never come may be selected again."""
        with self._changing(numbers):
            self.items.pending[numbers] = False

    def pin(self, numbers: Array, value: bool = True) -> None:
        """Put items first in every batch, or no longer."""
        self.items.pinned[numbers] = value

    def retire(self, numbers: Array, value: bool = True) -> None:
        """Never select items again, or take them back."""
        with self._changing(numbers):
            self.items.retired[numbers] = value

    def _pinned(self, total: int) -> Iterator[WeightedDraw]:
        """Pinned items, those selected longest ago first."""
        rows = np.flatnonzero(self.items.pinned & self._free)
        count = min(len(rows), math.ceil(self.options.pinned_share * total))
        rows = rows[np.argsort(self.items.selected_step[rows], kind="stable")][:count]
        if count:
            yield WeightedDraw("pinned", ALL, rows, np.ones(count), count, float(count))

    def _draws(
        self,
        rng: np.random.Generator,
        step: int,
        version: int,
        places: Array | None,
        total: int,
        taken: Array,
    ) -> Iterator[WeightedDraw]:
        """What the scheme adds to the pinned items `taken`; `places` [C] is given for a refill."""
        left = total - len(taken)
        if self.options.mode == "stage":
            numbers, reason, size = next_items(self, left, self._free)
            yield WeightedDraw(reason, ALL, numbers, np.ones(len(numbers)), size, float(size))
        elif self._frontier:
            if places is None:
                places = self._places(step, total, taken, self._frontier.num_free())
            yield from self._frontier.draws(rng, step, version, places)
        elif self.options.scheme == "difficulty_pools":
            yield from self._pools(rng, left)
        elif self.options.scheme in self.options.own:
            numbers = np.flatnonzero(self._free)
            weights = own_weights(self._own, self.items, numbers, step, version)
            draw = by_weight(rng, "own", ALL, Weights.of(weights), left, int(np.count_nonzero(weights)))
            yield replace(draw, numbers=numbers[draw.numbers])
        else:
            yield from self._passes(rng, left)

    @cached_property
    def _own(self) -> ItemWeights:
        """The scheme of one's own."""
        return make_scheme(self.options.own[self.options.scheme])

    def _places(self, step: int, total: int, taken: Array, available: Array) -> Array:
        """Balanced places [C] less those that pinned items have taken."""
        had = np.bincount(self.items.category[taken], minlength=self.num_categories)
        places = np.maximum(balanced_places(total, available + had, step) - had, 0)
        while places.sum() > total - len(taken):
            places[np.argmax(places)] -= 1
        return places

    def _passes(self, rng: np.random.Generator, count: int) -> Iterator[WeightedDraw]:
        """`count` of the items, those that were selected least often first and by chance among them."""
        times = np.where(self._free, self.items.selections, ASKED)
        while count > 0 and (fewest := times.min(initial=ASKED)) < ASKED:
            draw = evenly(rng, "uniform", ALL, Weights.of(times == fewest), count)
            yield draw
            count -= len(draw.numbers)
            times[times == fewest] = ASKED

    def _pools(self, rng: np.random.Generator, total: int) -> Iterator[WeightedDraw]:
        """Fixed shares of the easy and the hard pool; what they cannot fill comes from the normal one, and back."""
        items, options = self.items, self.options
        seen = self._free & (items.groups > 0)
        easy, hard = seen & (items.last_mean >= options.easy_border), seen & (items.last_mean <= options.hard_border)
        pools = {"easy": easy, "normal": self._free & ~easy & ~hard, "hard": hard}
        shares = np.array([options.easy_fraction, options.easy_fraction + options.hard_fraction])
        num_easy, upto = np.floor(shares * total + rng.random()).astype(int)
        sizes = np.array([np.count_nonzero(flags) for flags in pools.values()])
        counts = np.minimum([num_easy, total - upto, upto - num_easy], sizes)
        for pool in (1, 0, 2):
            counts[pool] += min(total - counts.sum(), sizes[pool] - counts[pool])
        for (reason, flags), count in zip(pools.items(), counts.tolist(), strict=True):
            yield evenly(rng, reason, ALL, Weights.of(flags), count)


@dataclass
class StageProgress:
    """Where stage mode is; with the items' columns, all that a resumed run needs."""

    stage: int = -1
    training: bool = False
    """Whether the kept items are being read; else the candidates."""
    issued: int = 0
    """Entries of the phase's order that were handed out or passed over."""
    started_step: int = 0
    """Step at which the candidates' probe began."""
    _order: tuple[tuple[int, bool, int], Array] | None = field(default=None, repr=False, compare=False)

    def state(self) -> dict[str, int]:
        """The progress as plain numbers."""
        return {name: int(getattr(self, name)) for name in ("stage", "training", "issued", "started_step")}

    @classmethod
    def from_state(cls, state: dict[str, int]) -> StageProgress:
        """The progress that `state` wrote."""
        return cls(state["stage"], bool(state["training"]), state["issued"], state["started_step"])


def _order(curriculum: Curriculum, epoch: int) -> Array:
    """Rows of the current phase in the shuffled order of one pass; kept in memory, it follows from seed and columns."""
    progress = curriculum.progress
    key = (progress.stage, progress.training, epoch)
    if progress._order is None or progress._order[0] != key:
        column = curriculum.items.kept_stage if progress.training else curriculum.items.candidate_stage
        rng = np.random.default_rng((curriculum.seed, progress.stage, 1 + progress.training, epoch))
        progress._order = key, rng.permutation(np.flatnonzero(column == progress.stage))
    return progress._order[1]


def settle(curriculum: Curriculum, step: int, free: Array) -> bool:
    """Enter the next phase if this one is used up and its results are there; whether what is read now is trained on.

    ValueError when there is nothing to probe or to keep.
    """
    progress = curriculum.progress
    while progress.stage < 0 or progress.issued >= _passes(curriculum) * len(_order(curriculum, 0)):
        if progress.stage < 0 or progress.training:
            _begin(curriculum, step, free)
        elif curriculum.items.pending[_order(curriculum, 0)].any():
            break
        else:
            _keep(curriculum)
    return progress.training


def _begin(curriculum: Curriculum, step: int, free: Array) -> None:
    """Choose the candidates of the next stage. ValueError without any."""
    items, progress = curriculum.items, curriculum.progress
    rows = np.flatnonzero(free)
    if not len(rows):
        raise ValueError("no candidate is left for a stage: every item is retired or waiting for a result; add items")
    total = curriculum.options.stage_candidates or len(rows)
    chosen = _balanced(curriculum, rows, min(total, len(rows)), items.candidate_stage[rows])
    progress.stage, progress.training, progress.issued, progress.started_step = progress.stage + 1, False, 0, step
    items.candidate_stage[chosen] = progress.stage


def _passes(curriculum: Curriculum) -> int:
    return curriculum.options.stage_epochs if curriculum.progress.training else 1


def _balanced(curriculum: Curriculum, rows: Array, total: int, age: Array) -> Array:
    """At most `total` rows, equally many of each category; within it the lowest `age` first, then by chance."""
    category = curriculum.items.category[rows]
    places = balanced_places(total, np.bincount(category, minlength=curriculum.num_categories))
    rng = np.random.default_rng((curriculum.seed, curriculum.progress.stage + 1, 0, len(rows)))
    order = np.lexsort((rng.random(len(rows)), age, category))
    starts = np.searchsorted(category[order], np.arange(curriculum.num_categories))
    return np.concatenate([rows[order[s : s + count]] for s, count in zip(starts, places, strict=True)])


def _keep(curriculum: Curriculum) -> None:
    """End the probe: keep the candidates with partial success. ValueError if every item was probed since one was."""
    items, progress, options = curriculum.items, curriculum.progress, curriculum.options
    candidates = np.flatnonzero((items.candidate_stage == progress.stage) & ~items.retired)
    rows = candidates[(items.observed_step[candidates] >= progress.started_step) & (items.groups[candidates] > 0)]
    mean, spread = items.last_mean[rows].astype(np.float64), items.last_spread[rows].astype(np.float64)
    rows = rows[partial_success(mean, spread, options.low, options.high, options.min_spread)]
    active = np.flatnonzero(~items.retired)
    if not len(rows) and items.candidate_stage[active].min(initial=progress.stage) > items.kept_stage.max(initial=-1):
        raise ValueError(
            f"stage {progress.stage}: none of {len(active)} items is solved sometimes; add items of other "
            "difficulty, or more rollouts a group"
        )
    rows = _balanced(curriculum, rows, min(options.stage_size, len(rows)), np.zeros(len(rows)))
    items.kept_stage[rows] = progress.stage
    progress.training, progress.issued = True, 0


def next_items(curriculum: Curriculum, count: int, free: Array) -> tuple[Array, str, int]:
    """The next rows of the phase, its name (`probe` or `stage`) and the size of the set that they come from.

    A batch may run over the end of a pass but repeats no item. It is short at the end of a phase and for a set smaller
    than a batch, and empty while a probe waits for its last results. Rows that are not free are passed over.
    """
    progress = curriculum.progress
    taken = np.zeros(len(free), np.bool_)
    found: list[Array] = [np.empty(0, np.int64)]
    size = len(_order(curriculum, 0))
    while count > 0 and progress.issued < _passes(curriculum) * size:
        epoch, start = divmod(progress.issued, size)
        rows = _order(curriculum, epoch)[start : start + count]
        repeated = np.flatnonzero(taken[rows])
        rows = rows[: repeated[0]] if len(repeated) else rows
        taken[rows] = True
        progress.issued += len(rows)
        found.append(rows[free[rows]])
        count -= len(found[-1])
        if len(repeated):
            break
    return np.concatenate(found), "stage" if progress.training else "probe", size
