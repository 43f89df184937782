"""Reading a run's curriculum pool, live or finished, at its newest state or at a checkpoint; nothing is written.

Pools lie in RUN/pool.sqlite, or in RUN/{grpo,joint}/NODE/pool.sqlite of nodes that train. Beside a pool are its
`rollouts/` and, under `checkpoints/step-N/`, its copies. What the pool commands write goes into the run folder: a
node's folder is read-only once the node is done.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from algos.curriculum.items import BANDS, Array, Items
from envs.options import nearest
from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, parse_json, read_object
from rl_lab.curriculum.store import POOL_FILE, read_items, read_meta
from rl_lab.records.rollouts import RolloutStore

NODES = ("grpo", "joint")
"""Folders of a run that hold one folder for each node with a pool."""


@dataclass(frozen=True)
class PoolPlace:
    """One pool of a run, live or as a checkpoint."""

    run: Path
    """The run folder, where files for the user are written."""
    folder: Path
    """Holds the pool, rollouts/ and checkpoints/: the run folder, or that of a node."""
    path: Path
    """The pool, or its copy in a checkpoint."""

    @property
    def sealed(self) -> bool:
        """The file is read-only, as in a finished stage."""
        return not self.path.stat().st_mode & 0o222

    @property
    def page(self) -> Path:
        """Where `html` writes unless told otherwise; each of several pools has its own."""
        return self.run / ("pool.html" if len(pool_folders(self.run)) < 2 else f"pool-{self.folder.name}.html")

    @property
    def over(self) -> bool:
        """Whether no selection will come any more."""
        if self.sealed:
            return True
        stages = self.run / "stages.json"
        nodes = read_object(stages).get("nodes") if stages.is_file() else []
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise UserError(f"{stages}: nodes is no list of stages; put back the file as it was written")
        return any((node.get("name"), node.get("status")) == (self.folder.name, "done") for node in nodes)


def pool_folders(run: Path) -> list[Path]:
    """Folders of a run that hold a pool."""
    nodes = (path for folder in NODES for path in sorted(run.glob(f"{folder}/*/{POOL_FILE}")))
    return [path.parent for path in (run / POOL_FILE, *nodes) if path.is_file()]


def locate(text: str) -> PoolPlace:
    """The pool of `RUN`, `RUN@STEP`, `RUN/grpo/NODE` or `RUN/grpo/NODE@STEP`. UserError if there is no such one."""
    given, step = Path(text), ""
    if not given.exists() and "@" in text:
        name, _, step = text.rpartition("@")
        given = Path(name)
    if not given.is_dir():
        raise UserError(f"no run folder at {given}; a run prints its path in its first and last line")
    folder = _only_pool(given, f"@{step}" if step else "")
    return PoolPlace(_run_of(folder), folder, _checkpoint(folder, step) if step else folder / POOL_FILE)


def _run_of(folder: Path) -> Path:
    """The run folder of a folder with a pool. By names, because a live node's folder is a link to somewhere else."""
    whole = folder if len(folder.parts) > 2 else folder.absolute()
    return whole.parent.parent if whole.parent.name in NODES else folder


def _only_pool(given: Path, suffix: str) -> Path:
    folders = pool_folders(given)
    if len(folders) > 1:
        raise UserError(f"{given} holds {len(folders)} pools; give one of {', '.join(f'{f}{suffix}' for f in folders)}")
    if not folders and (waiting := _to_come(given)):
        raise UserError(f"{given} has no curriculum pool yet: {waiting} has not begun; ask again when it has")
    if not folders:
        there = sorted(path.name + "/" * path.is_dir() for path in given.iterdir() if not path.name.startswith("."))
        named = ", ".join([*there[:12], *([f"and {len(there) - 12} more"] if len(there) > 12 else [])])
        raise UserError(f"{given} has no curriculum pool ({POOL_FILE}); it holds {named or 'nothing'}")
    return folders[0]


