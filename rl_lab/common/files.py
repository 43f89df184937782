"""Files and folders that are written whole or not at all: a temporary name beside the target, then a rename.

Files with one JSON object a line are written whole, or appended to by a process that may be killed at any moment.

A rename makes a folder appear whole, but a power cut, a full disk of a storage server or a person can still shorten a
file afterwards. So a checked folder carries the SHA-256 of its own files: damage is found before it is learned from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, read_bytes

CARD_FILE = "README.md"
"""What people and hubs read of a folder of weights or data; nothing here depends on it."""

ROOT = Path(__file__).resolve().parents[2]
"""Folder of the lab's packages."""

CODE_PACKAGES = ("rl_lab", "envs", "algos", "rewards")
HASHED_PACKAGES = ("torch", "mujoco", "numpy", "transformers")
"""Installed packages on which the numbers of a run depend."""


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_file` does."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Fill a file with `write(file)` so that a reader, or a run resumed after a kill, sees all of it or the one before.

    The temporary name starts with a dot, and is gone again where writing fails: on a full disk it would keep its space.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with naming(path), partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """Fill a folder with `write(partial)`, then give it its name; an old one is replaced. Durable when it returns."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        for path in [*partial.rglob("*"), partial]:
            sync(path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    sync(folder.parent)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give the OSError of a write, a flush or a sync the name of its file, which Python leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    """All files under a folder by name. Links to folders are followed; what can be reached twice is listed once, under
    the path with the fewest links, so that cycles end."""
    found: list[Path] = []
    seen: set[str] = set()
    starts = [folder]
    while starts:
        links: list[Path] = []
        for root, names, files in (entry for start in starts for entry in os.walk(start)):
            if (real := os.path.realpath(root)) in seen:
                names.clear()
                continue
            seen.add(real)
            found += [Path(root, name) for name in files]
            links += [path for name in names if (path := Path(root, name)).is_symlink()]
        starts = sorted(links)
    return sorted(path for path in found if path.is_file())


Record = dict[str, Any]

T = TypeVar("T")


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


def _line(record: Mapping[str, Any]) -> str:
    """Values may be numpy or torch scalars."""
    return json.dumps(dict(record), default=float) + "\n"


DIGESTS_FILE = "digests.json"

Digests = dict[str, str]
"""Relative name -> SHA-256 of each file of a folder."""


def write_checked_folder(folder: Path, write: Callable[[Path], object]) -> None:
    """`write_folder`, with the digests of what was written in `DIGESTS_FILE`."""

    def filled(partial: Path) -> None:
        write(partial)
        write_whole(partial / DIGESTS_FILE, json.dumps(folder_digests(partial), indent=1) + "\n")

    write_folder(folder, filled)


def folder_damage(folder: Path) -> str | None:
    """What is wrong with a folder of `write_checked_folder`, naming a file; None if nothing is."""
    path = folder / DIGESTS_FILE
    try:
        digests = json.loads(path.read_text())
    except FileNotFoundError:
        return f"{path} is missing"
    except ValueError:
        return f"{path} is damaged (no JSON)"
    return damaged_file(folder, digests)


def damaged_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """The first file that is missing or not what it was, in words; None if all are whole. Others are not looked at."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if file_digest(path) != digest:
            return f"{path} is damaged ({path.stat().st_size} bytes that are not those that were written)"
    return None


def folder_digests(folder: Path) -> Digests:
    """Digests of all files under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
