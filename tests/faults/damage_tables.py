"""Damages of files of arrays, columns and tables: what each holds is left out, or holds something else."""

import json
import math
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load, save

from tests.faults.damage_kinds import DEEP, Damage, tree_damages


def _arrays(arrays: dict[str, np.ndarray], write: Callable[[dict], bytes], *, text: bool = True) -> Iterator[Damage]:
    """A file of named arrays."""
    for name, array in arrays.items():
        rest = {key: value for key, value in arrays.items() if key != name}
        yield Damage("missing key", name, lambda rest=rest: write(rest))
        for kind, where, changed in _changed(array, text):
            yield Damage(kind, f"{name}: {where}", lambda name=name, changed=changed: write(arrays | {name: changed}))
    surprise = {"surprise": np.zeros(3, np.float32)}
    yield Damage("unknown key", "surprise", lambda: write(arrays | surprise))


def _changed(array: np.ndarray, text: bool) -> Iterator[tuple[str, str, np.ndarray]]:
    """Kind, place and a damaged copy of an array."""
    if array.ndim:
        yield "other shape", "shorter", array[: len(array) // 2]
        yield "other shape", "no rows", array[:0]
        yield from (("other shape", "flat", array.reshape(-1)),) if array.ndim > 1 else ()
        yield "other shape", "a scalar", array.reshape(-1)[:1].reshape(())
    yield "other shape", "one more dimension", array[None]
    if array.dtype.kind in "fiu":
        yield "other type", "complex", array.astype(np.complex64)
    if text:
        yield "other type", "text", np.full(array.shape, "x")
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf):
            changed = array.copy()
            changed.reshape(-1)[-1:] = value
            yield "not finite", str(value), changed
        yield "huge", "times 1e30", array * array.dtype.type(1e30)
    if array.dtype.kind in "iu":
        yield "negative", "-7", np.full(array.shape, -7, np.int64)
        yield "huge", "2**62", np.full(array.shape, 2**62, np.int64)


def npz(whole: bytes) -> Iterator[Damage]:
    def write(arrays: dict[str, np.ndarray]) -> bytes:
        file = BytesIO()
        np.savez(file, **arrays)
        return file.getvalue()

    arrays = dict(np.load(BytesIO(whole)))
    yield from _arrays(arrays, write)
    first = next(iter(arrays))
    yield Damage("pickle", first, lambda: write(arrays | {first: np.array([{"a": 1}, None], object)}))


