"""What a stage continues from after a kill: its last two saved states, each checked before it is used."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rl_lab.common.files import folder_damage, write_checked_folder

LEARNER_FILE = "learner.pt"
KEPT = 2
"""A state that turns out damaged costs the steps since the one before it, not the stage."""


class SavedStates:
    """Folders `step-N` in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def steps(self) -> list[int]:
        """Steps with a state, in order."""
        return sorted(int(path.name.removeprefix("step-")) for path in self.folder.glob("step-*"))

    def path(self, step: int) -> Path:
        """Where the state of a step is, or would be."""
        return self.folder / f"step-{step}"

    @property
    def newest(self) -> Path | None:
        """The last state; None: begin anew. Call `drop_damaged` before the first look of a process."""
        return self.path(self.steps()[-1]) if self.steps() else None

    @property
    def last(self) -> int:
        """Step of the last state, 0 without any."""
        return max(self.steps(), default=0)

    @property
    def learner_state(self) -> Path | None:
        """The learner's in the last state; None where that comes before its first step, or there is none."""
        path = None if self.newest is None else self.newest / LEARNER_FILE
        return path if path is not None and path.exists() else None

    def save(self, step: int, write: Callable[[Path], object]) -> None:
        """Fill the state of a step by `write(folder)`, whole or not at all, and forget all but the last `KEPT`."""
        write_checked_folder(self.path(step), write)
        for old in self.steps()[:-KEPT]:
            shutil.rmtree(self.path(old))

    def drop_damaged(self, warn: Callable[[str], None]) -> None:
        """Remove the last states until one is whole; `warn` is told which file of each is not."""
        for step in reversed(self.steps()):
            damage = folder_damage(self.path(step))
            if damage is None:
                return
            warn(f"{damage}; the state of step {step} is dropped, going on from the one before it")
            shutil.rmtree(self.path(step))

    def drop_last(self, warn: Callable[[str], None]) -> None:
        """Remove the last state, and those before it that are damaged."""
        shutil.rmtree(self.path(self.last))
        self.drop_damaged(warn)

    def drop_from(self, step: int) -> None:
        """Remove the states of this and later steps, because something they build on is lost."""
        for later in self.steps():
            if later >= step:
                shutil.rmtree(self.path(later))
