"""Files with one JSON object a line: written whole, or appended to by a process that may be killed at any moment."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, TypeVar

from rl_lab.errors import UserError
from rl_lab.files import naming, write_whole
from rl_lab.reading import fit, read_bytes

Record = dict[str, Any]
T = TypeVar("T")


def _line(record: Mapping[str, Any]) -> str:
    """Values may be numpy or torch scalars."""
    return json.dumps(dict(record), default=float) + "\n"


def write_json_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write all records, whole or not at all."""
    write_whole(path, "".join(map(_line, records)))


def append_json_line(path: Path, record: Mapping[str, Any]) -> None:
    """Append one record. A tail torn by a kill is cut off first."""
    with naming(path), open(path, "ab+") as file:
        file.truncate(_end_of_last_line(file))
        file.write(_line(record).encode())


def _end_of_last_line(file: IO[bytes], block: int = 4096) -> int:
    """Offset just behind the last newline of an open binary file, 0 without one."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_json_lines(path: Path, *, missing_ok: bool = False) -> list[Record]:
    """All objects of a file; a torn last line is ignored. With `missing_ok` an absent file has none.

    UserError for any other line that is no JSON object, and for a last one that is not the beginning of one: it would
    silently change what is made of the file.
    """
    if missing_ok and not path.exists():
        return []
    *lines, unfinished = read_bytes(path).decode(errors="replace").split("\n")
    if unfinished.strip() and not unfinished.startswith("{"):
        raise UserError(f"{path}, line {len(lines) + 1} is no beginning of a JSON object; put back the file")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # ValueError: also a number of thousands of digits
            record = None
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number} is not a JSON object; mend or delete that line")
        records.append(record)
    return records


def read_lines_as(path: Path, kind: type[T], *, missing_ok: bool = False) -> list[T]:
    """The objects of a file as dataclasses, whose fields are all that is read of them. UserError naming file, line and
    key for what does not fit them, and as `read_json_lines`."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return [
        fit({key: value for key, value in row.items() if key in known}, kind, f"{path}, line {number}")
        for number, row in enumerate(read_json_lines(path, missing_ok=missing_ok), start=1)
    ]
