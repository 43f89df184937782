"""A check in a process of its own: what it finds comes row by row, and whatever happens to it becomes a row too.

Processes are spawned, not forked, because CUDA does not survive a fork.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any

from rl_lab.benchmarks.gpu.table import Row

Check = Callable[..., Iterator[Row]]
LONGEST_ERROR = 300
"""Letters of an error's last line that the table shows."""


def rows_of(check: Check, options: dict[str, Any], limit_s: float) -> Iterator[Row]:
    """Rows of a check as it finds them; the last tells of an error, a death or the time limit, after which it ends."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sending, check, options))
    deadline = time.monotonic() + limit_s
    process.start()
    sending.close()
    try:
        while (left := deadline - time.monotonic()) > 0 and receiving.poll(left):
            row = receiving.recv()
            if row is None:
                return
            yield row
        yield Row("", f"stopped at its limit of {limit_s:.0f} s")
    except EOFError:
        process.join(timeout=10)
        yield Row("", f"its process died with code {process.exitcode}")
    finally:
        process.kill()
        process.join()
        receiving.close()


def _work(sending: Connection, check: Check, options: dict[str, Any]) -> None:
    """What the process does."""
    try:
        for row in check(**options):
            sending.send(row)
    except Exception as error:  # any fault of a check is a row of the table
        traceback.print_exc(file=sys.stderr)
        sending.send(Row("", last_line(error)))
    sending.send(None)


def last_line(error: BaseException) -> str:
    """The end of an error, as Python would print it."""
    lines = "".join(traceback.format_exception_only(error)).strip().splitlines()
    return f"failed: {lines[-1][:LONGEST_ERROR]}"
