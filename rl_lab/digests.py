"""SHA-256 of files, and folders that carry those of their own files, so that damage is found before it is learned from.

A rename makes a folder appear whole, but a power cut, a full disk of a storage server or a person can still shorten a
file afterwards.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from rl_lab.files import write_folder, write_whole

DIGESTS_FILE = "digests.json"
Digests = dict[str, str]
"""Relative name -> SHA-256 of each file of a folder."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digests(folder: Path) -> Digests:
    """Digests of all files under a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in paths}


def damaged_file(folder: Path, digests: Mapping[str, str]) -> str | None:
    """The first file that is missing or not what it was, in words; None if all are whole. Others are not looked at."""
    for name, digest in digests.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if file_digest(path) != digest:
            return f"{path} is damaged ({path.stat().st_size} bytes that are not those that were written)"
    return None


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
