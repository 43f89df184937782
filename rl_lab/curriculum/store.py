"""The curriculum pool of a run on disk: `pool.sqlite` in its folder, written by the run, read by anybody meanwhile.

Every selection and every batch of results is one transaction: a reader (write-ahead log: it blocks nobody) and a run
resumed after a kill see the pool between two of them. What selection needs is kept in memory as columns and stored as
records of `algos.curriculum.items.RECORD`, CHUNK of them a row; items, history and edits are ordinary tables:

    items          number, id, category, task, reward_type, content: JSON with prompt, answer, image paths, ...
    images         number, place, png: pictures of items that were rolled out
    steps          step, round, time, version, trains,
                   draws: JSON [reason, category, places, candidates, total weight, steps that items rest],
                   bands: JSON counts [category][band] before the selection
    selections     step, round, place in the batch, number, reason, chance: why each item was taken
    observations   what each group said about an item, and its sums after it
    edits          pin, unpin, retire, restore; see `rl_lab.curriculum.edits`
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from algos.curriculum.curriculum import Curriculum, StageProgress
from algos.curriculum.draws import Selection
from algos.curriculum.items import BANDS, RECORD, Array, Items, Observation
from algos.curriculum.options import CurriculumOptions
from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, parse_json
from rl_lab.curriculum.edits import EDITS, Edit, carry_edits, due_edits

POOL_FILE = "pool.sqlite"
FORMAT = 3
CHUNK = 50
"""Records in a row of `chunks`: together they fit in one page of 4096 bytes, so that a changed item costs one page."""
CHUNKS_AT_ONCE = 2000
"""Rows that are read together when a pool is opened, and written when it is made."""
SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE items (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, category TEXT NOT NULL, task TEXT NOT NULL,
  reward_type TEXT NOT NULL, content TEXT NOT NULL);
CREATE TABLE images (number INTEGER, place INTEGER, png BLOB NOT NULL, PRIMARY KEY (number, place));
CREATE TABLE chunks (chunk INTEGER PRIMARY KEY, records BLOB NOT NULL);
CREATE TABLE steps (step INTEGER, round INTEGER, time REAL, version INTEGER, trains INTEGER, draws TEXT, bands TEXT,
  PRIMARY KEY (step, round)) WITHOUT ROWID;
CREATE TABLE selections (step INTEGER, round INTEGER, place INTEGER, number INTEGER, reason TEXT, chance REAL,
  PRIMARY KEY (step, round, number)) WITHOUT ROWID;
CREATE INDEX selections_of ON selections (number, step);
CREATE TABLE observations (number INTEGER, step INTEGER, version INTEGER, rollouts INTEGER, failures INTEGER, mean REAL,
  spread REAL, signal INTEGER, band_before INTEGER, band INTEGER, band_probability REAL, successes REAL, evidence REAL);
CREATE INDEX observations_of ON observations (number, step);
CREATE INDEX observations_at ON observations (step);
{EDITS}
"""


@dataclass(frozen=True)
class PoolItem:
    """An item as it is registered; `content` is whatever JSON the run needs to ask and score it."""

    id: str
    category: str
    task: str = ""
    reward_type: str = ""
    content: dict[str, Any] = field(default_factory=dict)
    """prompt, answer, difficulty, ...; `images`: paths, absolute or relative to the run folder."""

    @property
    def cell(self) -> str:
        """What it shares with the items that promise as much as it does while unseen: task and level."""
        return json.dumps([self.category, self.task, self.content.get("difficulty")], sort_keys=True)


@dataclass(frozen=True)
class Batch:
    """A selection with the items' ids, and the edits that took effect with it."""

    selection: Selection
    ids: list[str]
    edits: list[Edit]

    @property
    def numbers(self) -> Array:
        """Item numbers, int64 [B], in the order of `ids`."""
        return self.selection.numbers


@dataclass(frozen=True)
class Selected:
    """A selection as the pool remembers it."""

    numbers: Array
    """Item numbers, int64 [B], in their order in the batch."""
    trains: bool
    """False for a probe of stage mode."""
    version: int
    """Weight version of the moment."""


def connect(path: Path) -> sqlite3.Connection:
    """A connection for writing; statements outside `transaction` commit by themselves."""
    db = sqlite3.connect(path, timeout=60.0, isolation_level=None)
    # NORMAL loses no commit to a killed process and none of the pool's consistency to a power cut.
    db.executescript("PRAGMA synchronous = NORMAL; PRAGMA wal_autocheckpoint = 8000;")
    return db


