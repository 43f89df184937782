"""Files and folders that are written whole or not at all: a temporary name beside the target, then a rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO


def write_file(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Fill a file with `write(file)` so that a reader, or a run resumed after a kill, sees all of it or the one before.

    The temporary name starts with a dot.
    """
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def write_whole(path: Path, text: str) -> None:
    """Write a text file in UTF-8, as `write_file` does."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def write_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder with `write(partial)`, then give it its name; an old one is replaced."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
