"""The traces that a selection kept, whole, in one Parquet file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from rl_lab.errors import UserError
from rl_lab.files import write_file
from rl_lab.language.rollout_store import SCHEMA, Row

KEPT_FILE = "rft_kept.parquet"
"""Its name in a run directory."""
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


def read_kept(run: Path) -> Iterator[Row]:
    """The same one after the other, as dictionaries."""
    for batch in kept_batches(run):
        yield from batch.to_pylist()
