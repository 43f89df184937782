"""One person correcting one failure after the other."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from envs.rollback import Failure, Place, RollbackConfig, Trace
from envs.types import ControlledEnv, camera_images
from rl_lab.teleoperation.keys import SWITCH, keyboard

EARLIER, LATER, UNDO, NEXT = "[", "]", "Backspace", "n"
SHIFT_STEPS = 4
"""Control steps by which EARLIER and LATER move the start of a correction."""
UNDONE_STEPS = 5
VIEW = 480
"""Height of the picture for people in pixels; the policy's views stand below it."""


@dataclass
class FailedEpisode:
    """An episode of the policy that ended in a failure; `env` stands where it ended."""

    env: ControlledEnv
    seed: int
    trace: Trace
    failure: Failure

    @property
    def episode(self) -> tuple[str, str, int]:
        """Task, variant and seed."""
        return self.env.task, self.env.variant, self.seed


class CorrectionSession:
    """Keys in, pictures and finished corrections out."""

    def __init__(
        self,
        failures: Iterator[FailedEpisode],
        keep: Callable[[Place, np.ndarray], None],
        config: RollbackConfig,
    ) -> None:
        """`keep` is given each correction that reached success: from where, and its commands [T, A]."""
        self._failures, self._keep, self._config = failures, keep, config
        self.kept = 0
        self._next()

    def press(self, key: str) -> dict[str, Any]:
        """Do what a key says; unknown ones do nothing. Returns `status`."""
        if self._failed is None:
            return self.status()
        if key == NEXT:
            self._next()
        elif key == SWITCH:
            self._keyboard.switch()
        elif key == UNDO and not self._is_kept:
            self._correction.rewind(UNDONE_STEPS)
            self._hold()
        elif key in (EARLIER, LATER) and not len(self._correction):
            self._begin(self._start + (SHIFT_STEPS if key == LATER else -SHIFT_STEPS))
        elif self._ended is None:
            command = self._keyboard.press(key)
            if command is not None:
                self._advance(command)
        return self.status()

    def status(self) -> dict[str, Any]:
        """Where the session stands, as words and numbers."""
        if self._failed is None:
            return {"over": True, "kept": self.kept}
        task, variant, seed = self._failed.episode
        return {
            "over": False,
            "kept": self.kept,
            "task": task,
            "variant": variant,
            "seed": seed,
            "instruction": self._failed.env.instruction,
            "failure": self._failed.failure.name,
            "failed_at": self._failed.trace.first_step + len(self._failed.trace),
            "start": self._failed.trace.first_step + self._start,
            "steps": len(self._correction),
            "limit": self._limit,
            "moves": self._keyboard.moves,
            "keys": self._keyboard.help,
            "note": self._keyboard.note,
            "ended": self._ended,
        }

    def picture(self) -> bytes:
        """PNG of the scene now: as the robot sees it, its left on the left, and what the policy sees."""
        canvas = Image.new("RGB", (VIEW * 4 // 3, VIEW + VIEW * 4 // 9))
        if self._failed is not None:
            env, views = self._failed.env, camera_images(self._failed.env.observe())
            side = VIEW * 4 // 3 // max(3, len(views))
            canvas.paste(Image.fromarray(env.steering_view(VIEW, VIEW * 4 // 3)))
            for place, view in enumerate(views):
                shown = Image.fromarray(view).resize((side, side), Image.Resampling.NEAREST)
                canvas.paste(shown, (place * side, VIEW))
        buffer = io.BytesIO()
        canvas.save(buffer, "PNG")
        return buffer.getvalue()

    def _next(self) -> None:
        self._failed = next(self._failures, None)
        if self._failed is not None:
            self._begin(self._latest)

    @property
    def _latest(self) -> int:
        """The last step from which a correction makes a pair: the loser behind it has a whole chunk."""
        assert self._failed is not None
        return max(0, self._failed.failure.event - self._config.rollback_steps[0])

    def _begin(self, start: int) -> None:
        assert self._failed is not None
        self._start = min(max(start, 0), self._latest)
        env = self._failed.env
        env.load(self._failed.trace.snapshots[self._start])
        self._correction, self._is_kept = Trace(env), False
        self._keyboard = keyboard(env, self._failed.trace.actions[: self._start])

    def _hold(self) -> None:
        """Command what was commanded last, after steps were taken back."""
        assert self._failed is not None
        if self._correction.actions:
            self._keyboard.hold(self._correction.actions[-1])
        else:
            self._keyboard = keyboard(self._failed.env, self._failed.trace.actions[: self._start])

    def _advance(self, command: np.ndarray) -> None:
        assert self._failed is not None
        self._correction.advance(command)
        if self._failed.env.success and not self._is_kept:
            self._keep((*self._failed.episode, self._correction.first_step), np.stack(self._correction.actions))
            self._is_kept = True
            self.kept += 1

    @property
    def _limit(self) -> int:
        """Steps that a correction may take."""
        assert self._failed is not None
        return self._config.correction_limit or self._failed.env.correction_limit

    @property
    def _ended(self) -> str | None:
        """Why no further step is taken; None: go on."""
        assert self._failed is not None
        if self._is_kept:
            return "success"
        if len(self._correction) >= self._limit:
            return "too long"
        return self._failed.env.diagnose().failure


def correction_line(place: Place, actions: np.ndarray) -> str:
    """A correction as a line of the file that `collect.corrector: {kind: recorded, path: FILE}` reads."""
    task, variant, seed, step = place
    row = {"task": task, "variant": variant, "seed": seed, "step": step, "actions": actions.tolist()}
    return json.dumps(row) + "\n"
