"""What libraries raise where a file is damaged, as problems of its episode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl_lab import reading
from rl_lab.errors import UserError
from rl_lab.formats.checks import BrokenEpisodeError, Problem

DAMAGE = (*reading.DAMAGE, pa.ArrowException, av.FFmpegError)


@contextlib.contextmanager
def naming_episode(name: str, frame: int | None = None) -> Iterator[None]:
    """Turn what is raised for damage into a BrokenEpisodeError of this episode."""
    try:
        yield
    except BrokenEpisodeError:
        raise
    except DAMAGE as error:
        text = f"cannot be read, broken or truncated: {' '.join(str(error).split()) or type(error).__name__}"
        raise BrokenEpisodeError([Problem(name, frame, text)]) from error


Kinds = Mapping[str, pa.DataType | None]


def read_columns(path: Path, kinds: Kinds, optional: Kinds = MappingProxyType({})) -> list[dict[str, Any]]:
    """Rows of a Parquet file, its columns as the kinds that are named; null for optional ones that are not there.

    A column of kind None may hold anything, nulls too. UserError, naming the column, where one is missing, holds nulls
    or something else than its kind.
    """
    try:
        there = pq.read_schema(path).names
        wanted = {**kinds, **{name: kind for name, kind in optional.items() if name in there}}
        if missing := kinds.keys() - set(there):
            raise UserError(f"{path} has no column {min(missing)}")
        table = pq.read_table(path, columns=list(wanted), partitioning=None)
        values = {name: table[name] if kind is None else table[name].cast(kind) for name, kind in wanted.items()}
        rows = pa.table(values).to_pylist()  # only here are bytes that are no text found
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())}; make it again") from error
    if empty := [name for name, kind in kinds.items() if kind is not None and values[name].null_count]:
        raise UserError(f"{path}: {empty[0]} is null in {values[empty[0]].null_count} rows; make it again")
    return [dict.fromkeys(optional) | row for row in rows]


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file. UserError for one that is damaged or holds anything but arrays of numbers."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except DAMAGE as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path} cannot be read, broken or truncated: {text}; make it again") from error
