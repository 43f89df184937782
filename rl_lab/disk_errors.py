"""Trouble with the disk, in whatever exception it comes, as one line: what, where, and how to mend it."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class _Trouble:
    what: str
    mend: str
    exit_code: int
    """1: the machine's fault. 2: of how the command was called."""


FULL = _Trouble("no space is left on the disk", "free some", 1)
BROKEN = _Trouble("the disk reports an input/output error", "see what is wrong with it", 1)
READ_ONLY = _Trouble("the file system is read-only", "make it writable", 2)
NO_NAME = _Trouble("that cannot be the name of a file", "give a path that is short enough and below a folder", 2)
FORBIDDEN = _Trouble("permission denied", "allow this user to write there", 2)

_BY_ERRNO = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EIO: BROKEN,
    errno.EROFS: READ_ONLY,
    errno.EACCES: FORBIDDEN,
    errno.EPERM: FORBIDDEN,
    errno.ENAMETOOLONG: NO_NAME,
    errno.ENOTDIR: NO_NAME,
    errno.ELOOP: NO_NAME,
}
_BY_SQLITE_CODE = {sqlite3.SQLITE_FULL: FULL, sqlite3.SQLITE_IOERR: BROKEN, sqlite3.SQLITE_READONLY: READ_ONLY}
_BY_TEXT = {
    "No space left on device": FULL,
    "os error 28": FULL,
    "Disk quota exceeded": FULL,
    "Read-only file system": READ_ONLY,
    "os error 30": READ_ONLY,
}
"""For errors of other languages, and for those that gather several in a text (`shutil.Error`)."""


class DiskError(RuntimeError):
    """The disk does not take what has to be written. The message is one line."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple:
        return DiskError, (str(self), self.exit_code)


def disk_error(error: BaseException, place: str) -> DiskError | None:
    """What an exception, or one behind it, says about the disk; None if nothing. `place`: where, if it does not say."""
    for cause in _causes(error):
        if isinstance(cause, DiskError):
            return cause
        trouble = _trouble(cause)
        if trouble is not None:
            path = getattr(cause, "filename", None) or place
            return DiskError(f"{path}: {trouble.what}; {trouble.mend}", trouble.exit_code)
    return None


def _trouble(error: BaseException) -> _Trouble | None:
    if isinstance(error, OSError) and error.errno is not None:
        return _BY_ERRNO.get(error.errno)
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None:
        return _BY_SQLITE_CODE.get(code & 0xFF)
    return next((trouble for text, trouble in _BY_TEXT.items() if text in str(error)), None)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and those behind it, innermost last. Ray keeps a worker's own in `cause`.

    A refused permission that was only the occasion of another error is left out: it may have been dealt with.
    """
    waiting, seen = [error], set[int]()
    while waiting:
        found = waiting.pop(0)
        if id(found) in seen:
            continue
        seen.add(id(found))
        yield found
        occasion = None if isinstance(found.__context__, PermissionError) else found.__context__
        behind = (getattr(found, "cause", None), found.__cause__, occasion)
        waiting += [cause for cause in behind if isinstance(cause, BaseException)]
