"""Sources of questions on disk as rows that nobody has interpreted yet: JSON lines or arrays, Parquet, saved tables.

Lines may be gzipped and begin with a byte order mark. Pictures inside tables stay encoded. Nothing is downloaded, and
nothing is written: what `datasets` would convert into its cache is read by pyarrow.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rl_lab.errors import UserError
from rl_lab.files import files_below
from rl_lab.reading import DAMAGE

BOM = b"\xef\xbb\xbf"
MAX_PATH_CHARS = 500
"""A longer text is no path."""
ROWS_AT_ONCE = 32
"""Of a table: its pictures are in memory together."""
Raw = tuple[int, Any]
"""Number of a row from 1 (of a file its line, of an array its place), and the row: JSON text in bytes, or a value."""


def raw_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Raw]:
    """All rows of a source; of tables only these columns. UserError for a source that is none, or that is damaged."""
    if is_table(path):
        return enumerate(_table_rows(path, columns), start=1)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a JSONL file, one JSON object a line")
    return _file_rows(path)


def is_table(path: Path) -> bool:
    """Whether a source is Parquet or was saved by `datasets`."""
    return path.is_dir() or path.suffix == ".parquet"


def _file_rows(path: Path) -> Iterator[Raw]:
    """Elements of the array that a file holds, or else its lines but blank ones."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = list(islice(lines, 1))
    if first and first[0][1].lstrip().startswith(b"["):
        first += lines
        try:
            found = json.loads(b"".join(line for _, line in first))
        except (ValueError, RecursionError):  # no array: what is wrong is said of the line
            found = None
        if isinstance(found, list):
            return enumerate(found, start=1)
    return chain(first, lines)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(BOM) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; put back the file as it was written") from error


def _table_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    saved = path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file())
    try:
        for batch in _saved_batches(path) if saved else _parquet_batches(path, columns):
            yield from batch.to_pylist()
    except UserError:
        raise
    except (*DAMAGE, AttributeError, pa.ArrowException) as error:  # AttributeError: datasets' own files hold anything
        raise UserError(f"{path} is no table of datasets: {' '.join(str(error).split())}") from error


def _saved_batches(path: Path) -> Iterable[pa.Table]:
    """Of a table that `datasets` saved to a folder."""
    import datasets  # here, because it takes a second

    table = datasets.load_from_disk(str(path))
    if isinstance(table, datasets.DatasetDict):
        names = ", ".join(table)
        raise UserError(f"{path} has the splits {names}; name one of them, such as {path / next(iter(table), '')}")
    return table.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Of a Parquet file, or of the shards of one table in a folder."""
    for shard in _shards(path) if path.is_dir() else [path]:
        with pq.ParquetFile(shard) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(ROWS_AT_ONCE, columns=known)


def _shards(folder: Path) -> list[Path]:
    """The Parquet files below a folder, by number; UserError unless their names differ in numbers alone."""
    found = [path for path in files_below(folder) if path.suffix == ".parquet"]
    if not found:
        raise UserError(
            f"{folder} is no table of datasets: it has neither Parquet files nor what Dataset.save_to_disk writes"
        )
    names = sorted({re.sub(r"\d+", "N", path.relative_to(folder).as_posix()) for path in found})
    if len(names) > 1:
        raise UserError(
            f"{folder} has Parquet files of {len(names)} tables ({', '.join(names)}); give the files of one split, "
            "in a folder of their own"
        )
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.as_posix())])


def source_files(path: Path) -> list[Path]:
    """The files that the content of a source depends on: itself (all of a folder), and pictures and videos it names."""
    own = files_below(path) if path.is_dir() else [path]
    named: set[Path] = set()
    for _, raw in raw_rows(path):
        try:
            row = json.loads(raw) if isinstance(raw, bytes) else raw
            texts = [text for text in texts_of(row) if len(text) < MAX_PATH_CHARS]
            base = str(row.get("data_path") or "") if isinstance(row, dict) else ""
        except (ValueError, RecursionError):
            continue  # reading the source will name this line
        named.update(file for text in texts if (file := find_file(text, path.parent, base)) is not None)
    return [*own, *sorted(named)]


def find_file(name: str, folder: Path, base: str = "") -> Path | None:
    """The file that a path names: relative to the folder of the data, else to the working directory; None without one.

    `base` is a folder in front of it, as the rows of some layouts give one.
    """
    for path in (folder / base / name, Path(base, name)):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or with a null byte
            return None
    return None


def texts_of(value: Any) -> Iterator[str]:
    """All texts inside a JSON value, names of fields aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def has_open_questions(path: Path) -> bool:
    """Whether a source asks questions that only a judge can score."""
    for _, raw in raw_rows(path, ["reward_type"]):
        try:
            row = json.loads(raw) if isinstance(raw, bytes) else raw
        except (ValueError, RecursionError):
            continue  # reading the source will name this line
        if isinstance(row, dict) and row.get("reward_type") == "open":
            return True
    return False
