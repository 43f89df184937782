"""Settings of rejection-sampling fine-tuning. The paper (arXiv:2604.07430) gives only the idea and the scale."""

from __future__ import annotations

from dataclasses import dataclass

LEAST_REWARD = 0.5
"""Without `min_reward`, what a correct trace earns at least: half of what is to be had."""


@dataclass(frozen=True)
class RFTOptions:
    """Which sampled traces are kept. Defaults are engineering choices; the rules are described in `algos.rft`."""

    low: float = 0.0
    high: float | None = 1.0
    """Partial success: low < pass rate of the item < high. high null: items that always succeed are kept, too."""
    min_reward: float | None = None
    """A trace is correct with at least this reward; the pass rate counts correct traces. None, for rewards of 0 and 1
    and for graded ones alike: with at least `LEAST_REWARD` and the mean reward of its item."""
    max_tokens: int = 16_384
    """Longer traces are dropped (paper: at most 16,384)."""
    ngram: int = 4
    max_repetition: float = 0.5
    """Largest share of token n-grams of this length that occurred before in the trace."""
    min_judge_score: float | None = None
    """Least score by a judge or teacher; null: none is asked."""
    shingle: int = 3
    """Words of a shingle, the unit that traces are compared by."""
    max_likeness: float = 0.9
    """Traces of an item with a higher Jaccard similarity of shingles are near duplicates; 1 allows all but equal."""
    max_per_item: int = 4
    """Traces kept of an item, the most diverse."""

    def __post_init__(self) -> None:
        """ValueError for settings that cannot work, naming the first."""
        problem = next((text for wrong, text in self._problems() if wrong), None)
        if problem:
            raise ValueError(problem)

    def _problems(self) -> list[tuple[bool, str]]:
        counts = {name: getattr(self, name) for name in ("max_tokens", "ngram", "shingle", "max_per_item")}
        bad_count = next((name for name, value in counts.items() if value < 1), None)
        shares = {name: getattr(self, name) for name in ("max_repetition", "max_likeness")}
        bad_share = next((name for name, value in shares.items() if not 0 <= value <= 1), None)
        high = 1.0 if self.high is None else self.high
        return [
            (
                not 0 <= self.low < high <= 1,
                f"the band ({self.low}, {self.high}) must satisfy 0 <= low < high <= 1; high may be null",
            ),
            (
                self.min_reward is not None and not abs(self.min_reward) < float("inf"),
                f"min_reward is {self.min_reward}; give a finite number, or null for the mean of the item",
            ),
            (bad_count is not None, f"{bad_count} is {counts.get(bad_count or '')}; it must be at least 1"),
            (bad_share is not None, f"{bad_share} is {shares.get(bad_share or '')}; it must be in [0, 1]"),
            (
                self.min_judge_score is not None and not abs(self.min_judge_score) < float("inf"),
                f"min_judge_score is {self.min_judge_score}; give a finite number, or null for no judge",
            ),
        ]