def _to_come(run: Path) -> str:
    """The first stage of a run that will have a pool and has not ended, "" for a run without one."""
    stages = run / "stages.json"
    rows = fit(read_object(stages).get("nodes"), list[dict[str, Any]], f"{stages}: nodes") if stages.is_file() else []
    waiting = (row for row in rows if row.get("kind") in NODES and row.get("status") in ("pending", "running"))
    return str(next(waiting, {}).get("name", ""))


def _checkpoint(folder: Path, step: str) -> Path:
    if not step.isdigit():
        raise UserError(f"{step!r} in {folder}@{step} is no step; give a number, as in {folder}@20")
    path = folder / "checkpoints" / f"step-{step}" / POOL_FILE
    if not path.is_file():
        known = [p.parent.name.removeprefix("step-") for p in path.parent.parent.glob(f"step-*/{POOL_FILE}")]
        steps = ", ".join(sorted(known, key=lambda name: (len(name), name)))
        raise UserError(f"{folder} has no checkpoint of its pool at step {step}; there are: {steps or 'none'}")
    return path


SORTS = ("frontier", "rate", "age", "groups", "selections", "id")

REASONS = {
    "frontier": "drawn by its probability of lying in the frontier band",
    "unseen": "exploration: drawn from the items never observed, by what items of their task and level were like",
    "stale": "re-probing: drawn evenly from the items not observed for long",
    "pinned": "pinned by hand",
    "uniform": "read in shuffled passes over all items",
    "probe": "a candidate of the stage, probed to see whether it is solved sometimes",
    "stage": "kept for the stage because it was solved sometimes; read in shuffled passes",
    "easy": "drawn evenly from the easy pool",
    "normal": "drawn evenly from the normal pool",
    "hard": "drawn evenly from the hard pool",
    "own": "drawn by the weights of a scheme of one's own",
}
"""Reason of a selection, in words."""

IMMUTABLE = "immutable=1"

_TEXTS = ("category", "task", "reward_type", "content", "draws", "bands", "reason", "action", "item")

_REALS = ("time", "chance", "mean", "spread", "band_probability", "successes", "evidence")

_MAY_LACK = ("due_step", "applied_step")

PoolRow = dict[str, Any]

T = TypeVar("T")


@dataclass(frozen=True)
class Filter:
    """Which items to show and how to order them; None leaves a limit out."""

    band: str | None = None
    category: str | None = None
    rate: tuple[float, float] | None = None
    """Posterior mean of the pass rate, both ends included."""
    age: tuple[float, float] | None = None
    """Weight versions since the last observation, both ends included; leaves out unseen items."""
    state: str | None = None
    """pinned, retired or pending."""
    sort: str = "frontier"
    reverse: bool = False


