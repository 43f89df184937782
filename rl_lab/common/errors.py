"""How commands fail: bad input is one line and exit code 2; what only running can find, and a full disk, one line and
exit code 1; anything else is our fault, a traceback and exit code 1.

Trouble with the disk is found in whatever exception it comes, and told in one line: what, where, and how to mend it.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import re
import sqlite3
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from envs.options import nearest


class UserError(ValueError):
    """Input that cannot work. The message is one line: what is wrong, where, and how to mend it."""

    exit_code = 2


class RunError(UserError):
    """The same of a fault that only running can find."""

    exit_code = 1


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, too, and whose help is what the command's file says of it."""

    def __init__(self, description: str = "", **options: Any) -> None:
        """`description`: the docstring of a file, whose first line is the call; or, of a part of a command, a line."""
        call, _, text = description.partition("\n")
        if "prog" not in options:
            options |= {"prog": " ".join(call.split()[:3]), "usage": call}
            description = text.strip()
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; UserError for bytes that are no text, which no file that names them could hold."""
        for text in sys.argv[1:] if args is None else args:
            if re.search("[\0\ud800-\udfff]", text):
                self.error(f"the argument {text!r} holds bytes that are no text in UTF-8")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting; with the nearest name for one that is unknown."""
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        option = re.search(r"unrecognized arguments: (-\S+)", message)
        hint = ""
        if choice:
            hint = nearest(choice[1], re.findall(r"[\w-]+", choice[2]))
        elif option:
            hint = nearest(option[1].partition("=")[0], self._option_string_actions)
        raise UserError(f"{message}{hint}; `{self.prog} --help` lists the arguments".replace("?;", "?"))


MAX_LINE = 1000
"""Characters of an error; what a file or a caller gave may be longer, and its middle is left out."""


def one_line(error: BaseException) -> str:
    """The message of an error for the terminal."""
    text = " ".join(str(error).split())
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE // 2]} ... {text[-MAX_LINE // 2 :]}"


def run_command(main: Callable[[], int]) -> NoReturn:
    """Exit with the code of a command: its own, 2 after printing the line of a UserError, 130 after Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as stderr: names may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = main()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        trouble = disk_error(error, "the command's files")
        if trouble is None:
            raise
        print(f"error: {trouble}", file=sys.stderr)
        code = trouble.exit_code
    sys.stdout.flush()
    sys.exit(code)


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
