"""Files and folders that are written whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give the OSError of a write, a flush or a sync the name of its file, which Python leaves out."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


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


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_file` does."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


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


def sync(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
