"""All rollouts of a run: one Parquet file for each step under `rollouts/`, written whole, read by item and step.

Later work adds columns to it (other rewards, a teacher's log-probabilities); there is no second store. The traces that
a selection kept are one Parquet file more, whole; `rollout_data` is a rollout as the scripts of pages read it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from envs.options import suggestion
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file
from rl_lab.records.types import Completion, RolloutGroup, all_completions

FOLDER = "rollouts"
"""Its name in a run directory."""

NODE_FOLDERS = ("grpo", "rft")
"""Of a run directory: those with a store for each node."""

RolloutRow = dict[str, Any]

_NAME = re.compile(r"step-(\d+)\.parquet")


SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("item", pa.string()),
        ("group", pa.int64()),
        ("sample", pa.int64()),
        ("prompt", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("completion", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("token_texts", pa.list_(pa.string())),
        ("logprobs", pa.list_(pa.float32())),
        ("weight_version", pa.int64()),
        ("finished", pa.bool_()),
        ("rewards", pa.map_(pa.string(), pa.float64())),
        ("reward", pa.float64()),
        ("advantage", pa.float64()),
    ]
)
"""Columns that every step has, in this order; others follow."""

FAILURES = "failures"
"""Column of the failed reward calls as `PART/REASON`, of all steps but those of the oldest runs."""


def questions_of(run: Path) -> Path:
    """The questions that the rollouts of a run directory answer; of a study, those of all its worlds where they are the
    same. A path where nothing need be."""
    found = sorted(run.glob("questions/*questions/train.arrow"))
    return found[0] if len(found) == 1 else run / "questions" / "questions" / "train.arrow"


def stores(run: Path) -> list[Path]:
    """Folders of a run directory's nodes with rollouts."""
    return sorted(path.parent for name in NODE_FOLDERS for path in (run / name).glob(f"*/{FOLDER}"))


