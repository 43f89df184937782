"""Selects stored rollouts for rejection-sampling fine-tuning: any number streams through in bounded memory.

    RFTSelection(run, options, judge).finish() -> RFTSummary

Four passes, with what they found in RFT_FILE of the run folder. Each step or chunk is one transaction, so a selection
that is killed at any moment and started again ends as an unbroken one and counts no candidate twice:

1. read    every candidate becomes a line: reward, length, first rule that it breaks by itself, hash and sketch of its
           text. Then the pass rates of the items, over all steps.
2. judge   candidates of partial-success items that break no rule by themselves get a score. A kill costs the scores of
           one chunk at most.
3. choose  item after item, `algos.rft.select` says why each is dropped.
4. write   each step gets the columns `judge_score`, `kept` and `why_dropped`; KEPT_FILE gets the kept traces, whole.

In memory at a time: CHUNK candidates, the candidates of one item without their texts, some thousand kept traces, or
one step's file while it gets its columns. On disk: about 200 bytes for each candidate, and until the end up to 4 KiB
for each that is compared.
"""

from __future__ import annotations

import itertools
import json
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algos.rft import REASONS, Candidate, RFTOptions, band_reason, bar, candidate, select
from rl_lab.common.errors import UserError
from rl_lab.curriculum.store import connect, transaction
from rl_lab.records.rollouts import KEPT_FILE, KEPT_SCHEMA, RolloutRow, RolloutStore, write_kept

RFT_FILE = "rft.sqlite"
"""Name of the working state in a run directory."""
SELECTION_COLUMNS = ("judge_score", "kept", "why_dropped")
"""What stored rollouts gain: a score or null, whether it was kept, and why not (null for a kept one)."""
CHUNK = 512
"""Rollouts that are read or judged, and items that are chosen from, at a time."""

Tell = Callable[[str, int, int], None]
"""Told the name of a pass, and how many of how many steps or items it has done."""
TraceScorer = Callable[[Sequence[RolloutRow]], Sequence[float | None]]
"""Scores of traces, each a row with the columns JUDGED; None: no score."""
JUDGED = ("step", "item", "group", "sample", "prompt", "completion", "reward")
READ = ("item", "completion", "tokens", "finished", "reward")

_TO_READ, _TO_JUDGE, _TO_WRITE, _DONE = range(4)
"""State of a step."""
_TABLES = """
CREATE TABLE meta (options TEXT NOT NULL, rated INTEGER NOT NULL, chosen_to TEXT);
CREATE TABLE steps (step INTEGER PRIMARY KEY, state INTEGER NOT NULL, first INTEGER, count INTEGER);
CREATE TABLE traces (id INTEGER PRIMARY KEY, item TEXT NOT NULL, reward REAL, own TEXT, num_tokens INTEGER NOT NULL,
    judged INTEGER NOT NULL DEFAULT 0, score REAL, kept INTEGER NOT NULL DEFAULT 0, why TEXT);
CREATE TABLE texts (id INTEGER PRIMARY KEY, digest BLOB NOT NULL, sketch BLOB NOT NULL);
CREATE TABLE items (item TEXT PRIMARY KEY, bar REAL, correct INTEGER NOT NULL, rewarded INTEGER NOT NULL, band TEXT)
    WITHOUT ROWID;
"""
"""Ids of traces follow steps and stored order: those of a step are first .. first + count - 1."""


@dataclass(frozen=True)
class RFTSummary:
    """What became of the candidates of a selection."""

    candidates: int
    kept: int
    items: int
    items_kept: int
    """Items with at least one kept trace."""
    dropped: dict[str, int]
    """By reason, in the order of `algos.rft.REASONS`; those that occurred."""


