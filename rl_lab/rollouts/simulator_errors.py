"""Errors that a simulator raises: single ones cost an episode or a seed, nothing but errors ends the work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rl_lab.common.errors import RunError

MAX_IN_A_ROW = 20
"""Seeds one after the other on which nothing but an error came out, before the work is given up."""


class ErrorWatch:
    """Watches the seeds of a task and variant in their order."""

    def __init__(self, where: str) -> None:
        self.where = where
        self._seen = self._in_a_row = 0
        self._last = ""

    def see(self, error: str | None) -> None:
        """What became of the next seed: the simulator's error, or None. RunError after too many in a row."""
        self._seen += 1
        self._in_a_row = 0 if error is None else self._in_a_row + 1
        self._last = error or self._last
        if self._in_a_row == MAX_IN_A_ROW:
            self._give_up()

    def end(self) -> None:
        """No seed follows: RunError if all of them gave an error."""
        if self._seen and self._in_a_row == self._seen:
            self._give_up()

    def _give_up(self) -> None:
        raise RunError(
            f"{self.where}: the simulator raised an error on {self._in_a_row} seeds in a row, the last of "
            f"{self._seen}; last: {self._last}"
        )


def name(reason: str) -> str:
    """What kind of refusal or error a line speaks of: its part before a colon, the class of an exception included."""
    return reason.partition(":")[0]


def summary(reasons: Iterable[str]) -> str:
    """How often which kind occurred, the most frequent first."""
    return ", ".join(f"{count} x {kind}" for kind, count in Counter(map(name, reasons)).most_common())