class RolloutStore:
    """The rollouts of one run directory; made at the first write. One process writes, any number read meanwhile."""

    def __init__(self, run: Path) -> None:
        self.folder = run / FOLDER

    def steps(self) -> list[int]:
        """Steps that are stored, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:08d}.parquet"

    def write(
        self, step: int, groups: Sequence[RolloutGroup], columns: Mapping[str, Sequence[Any]] | None = None
    ) -> None:
        """Store all rollouts of a step, with further columns; replaces what the step had.

        ValueError for a negative step, tokens, texts and log-probabilities of different number, and as `add_columns`.
        """
        if step < 0:
            raise ValueError(f"step is {step}; steps count from 0")
        rows = [_stored(number, sample, group) for number, group in enumerate(groups) for sample in range(group.size)]
        own = {name: [row[name] for row in rows] for name in SCHEMA.names if name != "step"}
        table = pa.table({"step": [step] * len(rows)} | own, schema=SCHEMA)
        failures = {FAILURES: [list(one.failures) for one in all_completions(groups)]}
        self._replace(step, _with_columns(table, failures | dict(columns or {})))

    def add_columns(self, step: int, columns: Mapping[str, Sequence[Any]]) -> None:
        """Add columns to a stored step: a value for each rollout, in stored order.

        ValueError for a step that is not stored, a column that is there already, and another number of values.
        """
        self._replace(step, _with_columns(self.table(step), columns))

    def damaged(self) -> list[tuple[int, str]]:
        """Steps whose file cannot be read or is not what was written, with words that name it. Reads everything."""
        found = []
        for step in self.steps():
            try:
                pq.ParquetFile(self.path(step), page_checksum_verification=True).read(use_threads=False)
            except (OSError, pa.ArrowException) as error:
                found.append((step, f"{self.path(step)} is damaged ({' '.join(str(error).split())})"))
        return found

    def forget_after(self, step: int) -> None:
        """Remove all later steps: a run resumed from `step` makes them again."""
        for later in self.steps():
            if later > step:
                self.path(later).unlink()

    def read(
        self,
        *,
        items: Iterable[str] | None = None,
        steps: Iterable[int] | None = None,
        columns: Sequence[str] | None = None,
    ) -> list[RolloutRow]:
        """Rollouts as dictionaries, by step and in stored order; of these items, steps and columns only.

        A column that a step does not have is None there. ValueError for a column that no stored step has, UserError for
        files that are damaged.
        """
        wanted = None if items is None else set(items)
        chosen = self.steps() if steps is None else [step for step in self.steps() if step in set(steps)]
        tables = [self.table(step, wanted, columns) for step in chosen]
        known = {name for table in tables for name in table.column_names} | set(SCHEMA.names)
        unknown = [name for name in columns or () if name not in known]
        if unknown:
            raise ValueError(f"no stored step has a column {unknown[0]!r}{suggestion(unknown[0], sorted(known))}")
        order = [name for table in tables for name in table.column_names]
        names = list(columns or dict.fromkeys(order))
        return [_row(row, names) for table in tables for row in table.to_pylist()]

    def newest(self, items: Iterable[str], count: int) -> tuple[dict[str, list[RolloutRow]], list[str]]:
        """The last `count` rollouts of each item, newest step first, and a line for each file that cannot be read.

        Reads no more steps than that takes.
        """
        found: dict[str, list[RolloutRow]] = {item: [] for item in items}
        problems = []
        for step in reversed(self.steps()):
            wanted = [item for item, rows in found.items() if len(rows) < count]
            if not wanted:
                break
            try:
                rows = self.read(items=wanted, steps=[step])
            except (OSError, ValueError) as error:
                problems.append(f"{FOLDER}/{self.path(step).name} cannot be read: {' '.join(str(error).split())}")
                continue
            for row in rows:
                found[row["item"]].append(row)
        return {item: rows[:count] for item, rows in found.items()}, problems

    def table(self, step: int, items: set[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """A step's rows of some items; of `columns` those that it has. Errors as `read`."""
        path = self.path(step)
        if not path.exists():
            raise ValueError(f"step {step} is not stored in {self.folder}")
        filters = None if items is None else [("item", "in", items)]
        try:
            present = pq.read_schema(path).names
            chosen = None if columns is None else [name for name in columns if name in present]
            options: dict[str, Any] = {"use_threads": False, "page_checksum_verification": True}
            return _as_written(pq.read_table(path, columns=chosen, filters=filters, **options), columns)
        except (OSError, pa.ArrowException, KeyError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged ({' '.join(str(error).split())}); put it back, or remove it") from error

    def _replace(self, step: int, table: pa.Table) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
        write_file(self.path(step), lambda file: pq.write_table(table, file, **options))


def _stored(number: int, sample: int, group: RolloutGroup) -> RolloutRow:
    """A completion as a row; ValueError unless each of its tokens has a text and a log-probability."""
    one, item = group.completions[sample], group.item
    for name, values in (("texts", one.token_texts), ("log-probabilities", one.logprobs)):
        if len(values) != len(one.tokens):
            raise ValueError(
                f"item {item.id} sample {sample} has {len(one.tokens)} tokens but {len(values)} {name}; store one for "
                "each token"
            )
    place = {"item": item.id, "group": number, "sample": sample, "prompt": item.prompt, "completion": one.text}
    return vars(one) | place | {"rewards": list(one.rewards.items())}


def stored_groups(rows: Iterable[RolloutRow]) -> list[list[Completion]]:
    """The completions of whole groups, as they were when they were stored."""
    found: dict[int, list[RolloutRow]] = {}
    for row in rows:
        found.setdefault(row["group"], []).append(row)
    return [[_completion(row) for row in sorted(found[group], key=itemgetter("sample"))] for group in sorted(found)]


def _completion(row: RolloutRow) -> Completion:
    return Completion(
        prompt_tokens=tuple(row["prompt_tokens"]),
        tokens=tuple(row["tokens"]),
        logprobs=tuple(row["logprobs"]),
        weight_version=row["weight_version"],
        finished=row["finished"],
        text=row["completion"],
        token_texts=tuple(row["token_texts"]),
        rewards=row["rewards"],
        reward=row["reward"],
        failures=tuple(row[FAILURES]),
        advantage=row["advantage"],
    )


def _as_written(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """The table with its own columns in their kinds; ArrowInvalid where one holds nothing or something else."""
    for field in SCHEMA:
        if field.name not in (columns or SCHEMA.names):
            continue
        column = table[field.name].cast(field.type)
        column.validate(full=True)
        if column.null_count and field.name != "reward":
            raise pa.ArrowInvalid(f"{field.name} is null in {column.null_count} rows")
        if pa.types.is_floating(field.type):
            # The reward of a call that failed is NaN.
            unsound = pc.is_inf(column) if field.name == "reward" else pc.invert(pc.is_finite(column))
            if pc.any(unsound).as_py():
                raise pa.ArrowInvalid(f"{field.name} is not finite")
        table = table.set_column(table.column_names.index(field.name), field, column)
    return table


def _with_columns(table: pa.Table, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    """The table with further columns; ValueError where that cannot be."""
    for name, values in columns.items():
        if name in table.column_names:
            raise ValueError(f"the rollouts have a column {name!r} already; choose another name")
        if len(values) != table.num_rows:
            raise ValueError(
                f"column {name!r} has {len(values)} values for {table.num_rows} rollouts; give one for each"
            )
        table = table.append_column(name, pa.array(values))
    return table


def _row(row: RolloutRow, names: Sequence[str]) -> RolloutRow:
    """A row with all of these columns; rewards by part as a dictionary."""
    return {name: dict(row[name]) if name == "rewards" else row.get(name) for name in names}


KEPT_FILE = "rft_kept.parquet"
"""Of a run directory: the traces that a selection kept, whole."""

KEPT = ("step", "item", "group", "sample", "prompt", "completion", "tokens", "weight_version", "reward")
"""Its columns, besides `judge_score`; in stored order."""

KEPT_SCHEMA = pa.schema([*(SCHEMA.field(name) for name in KEPT), ("judge_score", pa.float64())])

ROW_GROUP, ROW_GROUP_BYTES = 4096, 64 << 20
"""Traces that are written together: so many, or fewer of so many bytes. The index of the file, which a writer and each
reader hold in memory, has an entry for each group."""

READ_ROWS = 512


def write_kept(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write batches of traces with the columns of the file, whole or not at all."""

    def write(file: BinaryIO) -> None:
        with pq.ParquetWriter(file, KEPT_SCHEMA, compression="zstd") as writer:
            for group in _gathered(batches):
                table = pa.Table.from_batches(group, KEPT_SCHEMA)
                writer.write_table(table, row_group_size=table.num_rows)

    write_file(path, write)


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    """Lists of batches for a row group each; the last may be smaller."""
    some: list[pa.RecordBatch] = []
    for batch in batches:
        if batch.num_rows:
            some.append(batch.cast(KEPT_SCHEMA))
        if sum(one.num_rows for one in some) >= ROW_GROUP or sum(one.nbytes for one in some) >= ROW_GROUP_BYTES:
            yield some
            some = []
    if some:
        yield some


def kept_batches(run: Path) -> Iterator[pa.RecordBatch]:
    """The kept traces of a finished selection, a few hundred at a time. UserError without one."""
    path = run / KEPT_FILE
    if not path.exists():
        raise UserError(f"there are no selected traces in {run}; finish a selection first")
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(READ_ROWS, use_threads=False)


def finite(value: Any, digits: int = 4) -> float | None:
    """A number as JSON can hold it."""
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def selection_text(row: RolloutRow) -> str:
    """What a selection for fine-tuning (`rl_lab.stages.rft_selection`) made of a rollout; empty if there was none."""
    if row.get("kept") is None:
        return ""
    fate = "kept for fine-tuning" if row["kept"] else f"dropped: {str(row.get('why_dropped')).replace('_', ' ')}"
    score = row.get("judge_score")
    return fate if score is None else f"{fate}, judge score {score:.3g}"


def reward_text(value: float | None) -> str:
    """A reward for reading."""
    return "none" if value is None else f"{value:.3g}"


def rollout_data(row: RolloutRow) -> dict[str, Any]:
    """Step, weight version, rewards by part, fate in a selection, and each token with its log-probability."""
    return {
        "step": row["step"],
        "version": row["weight_version"],
        "finished": row["finished"],
        "completion": row["completion"],
        "reward": finite(row["reward"], 3),
        "rewards": [[name, finite(value, 3)] for name, value in row["rewards"].items()],
        "selection": selection_text(row),
        "tokens": row["token_texts"],
        "logprobs": [finite(value, 3) for value in row["logprobs"]],
    }