class RFTSelection:
    """One selection over stored steps, begun or taken up again. One process at a time."""

    def __init__(
        self, run: Path, options: RFTOptions, judge: TraceScorer | None = None, steps: Iterable[int] | None = None
    ) -> None:
        """`steps`: those to choose from, None for all. UserError for a judge without a least score or the reverse, no
        rollouts, steps with the columns, and a selection that was begun with other options or steps."""
        if (judge is None) != (options.min_judge_score is None):
            raise UserError("a judge and min_judge_score go together; give both or neither")
        self.store, self.options, self.judge = RolloutStore(run), options, judge
        self.path, self.kept_path = run / RFT_FILE, run / KEPT_FILE
        wanted = self.store.steps() if steps is None else sorted(set(steps))
        if not self._begun(wanted):
            self._begin(wanted)

    def finish(self, progress: Tell = lambda name, done, total: None) -> RFTSummary:
        """Do all that is left. Calling it again does nothing more. `progress` hears of each step; it may raise to stop
        here and go on another time."""
        with closing(connect(self.path)) as db:
            self._each_step(db, _TO_READ, self._read, "read", progress)
            self._rate_items(db)
            self._each_step(db, _TO_JUDGE, self._judge, "judge", progress)
            self._choose(db, progress)
            self._each_step(db, _TO_WRITE, self._write, "write", progress)
            if not self.kept_path.exists():
                write_kept(self.kept_path, self._kept(db))
            if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'texts'").fetchone():
                db.executescript("DROP TABLE texts; VACUUM;")
            return _summary(db)

    def kept_by_item(self) -> Iterator[tuple[str, int, int]]:
        """Each item with the number of its traces and of those that are kept, of a finished selection."""
        with closing(connect(self.path)) as db:
            yield from db.execute("SELECT item, COUNT(*), SUM(kept) FROM traces GROUP BY item")

    def _each_step(
        self,
        db: sqlite3.Connection,
        state: int,
        work: Callable[[sqlite3.Connection, int], None],
        name: str,
        progress: Tell,
    ) -> None:
        """A pass over the steps that are in this state."""
        steps = _steps(db, state)
        for number, step in enumerate(steps):
            progress(name, number, len(steps))
            work(db, step)

    def _begun(self, wanted: Sequence[int]) -> bool:
        """Whether there is a selection to take up; UserError if it is another one."""
        if not self.path.exists():
            return False
        with closing(connect(self.path)) as db:
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
                return False
            (found,) = db.execute("SELECT options FROM meta").fetchone()
            steps = [step for (step,) in db.execute("SELECT step FROM steps ORDER BY step")]
        if steps != list(wanted):
            raise UserError(
                f"{self.path} is a selection from {len(steps)} steps, {_ends(steps)}, not from these {len(wanted)}, "
                f"{_ends(wanted)}; choose another run folder"
            )
        if json.loads(found) != self.options.model_dump():
            raise UserError(f"{self.path} was begun with other options, {found}; choose another run folder")
        return True

    def _begin(self, steps: Sequence[int]) -> None:
        if not steps:
            raise UserError(f"there are no rollouts in {self.store.folder}; sample some first")
        if self.kept_path.exists():
            raise UserError(f"{self.kept_path} exists but {self.path.name} does not; choose another run folder")
        for step in steps:
            if not self.store.path(step).exists():
                raise UserError(f"step {step} is not stored in {self.store.folder}")
            present = [name for name in SELECTION_COLUMNS if name in self._columns(step)]
            if present:
                raise UserError(f"step {step} has a column {present[0]!r}: its rollouts were selected from before")
        with closing(connect(self.path)) as db, transaction(db):
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO steps VALUES (?, ?, NULL, NULL)", [(step, _TO_READ) for step in steps])
            db.execute("INSERT INTO meta VALUES (?, 0, NULL)", [json.dumps(self.options.model_dump())])

    def _columns(self, step: int) -> list[str]:
        return pq.read_schema(self.store.path(step)).names

    def _batches(self, step: int, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """A step's rollouts, at most CHUNK at a time."""
        with pq.ParquetFile(self.store.path(step)) as file:
            yield from file.iter_batches(CHUNK, columns=list(columns), use_threads=False)

    def _read(self, db: sqlite3.Connection, step: int) -> None:
        """Pass 1 of a step: a line for each candidate."""
        with transaction(db):
            (first,) = db.execute("SELECT COALESCE(MAX(id) + 1, 0) FROM traces").fetchone()
            number = first
            for batch in self._batches(step, READ):
                for item, one in self._candidates(batch, number):
                    line = [one.key, item, one.reward, one.own_reason, one.num_tokens]
                    db.execute("INSERT INTO traces (id, item, reward, own, num_tokens) VALUES (?, ?, ?, ?, ?)", line)
                    if not one.own_reason:
                        db.execute("INSERT INTO texts VALUES (?, ?, ?)", [one.key, one.digest, one.sketch.tobytes()])
                number += batch.num_rows
            db.execute(
                "UPDATE steps SET state = ?, first = ?, count = ? WHERE step = ?",
                [_TO_JUDGE, first, number - first, step],
            )

    def _candidates(self, batch: pa.RecordBatch, first: int) -> Iterator[tuple[str, Candidate]]:
        """Item and candidate of each row; their keys are `first` and so on."""
        column = batch.column("tokens")
        tokens, ends = column.values.to_numpy(zero_copy_only=False), column.offsets.to_numpy()
        others = (batch.column(name).to_pylist() for name in ("item", "completion", "finished", "reward"))
        for place, (item, text, finished, reward) in enumerate(zip(*others, strict=True)):
            own = tokens[ends[place] : ends[place + 1]]
            yield item, candidate(first + place, text, own, finished, reward, self.options)

    def _rate_items(self, db: sqlite3.Connection) -> None:
        """Pass rates over all steps, and which items are no partial success."""
        if db.execute("SELECT rated FROM meta").fetchone()[0]:
            return
        with transaction(db):
            db.execute("CREATE INDEX traces_by_item ON traces (item)")
            db.create_function("bar", 1, lambda mean: bar(mean or 0.0, self.options))
            db.execute(
                "INSERT INTO items SELECT item, bar(AVG(reward)), 0, COUNT(reward), NULL FROM traces GROUP BY item"
            )
            counted = "SELECT COUNT(*) FROM traces WHERE traces.item = items.item AND reward >= items.bar"
            db.execute(f"UPDATE items SET correct = ({counted})")
            db.create_function("band_reason", 2, lambda correct, rewarded: band_reason(correct, rewarded, self.options))
            db.execute("UPDATE items SET band = band_reason(correct, rewarded)")
            db.execute("UPDATE meta SET rated = 1")

    def _judge(self, db: sqlite3.Connection, step: int) -> None:
        """Pass 2 of a step."""
        if self.judge is not None:
            rows = self._to_judge(db, step)
            while chunk := list(itertools.islice(rows, CHUNK)):
                scores = self.judge([row for _, row in chunk])
                if len(scores) != len(chunk):
                    raise ValueError(f"the judge gave {len(scores)} scores for {len(chunk)} traces; give one for each")
                lines = [(_finite(score), number) for (number, _), score in zip(chunk, scores, strict=True)]
                with transaction(db):
                    db.executemany("UPDATE traces SET score = ?, judged = 1 WHERE id = ?", lines)
        with transaction(db):
            db.execute("UPDATE steps SET state = ? WHERE step = ?", [_TO_WRITE, step])

    def _to_judge(self, db: sqlite3.Connection, step: int) -> Iterator[tuple[int, RolloutRow]]:
        """Ids and rows of a step that a judge is asked about and was not yet."""
        first, count = _range(db, step)
        query = (
            "SELECT id FROM traces JOIN items USING (item) "
            "WHERE id >= ? AND id < ? AND own IS NULL AND band IS NULL AND reward >= bar AND NOT judged"
        )
        wanted = {number for (number,) in db.execute(query, [first, first + count])}
        for batch in self._batches(step, JUDGED) if wanted else ():
            for place, row in enumerate(batch.to_pylist(), first):
                if place in wanted:
                    yield place, row
            first += batch.num_rows

    def _choose(self, db: sqlite3.Connection, progress: Tell) -> None:
        """Pass 3: items in the order of their ids."""
        (total,) = db.execute("SELECT COUNT(*) FROM items").fetchone()
        for start in itertools.count(step=CHUNK):
            progress("choose", min(start, total), total)
            (last,) = db.execute("SELECT chosen_to FROM meta").fetchone()
            query = f"SELECT item FROM items WHERE item {'>=' if last is None else '>'} ? ORDER BY item LIMIT ?"
            items = [item for (item,) in db.execute(query, [last or "", CHUNK])]
            if not items:
                return
            with transaction(db):
                for item in items:
                    candidates = list(_stored(db, item))
                    reasons = select(candidates, self.options)
                    lines = [(why is None, why, one.key) for one, why in zip(candidates, reasons, strict=True)]
                    db.executemany("UPDATE traces SET kept = ?, why = ? WHERE id = ?", lines)
                db.execute("UPDATE meta SET chosen_to = ?", [items[-1]])

    def _write(self, db: sqlite3.Connection, step: int) -> None:
        """Pass 4 of a step: its columns, which a killed selection may have written without saying so."""
        if not set(SELECTION_COLUMNS) <= set(self._columns(step)):
            first, count = _range(db, step)
            query = "SELECT score, kept, why FROM traces WHERE id >= ? AND id < ? ORDER BY id"
            lines = db.execute(query, [first, first + count]).fetchall()
            types = (pa.float64(), pa.bool_(), pa.string())
            values = ([line[0] for line in lines], [bool(line[1]) for line in lines], [line[2] for line in lines])
            columns = zip(SELECTION_COLUMNS, map(pa.array, values, types), strict=True)
            self.store.add_columns(step, dict(columns))
        with transaction(db):
            db.execute("UPDATE steps SET state = ? WHERE step = ?", [_DONE, step])

    def _kept(self, db: sqlite3.Connection) -> Iterator[pa.RecordBatch]:
        for step in _steps(db, _DONE):
            for batch in self._batches(step, [*KEPT_SCHEMA.names, "kept"]):
                yield batch.filter(batch.column("kept")).select(KEPT_SCHEMA.names)


def _ends(steps: Sequence[int]) -> str:
    return f"{steps[0]} to {steps[-1]}" if steps else "none"


def _steps(db: sqlite3.Connection, state: int) -> list[int]:
    return [step for (step,) in db.execute("SELECT step FROM steps WHERE state = ? ORDER BY step", [state])]


def _range(db: sqlite3.Connection, step: int) -> tuple[int, int]:
    """First id and number of a step's traces."""
    first, count = db.execute("SELECT first, count FROM steps WHERE step = ?", [step]).fetchone()
    return first, count


def _stored(db: sqlite3.Connection, item: str) -> Iterator[Candidate]:
    """An item's candidates."""
    query = (
        "SELECT id, reward, own, num_tokens, digest, sketch, score FROM traces LEFT JOIN texts USING (id) "
        "WHERE item = ? ORDER BY id"
    )
    for number, reward, own, num_tokens, digest, sketch, score in db.execute(query, [item]):
        yield Candidate(number, reward, own, num_tokens, digest or b"", np.frombuffer(sketch or b"", np.uint64), score)


def _summary(db: sqlite3.Connection) -> RFTSummary:
    counts: dict[str | None, int] = dict(db.execute("SELECT why, COUNT(*) FROM traces GROUP BY why").fetchall())
    (items_kept,) = db.execute("SELECT COUNT(DISTINCT item) FROM traces WHERE kept").fetchone()
    (items,) = db.execute("SELECT COUNT(*) FROM items").fetchone()
    dropped = {reason: counts[reason] for reason in REASONS if reason in counts}
    return RFTSummary(sum(counts.values()), counts.get(None, 0), items, items_kept, dropped)


def _finite(score: Any) -> float | None:
    return float(score) if score is not None and math.isfinite(score) else None