def safetensors(whole: bytes) -> Iterator[Damage]:
    arrays, size = load(whole), int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    few = {name: arrays[name] for name in sorted(arrays)[:: max(1, len(arrays) // 4)]}
    yield from _arrays(few, lambda changed: save(_without(arrays, few, changed), {"format": "pt"}), text=False)
    yield Damage("header", "huge length", lambda: (2**62).to_bytes(8, "little") + whole[8:])
    yield Damage("header", "nesting", lambda: _with_header(b"[" * DEEP, whole))
    for name in few:
        for kind, offsets in (("beyond the end", [0, 2**40]), ("backwards", [64, 0]), ("negative", [-8, 0])):
            other = header | {name: header[name] | {"data_offsets": offsets}}
            yield Damage(
                "header", f"{name} {kind}", lambda other=other: _with_header(json.dumps(other).encode(), whole)
            )


def _without(arrays: dict, few: dict, changed: dict) -> dict:
    """All tensors, of which `few` were changed or left out."""
    kept = {name: array for name, array in arrays.items() if name in changed or name not in few} | changed
    return {name: np.ascontiguousarray(array) for name, array in kept.items() if array.dtype.kind != "U"}


def _with_header(header: bytes, whole: bytes) -> bytes:
    size = int.from_bytes(whole[:8], "little")
    return len(header).to_bytes(8, "little") + header + whole[8 + size :]


def _table(table: pa.Table, write: Callable[[pa.Table], bytes]) -> Iterator[Damage]:
    """A table with named columns."""
    yield Damage("no rows", "", lambda: write(table.slice(0, 0)))
    yield Damage("repeated", "all rows", lambda: write(pa.concat_tables([table, table])))
    yield Damage("unknown key", "surprise", lambda: write(table.append_column("surprise", pa.array([1] * len(table)))))
    for place, name in enumerate(table.column_names):
        yield Damage("missing key", name, lambda place=place: write(table.remove_column(place)))
        for kind, values in _columns(table.column(place)):
            yield Damage(
                kind,
                f"{name}: {values.type}",
                lambda place=place, name=name, values=values: write(table.set_column(place, name, values)),
            )


def _columns(column: pa.ChunkedArray) -> Iterator[tuple[str, pa.Array]]:
    """Kind and what may stand wrongly in the place of a column."""
    count = len(column)
    yield "null", pa.nulls(count, column.type)
    yield "other type", pa.array(["text"] * count)
    yield "other type", pa.array([7] * count)
    yield "other type", pa.array([[{"a": 1}]] * count)
    if pa.types.is_floating(column.type):
        yield "not finite", pa.array([math.nan] * count, column.type)
        yield "negative", pa.array([-1e9] * count, column.type)
    if pa.types.is_integer(column.type):
        yield "negative", pa.array([-1] * count, column.type)
        yield "huge", pa.array([2**62 if column.type.bit_width == 64 else 2**31 - 1] * count, column.type)
    if pa.types.is_string(column.type):
        yield "not UTF-8", pa.array([b"\xff\xfe"] * count, pa.binary()).view(pa.string())
        yield "odd text", pa.array([""] * count)
    if pa.types.is_binary(column.type):
        yield "odd text", pa.array([b"junk"] * count, column.type)


def parquet(whole: bytes) -> Iterator[Damage]:
    def write(table: pa.Table) -> bytes:
        file = BytesIO()
        pq.write_table(table, file)
        return file.getvalue()

    yield from _table(pq.read_table(BytesIO(whole)), write)


def arrow(whole: bytes) -> Iterator[Damage]:
    """Arrow files, or the streams that `datasets` saves."""
    stream = not whole.startswith(b"ARROW1")
    opened = pa.ipc.open_stream(whole) if stream else pa.ipc.open_file(whole)

    def write(table: pa.Table) -> bytes:
        file = BytesIO()
        with (pa.ipc.new_stream if stream else pa.ipc.new_file)(file, table.schema) as writer:
            writer.write_table(table)
        return file.getvalue()

    table = opened.read_all()
    yield from _table(table, write)
    if "record" in table.column_names:
        records = table.column("record").to_pylist()
        yield from tree_damages(
            json.loads(records[0]),
            lambda tree: write(table.set_column(0, "record", pa.array([json.dumps(tree), *records[1:]]))),
        )


def _edited(whole: bytes, edit: Callable[[Path], None]) -> bytes:
    """The bytes of a file after an edit of a copy on disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy"
        path.write_bytes(whole)
        edit(path)
        return path.read_bytes()


def hdf5(whole: bytes) -> Iterator[Damage]:
    arrays: dict[str, np.ndarray] = {}
    with h5py.File(BytesIO(whole), "r") as file:
        file.visititems(lambda name, item: arrays.update({name: item[()]}) if hasattr(item, "shape") else None)
    for name, array in arrays.items():
        yield Damage("missing key", name, lambda name=name: _edited(whole, partial(_set_hdf5, name=name, value=None)))
        yield Damage("other type", f"{name}: group", lambda name=name: _edited(whole, partial(_set_hdf5, name=name)))
        for kind, where, changed in _changed(np.asarray(array), text=False):
            edit = partial(_set_hdf5, name=name, value=changed)
            yield Damage(kind, f"{name}: {where}", lambda edit=edit: _edited(whole, edit))


GROUP = object()


def _set_hdf5(path: Path, name: str, value: Any = GROUP) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]
        if value is GROUP:
            file.create_group(name)
        elif value is not None:
            file[name] = value


def sqlite(whole: bytes) -> Iterator[Damage]:
    """Tables and columns that are gone or hold something else, and each JSON text in them."""

    def changed(*statements: tuple[str, tuple]) -> Callable[[], bytes]:
        return lambda: _edited(whole, partial(_execute, statements=statements))

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy"
        path.write_bytes(whole)
        db = sqlite3.connect(path)
        tables = [row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        about = {table: db.execute(f"PRAGMA table_info({table})").fetchall() for table in tables}
        columns = {table: [row[1] for row in rows] for table, rows in about.items()}
        keys = {table: [(row[1], row[2]) for row in rows if row[5]] for table, rows in about.items()}
        first = {table: db.execute(f"SELECT * FROM {table}").fetchone() for table in tables}
        meta = db.execute("SELECT key, value FROM meta").fetchall()
        db.close()
    for table in tables:
        if table.startswith("sqlite_"):
            continue
        yield Damage("missing key", table, changed((f"DROP TABLE {table}", ())))
        yield Damage("no rows", table, changed((f"DELETE FROM {table}", ())))
        for column in columns[table]:
            where = f"{table}.{column}"
            yield Damage("missing key", where, changed((f"ALTER TABLE {table} RENAME COLUMN {column} TO gone", ())))
            if keys[table] == [(column, "INTEGER")]:  # a rowid, for which SQLite takes integers only
                continue
            for kind, value in (("other type", "text"), ("other type", b"\xff"), ("huge", 1e300), ("negative", -1)):
                query = f"UPDATE {table} SET {column} = ? WHERE rowid = (SELECT min(rowid) FROM {table})"
                if table in ("meta", "steps", "selections"):
                    query = f"UPDATE OR REPLACE {table} SET {column} = ?"
                yield Damage(kind, f"{where} = {value!r}", changed((query, (value,))))
            yield Damage(
                "not UTF-8", where, changed((f"UPDATE OR REPLACE {table} SET {column} = CAST(x'ff' AS TEXT)", ()))
            )
    texts = [("meta", f"value = ? WHERE key = '{key}'", value) for key, value in meta]
    for table, column in (("items", "content"), ("steps", "bands"), ("steps", "draws")):
        found = dict(zip(columns[table], first[table] or (), strict=False)).get(column)
        texts += [(table, f"{column} = ?", found)] if found else []
    for table, change, text in texts:

        def write(tree: Any, query: str = f"UPDATE {table} SET {change}") -> bytes:
            return changed((query, (json.dumps(tree),)))()

        for damage in tree_damages(json.loads(text), write):
            yield replace(damage, where=f"{table}, {change}: {damage.where}")


def _execute(path: Path, statements: Iterable[tuple[str, tuple]]) -> None:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = DELETE")
    for statement, values in statements:
        db.execute(statement, values)
    db.close()
