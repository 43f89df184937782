"""The judge of a run as the selection of traces asks it: rows of the rollout store in, scores out."""

from __future__ import annotations

from collections.abc import Sequence

from rewards.judge import MalformedVerdictError
from rewards.reasoning import ReasoningJudge, Trace, reference_text
from rl_lab.errors import RunError
from rl_lab.language.item_files import ItemFile
from rl_lab.language.rollout_store import Row

SILENT = 8
"""If it scores none of at least so many traces, the judge is taken to be out of order and not the traces; of fewer, if
it has not scored any yet and no reply of it was there to be read."""


class TraceJudge:
    """A `Judge` of `rl_lab.language.rft_selection`, over the judge's endpoint."""

    def __init__(self, judge: ReasoningJudge, items: ItemFile) -> None:
        self.judge, self.items = judge, items
        self._rows = items.rows_by_id()
        self._works = False

    def __call__(self, rows: Sequence[Row]) -> list[float | None]:
        """A score in 0..1 for each trace, None where a call failed.

        RunError where the judge is out of order: dropping every trace as unjudged would look like a result.
        """
        scores, failures = self.judge([self._trace(row) for row in rows])
        silent = all(score is None for score in scores)
        replied = any(failure.detail.startswith(MalformedVerdictError.__name__) for failure in failures)
        if silent and (len(rows) >= SILENT or not self._works and not replied):
            raise RunError(
                f"the judge scored none of {len(rows)} traces, the first for: {failures[0].detail}; mend rewards.judge "
                "or its server, and resume"
            )
        self._works |= not silent
        return scores

    def _trace(self, row: Row) -> Trace:
        record = self.items.record(self._rows[row["item"]])
        return Trace(record["prompt"], reference_text(record["answer"], record["solution"]), row["completion"])
