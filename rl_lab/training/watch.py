"""Alarms of a stage while it runs: each kind is said once, logged, and so part of the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from algos.alarms import nothing_learned_alarm
from rl_lab.graph.stage import StageContext

Alarm = Callable[[Sequence[dict[str, Any]]], str | None]
"""From the lines so far to a text that begins with its kind and a colon, or None."""
WINDOW = 10
"""Steps in a row that teach nothing before a stage says so; all of a shorter stage."""


def nothing_learned(steps: int) -> Alarm:
    """The alarm of a stage of so many steps."""
    return partial(nothing_learned_alarm, window=min(WINDOW, steps))


class Watch:
    """The lines of a stage, and what alarms have found in them."""

    def __init__(self, context: StageContext) -> None:
        self.context = context
        self.lines: list[dict[str, Any]] = []
        self._raised: set[str] = set()
        """Kinds."""

    def add(self, *lines: dict[str, Any]) -> None:
        """Lines of steps, or those of a run that is resumed with its alarms among them."""
        self._raised |= {line["alarm"].partition(":")[0] for line in lines if "alarm" in line}
        self.lines += [line for line in lines if "alarm" not in line]

    def look(self, step: int, *alarms: Alarm) -> None:
        """Ask alarms; what they find is said and logged, once of each kind."""
        for alarm in alarms:
            text = alarm(self.lines)
            if text is not None and text.partition(":")[0] not in self._raised:
                self.add({"alarm": text})
                self.context.say(f"step {step}: {text}")
                self.context.log(step, alarm=text)
