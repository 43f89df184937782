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
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from algos.curriculum.draws import ALL, Selection, WeightedDraw, balanced_places, draw_weighted
from algos.curriculum.items import BANDS, Array, Items, Observation, Seen, check_rewards, observe, promised
from algos.curriculum.options import CurriculumOptions
from algos.curriculum.own import ItemWeights, make_scheme, own_weights
from algos.curriculum.posterior import Floats, partial_success

RESTING = 1e-6
"""Factor of the weight of an item in its cooldown: it is drawn when nothing else is left."""


def frontier_weight(band_probability: Array, sharpness: float) -> Floats:
    """Band probability ** sharpness; the floor lets a category without any frontier still fill its places."""
    return np.maximum(np.asarray(band_probability, np.float64) ** sharpness, 1e-12)


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
        """What follows from the columns: rows of each category, weights, number of items in each band."""
        items = self.items
        self._members = [np.flatnonzero(items.category == code) for code in range(self.num_categories)]
        self._seen = Seen(items, self.num_categories)
        self._weights = np.zeros(len(items))
        observed = np.flatnonzero(items.groups > 0)
        self._weights[observed] = self._weight(observed)
        self.band_counts = np.zeros((self.num_categories, len(BANDS)), np.int64)
        """Items of each category in each band, [C, 5], retired ones left out."""
        self._count(np.flatnonzero(~items.retired), 1)

    def _weight(self, numbers: Array) -> Floats:
        return frontier_weight(self.items.band_probability[numbers], self.options.sharpness)

    def _count(self, numbers: Array, sign: int) -> None:
        np.add.at(self.band_counts, (self.items.category[numbers], self.items.band[numbers]), sign)

    def select(self, step: int, version: int, places: Array | None = None, round_: int = 0) -> Selection:
        """The batch of a step, or a refill of `places` [C] items of each category; its items are pending from now on.

        `version` is the current weight version: what is stale depends on it. ValueError when no item is left to select.
        """
        rng = np.random.default_rng((self.seed, step, round_))
        free = ~(self.items.retired | self.items.pending)
        if round_:
            free &= self.items.selected_step != step
        total = self.options.batch_size if places is None else int(np.sum(places))
        trains = self.options.mode == "online" or self._stage_trains(step, free, round_)
        pinned = list(self._pinned(total, free)) if trains and round_ == 0 else []
        taken = np.concatenate([np.empty(0, np.int64), *(draw.numbers for draw in pinned)])
        free[taken] = False
        draws = [*pinned, *self._draws(rng, step, version, places, total, taken, free)]
        selection = Selection(step, round_, tuple(draw for draw in draws if len(draw.numbers)), trains)
        numbers = selection.numbers
        if not len(numbers) and trains and round_ == 0:
            raise ValueError(
                f"no item is left to select: {len(self.items)} items, {int(self.items.retired.sum())} retired, "
                f"{int(self.items.pending.sum())} waiting for a result; add items or take some back"
            )
        self.items.pending[numbers] = True
        self.items.selected_step[numbers] = step
        self.items.selections[numbers] += 1
        return selection

    def _stage_trains(self, step: int, free: Array, round_: int) -> bool:
        """Whether stage mode trains on what it reads now. A refill begins no new phase: it takes what this one has."""
        return self.progress.training if round_ else settle(self, step, free)

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
        active = numbers[~self.items.retired[numbers]]
        self._count(active, -1)
        fresh = numbers[self.items.groups[numbers] == 0]
        observation = observe(self.items, step, numbers, rewards, versions, self.options)
        self._seen.add(self.items, fresh[self.items.groups[fresh] > 0])
        self._count(active, 1)
        seen = numbers[self.items.groups[numbers] > 0]
        self._weights[seen] = self._weight(seen)
        return observation

    def release(self, numbers: Array) -> None:
        """Items whose rollouts will never come may be selected again."""
        self.items.pending[numbers] = False

    def pin(self, numbers: Array, value: bool = True) -> None:
        """Put items first in every batch, or no longer."""
        self.items.pinned[numbers] = value

    def retire(self, numbers: Array, value: bool = True) -> None:
        """Never select items again, or take them back."""
        changed = numbers[self.items.retired[numbers] != value]
        self._count(changed, -1 if value else 1)
        self.items.retired[changed] = value

    def _pinned(self, total: int, free: Array) -> Iterator[WeightedDraw]:
        """Pinned items, those selected longest ago first."""
        rows = np.flatnonzero(self.items.pinned & free)
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
        free: Array,
    ) -> Iterator[WeightedDraw]:
        """What the scheme adds to the pinned items `taken`; `places` [C] is given for a refill."""
        if self.options.mode == "stage":
            numbers, reason, size = next_items(self, total - len(taken), free)
            yield WeightedDraw(reason, ALL, numbers, np.ones(len(numbers)), size, float(size))
        elif self.options.scheme == "frontier":
            if places is None:
                places = self._places(step, total, taken, free)
            yield from self._frontier(rng, step, version, places, free)
        elif self.options.scheme == "difficulty_pools":
            yield from self._pools(rng, total - len(taken), free)
        elif self.options.scheme in self.options.own:
            rows = np.flatnonzero(free)
            weights = own_weights(self._own, self.items, rows, step, version)
            yield self._weighted(rng, "own", ALL, rows, weights, total - len(taken))
        else:
            yield from self._passes(rng, np.flatnonzero(free), total - len(taken))

    @cached_property
    def _own(self) -> ItemWeights:
        """The scheme of one's own."""
        return make_scheme(self.options.own[self.options.scheme])

    def _places(self, step: int, total: int, taken: Array, free: Array) -> Array:
        """Balanced places [C] less those that pinned items have taken."""
        had = np.bincount(self.items.category[taken], minlength=self.num_categories)
        available = np.array([np.count_nonzero(free[rows]) for rows in self._members])
        places = np.maximum(balanced_places(total, available + had, step) - had, 0)
        while places.sum() > total - len(taken):
            places[np.argmax(places)] -= 1
        return places

    def _even(self, rng: np.random.Generator, reason: str, category: int, rows: Array, count: int) -> WeightedDraw:
        """`count` of the rows, or all of them, with equal chances."""
        count = min(count, len(rows))
        numbers = rows[rng.choice(len(rows), count, replace=False)] if count else rows[:0]
        chance = count / max(len(rows), 1)
        return WeightedDraw(reason, category, numbers, np.full(count, chance), len(rows), float(len(rows)))

    def _passes(self, rng: np.random.Generator, rows: Array, count: int) -> Iterator[WeightedDraw]:
        """`count` of the rows, those that were selected least often first and by chance among them."""
        times = self.items.selections[rows]
        while count > 0 and len(rows):
            least = times == times.min()
            draw = self._even(rng, "uniform", ALL, rows[least], count)
            yield draw
            count -= len(draw.numbers)
            rows, times = rows[~least], times[~least]

    def _frontier(
        self, rng: np.random.Generator, step: int, version: int, places: Array, free: Array
    ) -> Iterator[WeightedDraw]:
        """Exploration, re-probing and the frontier of each category; see the top of this file.

        At ten million items a selection is what it takes to read their columns: each is read by category once.
        """
        items, options = self.items, self.options
        everyone = items.groups > 0
        promise = promised(items, self.num_categories, options, self._seen)
        worth = frontier_weight(promise, options.sharpness)
        for category in np.flatnonzero(places).tolist():
            rows = self._members[category]
            observed, able, cells = everyone[rows], free[rows], items.cell[rows].astype(np.intp)
            unseen, seen = able & ~observed, able & observed
            rest = self._rest(rows, observed, cells, promise)
            rests = items.selected_step[rows] >= max(step - rest, 0)
            stale = seen & ~rests & (items.version[rows] < version - options.stale_after)
            weights = self._weights[rows]
            weights *= seen
            weights[np.flatnonzero(rests)] *= RESTING
            sizes = int(np.count_nonzero(unseen)), int(np.count_nonzero(stale)), int(np.count_nonzero(weights))
            counts = self._shares(rng, int(places[category]), sizes, float(weights.sum()))
            yield self._weighted(rng, "unseen", category, rows, worth[cells] * unseen, counts[0])
            reprobed = self._even(rng, "stale", category, np.flatnonzero(stale), counts[1])
            weights[reprobed.numbers] = 0.0
            yield replace(reprobed, numbers=rows[reprobed.numbers])
            yield self._weighted(rng, "frontier", category, rows, weights, counts[2], rest)

    def _rest(self, rows: Array, observed: Array, cells: Array, promise: Floats) -> int:
        """Steps that the items of a category (its rows, which were observed, their cells) rest after a selection."""
        if self.options.cooldown is not None:
            return self.options.cooldown
        probability = self.items.band_probability[rows].astype(np.float64)
        unseen = np.flatnonzero(~observed)
        probability[unseen] = promise[cells[unseen]]
        if self.items.retired.any():
            probability = probability[~self.items.retired[rows]]
        expected = float(probability.sum())
        categories = sum(bool(len(members)) for members in self._members)
        return max(int(expected * categories / self.options.batch_size) - 1, 0)

    def _shares(
        self, rng: np.random.Generator, places: int, sizes: tuple[int, int, int], trusted: float
    ) -> tuple[int, int, int]:
        """Places of a category for exploration, re-probing and the frontier, from the items that each could take.

        One uniform number rounds both shares, so that their sum never exceeds the places. The frontier is trusted with
        the sum of its weights (less what resting items add to it); beyond that it gets places only when nothing is left
        to explore.
        """
        unseen, stale, seen = sizes
        places = min(places, unseen + seen)
        share = np.array([self.options.explore, self.options.explore + self.options.reprobe])
        explore, upto = np.floor(share * places + rng.random()).astype(int).tolist()
        num_stale = min(upto - explore, stale)
        room = min(places - min(explore, unseen) - num_stale, seen - num_stale)
        num_unseen = min(places - num_stale - min(room, math.ceil(trusted - 0.01)), unseen)
        return num_unseen, num_stale, places - num_stale - num_unseen

    def _weighted(
        self,
        rng: np.random.Generator,
        reason: str,
        category: int,
        rows: Array,
        weights: Floats,
        count: int,
        rest: int = 0,
    ) -> WeightedDraw:
        """`count` of the rows by their weights, of which those that cannot be taken are 0."""
        chosen = draw_weighted(rng, weights, count)
        total = float(weights.sum())
        chances = np.minimum(len(chosen) * weights[chosen] / max(total, 1e-300), 1.0)
        return WeightedDraw(reason, category, rows[chosen], chances, int(np.count_nonzero(weights)), total, rest)

    def _pools(self, rng: np.random.Generator, total: int, free: Array) -> Iterator[WeightedDraw]:
        """Fixed shares of the easy and the hard pool; what they cannot fill comes from the normal one, and back."""
        items, options = self.items, self.options
        seen = free & (items.groups > 0)
        easy = np.flatnonzero(seen & (items.last_mean >= options.easy_border))
        hard = np.flatnonzero(seen & (items.last_mean <= options.hard_border))
        middle = (items.last_mean > options.hard_border) & (items.last_mean < options.easy_border)
        normal = np.flatnonzero(free & (middle | (items.groups == 0)))
        shares = np.array([options.easy_fraction, options.easy_fraction + options.hard_fraction])
        num_easy, upto = np.floor(shares * total + rng.random()).astype(int)
        counts = np.minimum([num_easy, total - upto, upto - num_easy], [len(easy), len(normal), len(hard)])
        sizes = np.array([len(easy), len(normal), len(hard)])
        for pool in (1, 0, 2):
            counts[pool] += min(total - counts.sum(), sizes[pool] - counts[pool])
        for reason, rows, count in zip(("easy", "normal", "hard"), (easy, normal, hard), counts, strict=True):
            yield self._even(rng, reason, ALL, rows, int(count))


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
