"""A curriculum scheme of one's own: items whose pass rate is least known, and near one half, come first.

python -m rl_lab.check scheme examples/least_known.py:LeastKnown power=2.0
python -m rl_lab.run examples/least_known.yaml
"""

from __future__ import annotations

from algos.curriculum.items import Array, Items


class LeastKnown:
    """weight = variance of the pass rate's posterior ** power, Beta(1 + S, 1 + N - S) of the rewards so far."""

    def __init__(self, power: float = 1.0) -> None:
        self.power = power

    def weights(self, items: Items, rows: Array, step: int, version: int) -> Array:
        """See `algos.curriculum.own.ItemWeights`."""
        passed, total = 1 + items.successes[rows], 2 + items.evidence[rows]
        mean = passed / total
        return (mean * (1 - mean) / (total + 1)) ** self.power