@contextmanager
def transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Everything inside is written, or nothing."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:  # SQLite itself takes back what a full disk did not take
            db.execute("ROLLBACK")
        raise


def remove_pool(path: Path) -> None:
    """Delete a pool with the log beside it, if there is one."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


@dataclass(frozen=True)
class PoolMeta:
    """Settings of a pool."""

    format: int
    seed: int
    categories: list[str]
    options: CurriculumOptions
    progress: dict[str, int]
    """Of stage mode."""
    cells: list[str]
    """Category, task and level of each cell's items, as JSON."""


def read_meta(db: sqlite3.Connection, path: Path) -> PoolMeta:
    """Settings of the pool in a file. UserError for another format, and for settings that a pool cannot have."""
    texts = dict(db.execute("SELECT key, value FROM meta"))
    meta = {key: parse_json(value, f"{path}: {key}") for key, value in texts.items()}
    if meta.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {meta.get('format')}, this version reads {FORMAT}; use the one that wrote it"
        )
    return fit(meta, PoolMeta, str(path))


def read_items(db: sqlite3.Connection, path: Path, meta: PoolMeta) -> Items:
    """The columns of all items of the pool in a file. UserError where they are not those of its items."""
    ((count,),) = db.execute("SELECT COUNT(*) FROM items")
    cursor, held = db.execute("SELECT CAST(records AS BLOB) FROM chunks ORDER BY chunk"), 0

    def parts() -> Iterator[Array]:
        nonlocal held
        while rows := cursor.fetchmany(CHUNKS_AT_ONCE):
            blob = b"".join(row[0] for row in rows)
            if len(blob) % RECORD.itemsize:
                raise UserError(f"{path} holds a part of a record; it is no pool, or not whole")
            held += len(blob) // RECORD.itemsize
            yield np.frombuffer(blob, RECORD)

    items = Items.of(count, parts())
    if held != count:
        raise UserError(f"{path} holds {held} records of {count} items; it is no pool, or not whole")
    limits = {"category": len(meta.categories), "cell": len(meta.cells), "band": len(BANDS)}
    for name, size in limits.items():
        if (items.columns[name] >= size).any():
            raise UserError(f"{path} has items of a {name} that is not there; it is no pool, or not whole")
    return items


