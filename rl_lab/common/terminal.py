"""Progress of stages that run side by side: bars on a terminal, a line every now and then in a log file."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * width for width in widths]

    def written(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(written(line) for line in (lines[0], rule, *lines[1:]))


LINE_SECONDS = 15.0
SAY_AGAIN_S = 2.0
"""Until the time of the whole run is estimated anew."""


class ProgressBars:
    """One bar for each stage that reports progress; safe to use from several threads."""

    def __init__(self, run_left: Callable[[], str] = lambda: "") -> None:
        """`run_left` says, behind each bar, how long all of the run still takes."""
        self._lock = threading.Lock()
        self._run_left = run_left
        self._said, self._said_until = "", 0.0
        self._began: dict[str, tuple[float, int]] = {}
        self.running: dict[str, tuple[float, float]] = {}
        """Of each stage that has come further: seconds so far, and seconds that the rest takes at this rate."""
        self.counts: dict[str, tuple[int, int]] = {}
        """Of each stage that reports progress: done, and of how many."""
        self._terminal = sys.stderr.isatty()
        self._bars: dict[str, tqdm] = {}
        self._lines: dict[str, tuple[float, int, float]] = {}
        """Without a terminal: start time, first count and time of the last line of each stage."""

    def update(self, name: str, done: int, total: int, text: str = "") -> None:
        """Show `done` of `total` for a stage, its rate and the remaining time."""
        with self._lock:
            self.counts[name] = done, total
            start, first = self._began.setdefault(name, (time.monotonic(), done))
            if done > first:
                spent = time.monotonic() - start
                self.running[name] = (spent, spent * (total - done) / (done - first))
            if time.monotonic() >= self._said_until:
                self._said, self._said_until = self._run_left(), time.monotonic() + SAY_AGAIN_S
            text = ", ".join(filter(None, (text, self._said)))
            (self._update_bar if self._terminal else self._update_line)(name, done, total, text)

    def _update_bar(self, name: str, done: int, total: int, text: str) -> None:
        if name not in self._bars:
            self._bars[name] = tqdm(desc=name, total=total, initial=done, leave=False, dynamic_ncols=True)
        bar = self._bars[name]
        bar.total = total
        bar.set_postfix_str(text, refresh=False)
        bar.update(done - bar.n)

    def _update_line(self, name: str, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        start, first, last = self._lines.setdefault(name, (now, done, now))
        if now - last >= LINE_SECONDS:
            self._lines[name] = (start, first, now)
            meter = tqdm.format_meter(done, total, now - start, initial=first, ncols=0, prefix=name, postfix=text)
            print(meter, file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line without breaking the bars."""
        with self._lock:
            tqdm.write(text, file=sys.stderr)

    def close(self, name: str) -> None:
        """Remove the bar of a stage that has ended."""
        with self._lock:
            for found in (self._lines, self._began, self.running, self.counts):
                found.pop(name, None)
            if name in self._bars:
                self._bars.pop(name).close()
