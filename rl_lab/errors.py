"""How commands fail: bad input is one line and exit code 2; what only running can find, and a full disk, one line and
exit code 1; anything else is our fault, a traceback and exit code 1."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from rl_lab.disk_errors import disk_error


class UserError(ValueError):
    """Input that cannot work. The message is one line: what is wrong, where, and how to mend it."""

    exit_code = 2


class RunError(UserError):
    """The same of a fault that only running can find."""

    exit_code = 1


class CommandParser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, too."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; UserError for bytes that are no text, which no file that names them could hold."""
        for text in sys.argv[1:] if args is None else args:
            if re.search("[\0\ud800-\udfff]", text):
                self.error(f"the argument {text!r} holds bytes that are no text in UTF-8")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage and exiting."""
        raise UserError(f"{message}; `{self.prog} --help` lists the arguments")


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