class PoolView:
    """A pool opened for reading: columns of all items in memory, everything else asked for when it is needed."""

    def __init__(self, text: str) -> None:
        """A place as `locate` reads it; UserError if there is no such pool or it cannot be read."""
        self.name, self.place = text, locate(text)
        with self._whole():
            self._db = self._open()
            self.meta = read_meta(self._db, self.place.path)
        self.options, self.categories = self.meta.options, self.meta.categories

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """UserError, naming the file, for what SQLite finds in a damaged one."""
        try:
            yield
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            raise UserError(f"{self.place.path} cannot be read: {error}; it is no pool, or not whole") from error

    def _open(self) -> sqlite3.Connection:
        """Read-only, and nothing is left beside the file."""
        uri, mode = self.place.path.resolve().as_uri(), self._mode()
        if mode == IMMUTABLE:
            _check_length(self.place.path)
        db = sqlite3.connect(f"{uri}?{mode}", uri=True, timeout=60.0, isolation_level=None)
        try:
            db.execute("SELECT 1 FROM meta").fetchone()
        except sqlite3.OperationalError:
            db.close()
            db = sqlite3.connect(f"{uri}?{IMMUTABLE}", uri=True, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.execute("BEGIN")  # everything that is read comes from one state of the pool
        return db

    def _mode(self) -> str:
        """A file without a log beside it is one that nobody writes, and is read as it stands: else SQLite would leave
        a log there. So is a sealed file, unless the log that it was sealed with still holds something."""
        log = self.place.path.with_name(f"{self.place.path.name}-wal")
        there = log.is_file() and (log.stat().st_size or not self.place.sealed)
        return "mode=ro" if there else IMMUTABLE

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()

    @property
    def rollouts(self) -> RolloutStore:
        """The rollouts of this pool's items."""
        return RolloutStore(self.place.folder)

    def rows(self, query: str, *values: Any) -> list[PoolRow]:
        """Rows of a query, each as a dict. UserError for values that no pool has."""
        with self._whole():
            found = [dict(row) for row in self._db.execute(query, values)]
        for row in found:
            for name, value in row.items():
                if not _fits(name, value):
                    raise UserError(f"{self.place.path}: {name} of a row is {value!r:.40}; it is no pool, or not whole")
        return found

    def content(self, text: str, kind: type[T], name: str) -> T:
        """JSON text in the pool as what it should hold. UserError for anything else."""
        where = f"{self.place.path}: {name}"
        return fit(parse_json(text, where), kind, where)

    @cached_property
    def items(self) -> Items:
        """Columns of all items, as they were when they were first asked for."""
        with self._whole():
            return read_items(self._db, self.place.path, self.meta)

    @cached_property
    def now(self) -> tuple[int, int]:
        """Step and weight version of the newest selection; (-1, 0) before the first."""
        rows = self.rows("SELECT step, version FROM steps ORDER BY step DESC, round DESC LIMIT 1")
        return (rows[0]["step"], rows[0]["version"]) if rows else (-1, 0)

    @cached_property
    def rate(self) -> Array:
        """Posterior mean of the pass rates, (a0 + S) / (a0 + b0 + N), float64 [num_items]."""
        a, b = self.options.prior
        return (a + self.items.successes) / (a + b + self.items.evidence)

    @cached_property
    def age(self) -> Array:
        """Weight versions since the last observation, int64 [num_items]; meaningless for unseen items."""
        return np.maximum(self.now[1] - self.items.version.astype(np.int64), 0)

    def category_code(self, name: str) -> int:
        """Code of a category. UserError if the pool has no such one."""
        if name not in self.categories:
            known = ", ".join(self.categories)
            raise UserError(f"{self.name} has no category {name!r}; it has {known}{nearest(name, self.categories)}")
        return self.categories.index(name)

    def number(self, item: str) -> int:
        """Number of an item by its id. UserError, with ids that begin alike, if there is none."""
        found = self.rows("SELECT number FROM items WHERE id = ?", item)
        if found:
            return int(found[0]["number"])
        start = item[: max(len(item) // 2, 1)]
        upper = start[:-1] + chr(ord(start[-1]) + 1) if start else "\U0010ffff"
        near = self.rows("SELECT id FROM items WHERE id >= ? AND id < ? ORDER BY id LIMIT 3", start, upper)
        known = f"; ids that begin alike: {', '.join(row['id'] for row in near)}" if near else ""
        raise UserError(
            f"{self.name} has no item {item!r}{known}; list them with `python -m rl_lab.pool ls {self.name}`"
        )

    def item(self, number: int) -> PoolRow:
        """id, category, task, reward_type and content (a dict) of an item."""
        row = self.rows("SELECT * FROM items WHERE number = ?", number)[0]
        return row | {"content": self.content(row["content"], dict[str, Any], f"content of {row['id']}")}

    def state(self, number: int) -> PoolRow:
        """What the pool knows about an item: its columns, band name, rate and age (None if unseen)."""
        columns = {name: column[number].item() for name, column in self.items.columns.items()}
        age = int(self.age[number]) if columns["groups"] else None
        return columns | {"band": BANDS[columns["band"]], "rate": float(self.rate[number]), "age": age}

    def images(self, number: int) -> list[bytes | Path]:
        """Pictures of an item: PNG bytes kept in the pool, else the paths that its content names."""
        kept = self.rows("SELECT png FROM images WHERE number = ? ORDER BY place", number)
        if kept:
            return [row["png"] for row in kept]
        named = self.item(number)["content"].get("images", [])
        return [self.place.run / path for path in named if isinstance(path, str)] if isinstance(named, list) else []

    def observations(self, number: int, before: int | None = None) -> list[PoolRow]:
        """Groups observed of an item, oldest first; with `before` those of earlier steps."""
        limit = 2**62 if before is None else before
        query = "SELECT * FROM observations WHERE number = ? AND step < ? ORDER BY rowid"
        return self.rows(query, number, limit)

    def selections(self, number: int) -> list[PoolRow]:
        """Steps, rounds, reasons and chances with which an item was selected."""
        return self.rows("SELECT * FROM selections WHERE number = ? ORDER BY step, round", number)

    def edits(self, number: int | None = None) -> list[PoolRow]:
        """Pins and retirements with the step at which they took effect, of one item or of all."""
        query = "SELECT edits.*, items.id AS item FROM edits JOIN items USING (number)"
        return (
            self.rows(f"{query} WHERE number = ? ORDER BY edits.id", number) if number is not None else self.rows(query)
        )

    def steps(self) -> list[PoolRow]:
        """Selections of round 0: step, version, bands [C][5] (before the selection), draws as JSON text."""
        rows = self.rows("SELECT * FROM steps WHERE round = 0 ORDER BY step")
        return [
            row | {"bands": self.content(row["bands"], list[list[int]], f"bands of step {row['step']}")} for row in rows
        ]

    def bands(self) -> Array:
        """Items of each category in each band now, retired ones left out, [C, 5]."""
        active = ~self.items.retired
        codes = self.items.category[active].astype(np.int64) * len(BANDS) + self.items.band[active]
        return np.bincount(codes, minlength=len(self.categories) * len(BANDS)).reshape(-1, len(BANDS))

    def select(self, wanted: Filter) -> Array:
        """Numbers of the items that pass a filter, in its order. UserError for a category that does not exist."""
        items, mask = self.items, np.ones(len(self.items), np.bool_)
        if wanted.band is not None:
            mask &= items.band == BANDS.index(wanted.band)
        if wanted.category is not None:
            mask &= items.category == self.category_code(wanted.category)
        if wanted.rate is not None:
            mask &= (self.rate >= wanted.rate[0]) & (self.rate <= wanted.rate[1])
        if wanted.age is not None:
            mask &= (items.groups > 0) & (self.age >= wanted.age[0]) & (self.age <= wanted.age[1])
        if wanted.state is not None:
            mask &= items.columns[wanted.state]
        rows = np.flatnonzero(mask)
        key, largest_first = self._key(wanted.sort)
        descending = largest_first != wanted.reverse
        values = key[rows].astype(np.float64)
        return rows[np.argsort(-values if descending else values, kind="stable")]

    def _key(self, sort: str) -> tuple[Array, bool]:
        """Values to sort by, and whether the largest come first."""
        if sort == "id":
            return np.arange(len(self.items)), False
        keys = {
            "frontier": self.items.band_probability,
            "rate": self.rate,
            "age": np.where(self.items.groups > 0, self.age, -1),
            "groups": self.items.groups,
            "selections": self.items.selections,
        }
        return keys[sort], True


def _check_length(path: Path) -> None:
    """DatabaseError for a file that ends before its last page, which SQLite notices only where it reads that page."""
    with path.open("rb") as file:
        head = file.read(100)
    size, pages = int.from_bytes(head[16:18], "big"), int.from_bytes(head[28:32], "big")
    if path.stat().st_size < (65536 if size == 1 else size) * pages:
        raise sqlite3.DatabaseError("it ends before its last page")


def _fits(name: str, value: Any) -> bool:
    """Whether a column of the pool can hold a value: SQLite takes any in every column."""
    if name in ("png", "id"):  # an item's id is a text, that of an edit a number
        return isinstance(value, bytes if name == "png" else str | int)
    if name in _TEXTS:
        return isinstance(value, str) and (name != "reason" or value in REASONS)
    if name in _REALS:
        return isinstance(value, float | int)
    if name in ("band", "band_before"):
        return value in range(len(BANDS))
    return isinstance(value, int) or (value is None and name in _MAY_LACK)
