"""A scheme of one's own: a weight for every item that may be asked, from what its rewards taught."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from algos.curriculum.items import Array, Items
from algos.curriculum.options import OwnScheme
from envs.by_name import OwnCodeError, blamed, calling, needs


class ItemWeights(Protocol):
    """A scheme: made as `CLASS(**settings)`, once in a process; it keeps nothing between two calls."""

    def weights(self, items: Items, rows: Array, step: int, version: int) -> Array:
        """Weights [n] of the items `rows` [n], those that may be asked now: numbers of at least 0, 0 for never.

        The batch is drawn without replacement, each next item with a chance proportional to its weight. `items` has a
        column for everything that is remembered of an item (`algos.curriculum.items.COLUMNS`), as
        `items.last_mean[rows]`; they are read, not changed. `version` is that of the weights that will be asked. The
        same columns must give the same weights, so that a resumed run selects what the unbroken one did.
        """


def make_scheme(own: OwnScheme) -> ItemWeights:
    """What a class makes of its settings. OwnCodeError, with file and line, for what it raises, and where that is no
    scheme."""
    with blamed():
        scheme = calling(own.code, **own.settings)(**own.settings)
    needs(own.code, scheme, "scheme", weights="items, rows, step, version")
    return scheme


def own_weights(scheme: ItemWeights, items: Items, rows: Array, step: int, version: int) -> Array:
    """Weights of a scheme, float64 [n]; OwnCodeError for others than it may give."""
    with blamed():
        given = scheme.weights(items, rows, step, version)
        found = np.array(given, dtype=np.float64)  # a copy: drawing writes into it
        wrong = f"{type(scheme).__name__}.weights gives"
        if found.shape != rows.shape:
            raise OwnCodeError(f"{wrong} {list(found.shape)} for {len(rows)} items; expected a number for each")
        bad = ~(np.isfinite(found) & (found >= 0))
        if bad.any():
            raise OwnCodeError(
                f"{wrong} {found[bad][0]} for item {rows[bad][0]}; expected finite numbers of at least 0"
            )
    return found