class PoolStore:
    """The pool of a run that works with it; the only writer besides edits."""

    def __init__(self, path: Path) -> None:
        """Open an existing pool. UserError if there is none."""
        if not path.is_file():
            raise UserError(f"{path} is missing; a run writes it when its curriculum starts")
        self.path, self._db = path, connect(path)
        meta = read_meta(self._db, path)
        self.categories = meta.categories
        self._cells = {key: code for code, key in enumerate(meta.cells)}
        items = read_items(self._db, path, meta)
        progress = StageProgress.from_state(meta.progress)
        self.curriculum = Curriculum(meta.options, meta.seed, len(meta.categories), items, progress)

    @classmethod
    def create(
        cls, path: Path, options: CurriculumOptions, seed: int, categories: Sequence[str], items: Iterable[PoolItem]
    ) -> PoolStore:
        """Write a new pool, whole or not at all. UserError for a taken path, a repeated id or an unknown category."""
        if path.exists():
            raise UserError(f"{path} exists; open it, or start a new run")
        partial = path.with_name(f".{path.name}.partial")
        partial.unlink(missing_ok=True)
        meta = {"format": FORMAT, "seed": seed, "categories": list(categories), "options": options.model_dump()}
        meta |= {"progress": StageProgress().state(), "cells": []}
        with closing(connect(partial)) as db:
            db.executescript(SCHEMA)
            db.executemany("INSERT INTO meta VALUES (?, ?)", [(key, json.dumps(value)) for key, value in meta.items()])
        with closing(cls(partial)) as store:
            store.add(items)
        os.replace(partial, path)
        with closing(connect(path)) as db:
            db.execute("PRAGMA journal_mode = WAL")
        return cls(path)

    def seal(self) -> None:
        """End the pool's life: one file without a log beside it, readable where nothing can be written. Closes it.

        A copy takes the file's place, so that nobody who reads it meanwhile can hold this up.
        """
        self.checkpoint(self.path.parent)
        self.close()
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        """Fold the write-ahead log into the file and let go of it."""
        self._db.close()

    def __len__(self) -> int:
        return len(self.curriculum.items)

    def add(self, items: Iterable[PoolItem]) -> None:
        """Register unseen items, before or during a run. UserError for a repeated id or an unknown category."""
        codes = {name: code for code, name in enumerate(self.categories)}
        first, added, cells, known = len(self), [], [], dict(self._cells)

        def rows() -> Iterator[tuple[int, str, str, str, str, str]]:
            for number, item in enumerate(items, start=first):
                if item.category not in codes:
                    raise UserError(f"item {item.id} has category {item.category!r}; use {', '.join(codes)}")
                added.append(codes[item.category])
                cells.append(known.setdefault(item.cell, len(known)))
                yield number, item.id, item.category, item.task, item.reward_type, json.dumps(item.content)

        with transaction(self._db):
            try:
                self._db.executemany("INSERT INTO items VALUES (?, ?, ?, ?, ?, ?)", rows())
            except sqlite3.IntegrityError as error:
                raise UserError(
                    f"item {first + len(added) - 1} of the pool repeats an id; ids must be distinct"
                ) from error
            self._db.execute("UPDATE meta SET value = ? WHERE key = 'cells'", [json.dumps(list(known))])
            self._cells = known
            self.curriculum.add(np.array(added, np.uint8), np.array(cells, np.uint32))
            self._write(np.arange(first, len(self)))

    def select(self, step: int, version: int, places: Array | None = None, round_: int = 0) -> Batch:
        """`Curriculum.select`, written with its reasons. Edits made since the last batch apply before round 0.

        UserError when the items leave nothing to select.
        """
        progress, curriculum = self.curriculum.progress.state(), self.curriculum
        with transaction(self._db):
            edits = due_edits(self._db, step) if round_ == 0 else []
            for edit in edits:
                edit.apply(curriculum)
            self._db.executemany("UPDATE edits SET applied_step = ? WHERE id = ?", [(step, edit.id) for edit in edits])
            bands = json.dumps(curriculum.band_counts.tolist())
            try:
                selection = curriculum.select(step, version, places, round_)
            except ValueError as error:
                raise UserError(f"{self.path.name}: {error}") from error
            self._log_selection(selection, version, bands)
            self._write_progress(progress)
            self._write(np.concatenate([selection.numbers, np.array([edit.number for edit in edits], np.int64)]))
        return Batch(selection, self.ids(selection.numbers), edits)

    def selected(self, step: int) -> Selected | None:
        """The first selection of a step; None if there is none.

        A run resumed from a checkpoint finds here what was on its way when the checkpoint was made.
        """
        query = "SELECT trains, version FROM steps WHERE step = ? AND round = 0"
        found = self._db.execute(query, (step,)).fetchone()
        if found is None:
            return None
        query = "SELECT number FROM selections WHERE step = ? AND round = 0 ORDER BY place"
        numbers = [row[0] for row in self._db.execute(query, (step,))]
        return Selected(np.array(numbers, np.int64), bool(found[0]), found[1])

    def observe(self, step: int, numbers: Array, rewards: Array, versions: Array) -> Observation:
        """`Curriculum.observe`, written with what it changed. ValueError for rewards outside [0, 1]."""
        observation = self.curriculum.observe(step, numbers, rewards, versions)
        names = ("version", "rollouts", "failures", "mean", "spread", "signal", "band_before", "band")
        columns = [
            getattr(observation, name).tolist() for name in (*names, "band_probability", "successes", "evidence")
        ]
        rows = zip(observation.numbers.tolist(), [step] * len(numbers), *columns, strict=True)
        with transaction(self._db):
            self._db.executemany(f"INSERT INTO observations VALUES ({', '.join('?' * 13)})", rows)
            self._write(observation.numbers)
        return observation

    def release(self, numbers: Array) -> None:
        """Items whose rollouts will never come may be selected again."""
        self.curriculum.release(np.asarray(numbers, np.int64))
        with transaction(self._db):
            self._write(numbers)

    def keep_images(self, number: int, pngs: Sequence[bytes]) -> None:
        """Keep the pictures of an item for `show` and `html`; those already there stay."""
        rows = [(int(number), place, png) for place, png in enumerate(pngs)]
        with transaction(self._db):
            self._db.executemany("INSERT OR IGNORE INTO images VALUES (?, ?, ?)", rows)

    def ids(self, numbers: Array) -> list[str]:
        """Ids of items."""
        query = "SELECT id FROM items WHERE number = ?"
        return [self._db.execute(query, (number,)).fetchone()[0] for number in np.asarray(numbers).tolist()]

    def checkpoint(self, folder: Path) -> Path:
        """A consistent copy of the pool in a checkpoint folder, whole or not at all, readable without write access."""
        folder.mkdir(parents=True, exist_ok=True)
        target, partial = folder / POOL_FILE, folder / f".{POOL_FILE}.partial"
        partial.unlink(missing_ok=True)
        try:
            with closing(sqlite3.connect(partial, isolation_level=None)) as copy:
                self._db.backup(copy)
                copy.execute("PRAGMA journal_mode = DELETE")
            os.replace(partial, target)
        except BaseException:  # on a full disk it would keep its space
            remove_pool(partial)
            raise
        return target

    @classmethod
    def restore(cls, folder: Path, path: Path, warn: Callable[[str], None]) -> PoolStore:
        """Put the pool back to a checkpoint and open it; edits made since stay, at the steps where they applied.

        `warn` is told where the pool of the moment is damaged, and its edits are lost.
        """
        saved = folder / POOL_FILE
        if not saved.is_file():
            raise UserError(f"{saved} is missing; resume from a checkpoint that holds the pool")
        try:
            cls._put_back(saved, path)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            warn(f"{path} is damaged ({error}); it is put back from {saved}, without the edits since")
            remove_pool(path)
            cls._put_back(saved, path)
        return cls(path)

    @staticmethod
    def _put_back(saved: Path, path: Path) -> None:
        path.with_name(f".{POOL_FILE}.restored").unlink(missing_ok=True)  # of a disk that was full
        with (
            closing(sqlite3.connect(f"{saved.resolve().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(path.with_name(f".{POOL_FILE}.restored"), isolation_level=None)) as merged,
            closing(connect(path)) as live,
        ):
            source.backup(merged)
            carry_edits(live, merged)
            merged.backup(live)  # one transaction: a reader, or a run killed here, sees the pool before or after
            live.execute("PRAGMA journal_mode = WAL")
        path.with_name(f".{POOL_FILE}.restored").unlink()

    def _log_selection(self, selection: Selection, version: int, bands: str) -> None:
        draws = [[d.reason, d.category, len(d.numbers), d.candidates, d.total_weight, d.rest] for d in selection.draws]
        where = selection.step, selection.round
        row = (*where, time.time(), version, selection.trains, json.dumps(draws), bands)
        self._db.execute("INSERT INTO steps VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        taken = [
            (number, draw.reason, chance)
            for draw in selection.draws
            for number, chance in zip(draw.numbers.tolist(), draw.chances.tolist(), strict=True)
        ]
        rows = [(*where, place, *row) for place, row in enumerate(taken)]
        self._db.executemany("INSERT INTO selections VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _write_progress(self, before: dict[str, int]) -> None:
        """Stage mode's place; a new phase has marked items all over the pool."""
        progress = self.curriculum.progress.state()
        if progress == before:
            return
        self._db.execute("UPDATE meta SET value = ? WHERE key = 'progress'", (json.dumps(progress),))
        if (progress["stage"], progress["training"]) != (before["stage"], before["training"]):
            self._write(np.arange(len(self)))

    def _write(self, numbers: Array) -> None:
        """Store the records of items again."""
        chunks = np.unique(np.asarray(numbers, np.int64) // CHUNK)
        self._db.executemany("INSERT OR REPLACE INTO chunks VALUES (?, ?)", self._records(chunks))

    def _records(self, chunks: Array) -> Iterator[tuple[int, bytes]]:
        """Chunks with the records of their items, of which CHUNKS_AT_ONCE are held at a time."""
        for first in range(0, len(chunks), CHUNKS_AT_ONCE):
            part = chunks[first : first + CHUNKS_AT_ONCE]
            numbers = np.minimum(part[:, None] * CHUNK + np.arange(CHUNK), len(self) - 1)
            records = self.curriculum.items.records(numbers)
            for chunk, held in zip(part.tolist(), records, strict=True):
                yield chunk, held[: len(self) - chunk * CHUNK].tobytes()
