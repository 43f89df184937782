"""The draws of the scheme `frontier`, from sums over the items of a pool that are kept up as items change.

The items of a category stand in the order of their numbers, in blocks of BLOCK. A selection reads sums of blocks and
the few blocks that it draws from, so that its time hardly grows with the pool. All sums follow from the columns of the
items alone: a resumed run has the same to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from algos.curriculum.draws import BLOCK, WeightedDraw, Weights, by_weight, evenly
from algos.curriculum.items import Array, Items, Seen, parts_of
from algos.curriculum.options import CurriculumOptions
from algos.curriculum.posterior import Floats

RESTING = 1e-6
"""Factor of the weight of an item in its cooldown: it is drawn when nothing else is left."""


def frontier_weight(band_probability: Array, sharpness: float) -> Floats:
    """Band probability ** sharpness; the floor lets a category without any frontier still fill its places."""
    return np.maximum(np.asarray(band_probability, np.float64) ** sharpness, 1e-12)


class BlockSums:
    """Values of places and their sums over blocks; a value that changes costs the sum of its block."""

    def __init__(self, size: int, kind: type) -> None:
        self.values: Array = np.zeros(size, kind)
        self.sums: Array = self.values.reshape(-1, BLOCK).sum(1)

    def put(self, places: Array, values: Array) -> None:
        """Set the values of places."""
        blocks = np.unique(places[self.values[places] != values] // BLOCK)
        self.values[places] = values
        self.sums[blocks] = self.values.reshape(-1, BLOCK)[blocks].sum(1)

    @property
    def weights(self) -> Weights:
        """The values, to draw by."""
        return Weights.of(self.values, self.sums)


class CellCounts:
    """How many places of each block belong to each cell, of those that were added."""

    def __init__(self, cells: Array, num_cells: int) -> None:
        """The cells of all places; none is added yet."""
        ordered = np.sort(cells.reshape(-1, BLOCK), axis=1)
        first = np.ones(ordered.shape, np.bool_)
        first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
        starts = np.flatnonzero(first)
        self._num_cells, self._cells = num_cells, ordered[first]
        self._keys = starts // BLOCK * num_cells + self._cells
        self._firsts = np.flatnonzero(starts % BLOCK == 0)
        self._counts = np.zeros(len(starts), np.int64)

    def add(self, places: Array, cells: Array, amounts: Array) -> None:
        """Add places of these cells (amount 1), or take them away (-1)."""
        np.add.at(self._counts, np.searchsorted(self._keys, places // BLOCK * self._num_cells + cells), amounts)

    def sums(self, worth: Floats) -> Floats:
        """Sums over the blocks of what the added places are worth by their cells, float64 [blocks]."""
        amounts = worth[self._cells] * self._counts
        return np.add.reduceat(amounts, self._firsts) if len(amounts) else amounts


class Members:
    """The items of one category that can be drawn: as unseen, as stale, and by their weight in the frontier."""

    def __init__(self, numbers: Array, cells: Array, num_cells: int) -> None:
        """Numbers of the category's items in rising order, and the cells of the whole pool; none can be drawn yet."""
        padding = np.repeat(numbers[-1:], -len(numbers) % BLOCK)
        self.numbers = np.concatenate([numbers, padding]).astype(np.uint32)
        self.unseen, self.stale = BlockSums(len(self.numbers), np.bool_), BlockSums(len(self.numbers), np.bool_)
        self.weights = BlockSums(len(self.numbers), np.float64)
        self.num_seen = 0
        """Items with a weight."""
        self._cells, self._unseen_of_cell = cells, CellCounts(cells[self.numbers], num_cells)
        self.rest_from = 0
        """Items selected at this step or later rest."""

    def put(self, numbers: Array, unseen: Array, stale: Array, weights: Floats) -> None:
        """What can be drawn now of some of the items."""
        places = np.searchsorted(self.numbers, numbers.astype(np.uint32))
        turned = np.flatnonzero(self.unseen.values[places] != unseen)
        amounts = np.where(unseen[turned], 1, -1)
        self._unseen_of_cell.add(places[turned], self._cells[numbers[turned]], amounts)
        self.num_seen += int(np.count_nonzero(weights) - np.count_nonzero(self.weights.values[places]))
        self.unseen.put(places, unseen)
        self.stale.put(places, stale)
        self.weights.put(places, weights)

    @property
    def num_free(self) -> int:
        """Items that can be drawn."""
        return int(self.unseen.sums.sum()) + self.num_seen

    def unseen_weights(self, worth: Floats) -> Weights:
        """Unseen items by the worth of their cells, float64 [cells]."""

        def at(places: Array) -> Floats:
            cells = self._cells[self.numbers.take(places, mode="clip")]
            return worth[cells] * self.unseen.weights.at(places)

        return Weights(self._unseen_of_cell.sums(worth), at)

    def draws(
        self, rng: np.random.Generator, category: int, worth: Floats, counts: tuple[int, int, int], rest: int
    ) -> Iterator[WeightedDraw]:
        """Places for unseen, stale and frontier items, filled."""
        num_unseen, num_stale, num_frontier = counts
        unseen = self.unseen_weights(worth)
        yield by_weight(rng, "unseen", category, unseen, num_unseen, int(self.unseen.sums.sum()))
        stale = evenly(rng, "stale", category, self.stale.weights, num_stale)
        yield stale
        kept = self.weights.values[stale.numbers]
        self.weights.put(stale.numbers, np.zeros(len(kept)))
        candidates = self.num_seen - len(kept)
        frontier = by_weight(rng, "frontier", category, self.weights.weights, num_frontier, candidates, rest)
        self.weights.put(stale.numbers, kept)
        yield frontier


