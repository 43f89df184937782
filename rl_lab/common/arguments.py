"""What commands take from their command line: paths, whole numbers, and where they may write."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

from rl_lab.common.errors import UserError

MAX_NAME = 255
"""Bytes of a name in a folder, of all file systems in use."""


class BadArgumentError(UserError, ArgumentTypeError):
    """An argument that cannot be meant; argparse puts the option's name before the message."""


def as_path(text: str) -> Path:
    """A path. BadArgumentError for one that is empty, too long, or would break a line of output that names it."""
    if not text:
        raise BadArgumentError("the path is empty; give a name, or . for this folder")
    if re.search("[\0-\x1f\x7f]", text):
        raise BadArgumentError(f"the path {text!r} holds control characters; rename it")
    if max(len(name.encode()) for name in text.split("/")) > MAX_NAME:
        raise BadArgumentError(f"a name in the path {text[:40]!r}... is longer than {MAX_NAME} bytes; shorten it")
    return Path(text)


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: whole numbers from `low` to `high`."""

    def read(text: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", text) or not low <= int(text) <= high:
            raise BadArgumentError(f"{text[:40]!r} is not allowed here; give a whole number from {low} to {high}")
        return int(text)

    return read


COUNT = whole_number(1, 10_000_000)


def check_output(target: Path, *read: Path) -> None:
    """UserError if `target`, which a command is to write, is one of the files and folders that it reads, or in one."""
    for path in read:
        same = target.exists() and path.exists() and target.samefile(path)
        if same or target.resolve().is_relative_to(path.resolve()):
            raise UserError(f"cannot write {target}: {path} is read by the same command; give a path outside of it")
