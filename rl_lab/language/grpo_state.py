"""Where a run of GRPO is, kept so that a killed run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rl_lab.files import write_folder, write_whole
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.pool.store import POOL_FILE, PoolStore
from rl_lab.workers.weights import Snapshot, publish, pull

HELD_OUT_FILE = "held_out.jsonl"
"""Short examinations of the run: step, tokens so far, rewards of the held-out items."""
PROGRESS_FILE = "progress.json"


@dataclass
class Progress:
    """Counts since the start of the run."""

    step: int = 0
    """Selections of the curriculum that are done."""
    batches: int = 0
    """Of these, batches that were for learning."""
    tokens: int = 0
    """Tokens that the engines wrote for them, refills included."""


def _pull(snapshot: Snapshot, folder: Path) -> None:
    pull(snapshot, folder)


class RunState:
    """Checkpoints of one run: learner and older weights in `scratch`, the pool at every checkpoint in `out`."""

    def __init__(self, out: Path, scratch: Path) -> None:
        self.out, self.scratch = out, scratch
        path = scratch / PROGRESS_FILE
        self.progress = Progress(**json.loads(path.read_text())) if path.is_file() else Progress()

    @property
    def learner_state(self) -> Path | None:
        """The learner's state at the last checkpoint; None before the first."""
        return self._learner_path() if self.progress.step else None

    def _learner_path(self) -> Path:
        return self.scratch / f"learner-{self.progress.step}.pt"

    def _weights_path(self, version: int) -> Path:
        return self.scratch / f"weights-{version}"

    def _checkpoint(self) -> Path:
        return self.out / "checkpoints" / f"step-{self.progress.step}"

    def open_pool(self, create: Callable[[Path], PoolStore]) -> PoolStore:
        """The pool as it was at the last checkpoint, or a new one, which is kept as checkpoint 0.

        So edits that somebody gives before the first checkpoint outlive a kill like all others.
        """
        path = self.out / POOL_FILE
        if (self._checkpoint() / POOL_FILE).is_file():
            return PoolStore.restore(self._checkpoint(), path)
        pool = PoolStore(path) if path.is_file() else create(path)
        pool.checkpoint(self._checkpoint())
        return pool

    def weights(self, version: int) -> Snapshot:
        """Older weights that the last checkpoint kept, because answers to come were asked of them."""
        return publish(self._weights_path(version), version)

    def forget_later(self) -> None:
        """Drop the short examinations after the last checkpoint; they come again."""
        path = self.out / HELD_OUT_FILE
        lines = read_json_lines(path, missing_ok=True)
        kept = [line for line in lines if self.progress.step and line["step"] <= self.progress.step]
        write_json_lines(path, kept)

    def save(self, pool: PoolStore, save_learner: Callable[[Path], None], older: Sequence[Snapshot] = ()) -> None:
        """Make this the state to continue from. A kill in between leaves the one before."""
        save_learner(self._learner_path())
        needed = {self._learner_path()}
        for snapshot in older:
            path = self._weights_path(snapshot.version)
            needed.add(path)
            if not path.exists():  # else the checkpoint before needs them too
                write_folder(path, partial(_pull, snapshot))
        pool.checkpoint(self._checkpoint())
        write_whole(self.scratch / PROGRESS_FILE, json.dumps(asdict(self.progress)))
        for old in {*self.scratch.glob("learner-*.pt"), *self.scratch.glob("weights-*")} - needed:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