class Frontier:
    """Exploration, re-probing and the frontier of each category; see `algos.curriculum.curriculum`."""

    def __init__(self, items: Items, free: Array, options: CurriculumOptions, num_categories: int) -> None:
        """`free` [num_items] are the items that can be drawn; `update` hears of changes of them and of columns."""
        self._items, self._free, self._options = items, free, options
        self.seen = Seen(items, num_categories)
        self._members = [
            Members(np.flatnonzero(items.category == code), items.cell, len(self.seen.owner))
            for code in range(num_categories)
        ]
        self._stale_before = max(int(items.version.max(initial=-1)) - options.stale_after, 0)
        step = int(items.selected_step.max(initial=-1)) + 1
        rest_from = np.maximum(step - self._rests(self.seen.promised(options)), 0)
        for members, new in zip(self._members, rest_from.tolist(), strict=True):
            members.rest_from = new
        for numbers in parts_of(len(items)):
            self.update(numbers)

    def update(self, numbers: Array) -> None:
        """Columns of these items changed, or whether they can be drawn, or when they rest or are stale."""
        items, categories = self._items, self._items.category[numbers]
        for category in np.unique(categories).tolist():
            members, mine = self._members[category], np.unique(numbers[categories == category])
            able, observed = self._free[mine], items.groups[mine] > 0
            seen, rests = able & observed, items.selected_step[mine] >= members.rest_from
            weights = frontier_weight(items.band_probability[mine], self._options.sharpness) * seen
            weights[rests] *= RESTING
            stale = seen & ~rests & (items.version[mine] < self._stale_before)
            members.put(mine, able & ~observed, stale, weights)

    def num_free(self) -> Array:
        """Items of each category that can be drawn, int64 [C]."""
        return np.array([members.num_free for members in self._members])

    def draws(self, rng: np.random.Generator, step: int, version: int, places: Array) -> Iterator[WeightedDraw]:
        """What fills the places [C] of each category."""
        promise = self.seen.promised(self._options)
        rests = self._rests(promise)
        self._move(np.maximum(step - rests, 0), max(version - self._options.stale_after, 0))
        worth = frontier_weight(promise, self._options.sharpness)
        for category in np.flatnonzero(places).tolist():
            members = self._members[category]
            sizes = int(members.unseen.sums.sum()), int(members.stale.sums.sum()), members.num_seen
            trusted = float(members.weights.sums.sum())
            counts = self._shares(rng, int(places[category]), sizes, trusted)
            for draw in members.draws(rng, category, worth, counts, int(rests[category])):
                yield replace(draw, numbers=members.numbers[draw.numbers].astype(np.int64))

    def _rests(self, promise: Floats) -> Array:
        """Steps that the items of each category rest after a selection, int64 [C]."""
        if self._options.cooldown is not None:
            return np.full(len(self._members), self._options.cooldown)
        filled = sum(bool(len(members.numbers)) for members in self._members)
        passes = self.seen.expected(promise) * filled / self._options.batch_size
        return np.maximum(passes.astype(np.int64) - 1, 0)

    def _move(self, rest_from: Array, stale_before: int) -> None:
        """Let items rest that were selected at this step of their category [C] or later, and be stale before a version.

        Whom that concerns is read off two columns of all items, each only where its bounds move.
        """
        turned = [_between(self._items.version, self._stale_before, stale_before)]
        old = np.array([members.rest_from for members in self._members])
        low, high = np.minimum(old, rest_from), np.maximum(old, rest_from)
        moves = low < high
        if moves.any():
            numbers = _between(self._items.selected_step, low[moves].min(), high[moves].max())
            category, selected = self._items.category[numbers], self._items.selected_step[numbers]
            turned.append(numbers[(selected >= low[category]) & (selected < high[category])])
        self._stale_before = stale_before
        for members, new in zip(self._members, rest_from.tolist(), strict=True):
            members.rest_from = new
        for numbers in turned:
            for part in parts_of(len(numbers)):
                self.update(numbers[part])

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
        share = np.array([self._options.explore, self._options.explore + self._options.reprobe])
        explore, upto = np.floor(share * places + rng.random()).astype(int).tolist()
        num_stale = min(upto - explore, stale)
        room = min(places - min(explore, unseen) - num_stale, seen - num_stale)
        num_unseen = min(places - num_stale - min(room, math.ceil(trusted - 0.01)), unseen)
        return num_unseen, num_stale, places - num_stale - num_unseen


def _between(column: Array, one: int, other: int) -> Array:
    """Numbers of the items whose value lies in [low, high), the smaller and the larger of two bounds."""
    low, high = sorted((one, other))
    return np.flatnonzero((column >= low) & (column < high)) if low < high else np.empty(0, np.int64)
