"""Whose turn it is in joint training, as a pure function of the turns done.

A turn is one batch of GRPO, or one block of steps of RPRO. Letters: d_p turns done of part p, w_p its weight (its
number of turns, or the configured ratio). Part p is a_p = d_p - (w_p / w_q) d_q turns ahead of its share.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

Priority = Literal["share", "grpo", "rpro"]

PARTS = ("grpo", "rpro")

Done = Mapping[str, int]
"""Turns done of every part."""


def other(part: str) -> str:
    """The other one of two parts."""
    return PARTS[1 - PARTS.index(part)]


class Schedule:
    """Turns of a run: of one part alone, or of both, interleaved or one after the other."""

    def __init__(
        self,
        turns: Mapping[str, int],
        *,
        ratio: tuple[float, float] | None = None,
        first: str | None = None,
        lead: int = 0,
    ) -> None:
        """`first`: that part does all its turns before the other begins; None: interleaved.

        `lead`: turns of GRPO before the first of RPRO, where they are interleaved.
        """
        self.turns = dict(turns)
        self.first = first
        self.lead = min(lead, turns.get("grpo", 0)) if first is None and turns.get("rpro") else 0
        shares = {part: max(1, count - (self.lead if part == "grpo" else 0)) for part, count in turns.items()}
        self.weights = shares if ratio is None else dict(zip(PARTS, ratio, strict=True))
        self.stopped: set[str] = set()
        """Parts that do no further turn."""

    @property
    def total(self) -> int:
        """Turns of both parts."""
        return sum(self.turns.values())

    def open_parts(self, done: Done) -> list[str]:
        """Parts that have begun, or may begin now, and are not through: what their workers should prepare."""
        left = [part for part in self.turns if done[part] < self.turns[part] and part not in self.stopped]
        return [self.first] if self.first in left else left

    def next(self, done: Done) -> str | None:
        """The part whose turn it is in the fixed order; None after the last."""
        open_parts = self._after_lead(done)
        return min(open_parts, key=lambda part: self._progress(part, done), default=None)

    def choose(self, done: Done, ready: Collection[str], *, priority: Priority, slack: int) -> str | None:
        """The part to learn from next among those with a batch that is ready; None: wait.

        One that is `slack` turns ahead of its share waits for the other, ready or not. Both cannot be ahead at once, so
        nobody waits forever.
        """
        open_parts = self._after_lead(done)
        allowed = [part for part in open_parts if len(open_parts) == 1 or self.ahead(part, done) < slack]
        candidates = [part for part in allowed if part in ready]
        if priority in candidates:
            return priority
        return min(candidates, key=lambda part: self._progress(part, done), default=None)

    def ahead(self, part: str, done: Done) -> float:
        """Turns that a part is ahead of its share, a_p; negative: behind."""
        counted = dict(done) | {"grpo": done["grpo"] - self.lead}
        return counted[part] - self.weights[part] / self.weights[other(part)] * counted[other(part)]

    def _after_lead(self, done: Done) -> list[str]:
        open_parts = self.open_parts(done)
        waits = "grpo" in open_parts and done["grpo"] < self.lead
        return [part for part in open_parts if not (waits and part == "rpro")]

    def _progress(self, part: str, done: Done) -> tuple[float, int]:
        """Middle of the part's next turn on a scale on which both should be equally far; GRPO first where they are."""
        count = done[part] - (self.lead if part == "grpo" else 0)
        return (count + 0.5) / self.weights[part], int(part != "grpo")
