"""Where a run of GRPO is, kept so that a killed run goes on from its last checkpoint as if nothing had happened."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rl_lab.files import write_whole
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.language.rollout_store import RolloutStore
from rl_lab.learning.saved_states import LEARNER_FILE, SavedStates
from rl_lab.pool.store import POOL_FILE, PoolStore, remove_pool
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


class RunState:
    """Saved states of one run in `scratch`: learner, pool, older weights, examinations, counts.

    Copies of the pool stay in `out`.
    """

    def __init__(self, out: Path, scratch: Path, warn: Callable[[str], None]) -> None:
        """At the last state that is whole and that the stored rollouts lead to; `warn` is told of what is not."""
        self.out, self.states, self._warn = out, SavedStates(scratch), warn
        self.states.drop_damaged(warn)
        self._drop_damaged_rollouts(warn)
        self.states.drop_damaged(warn)
        self._newest = self.states.newest
        self.progress = Progress()
        if self._newest is not None:
            self.progress = Progress(**json.loads((self._newest / PROGRESS_FILE).read_text()))

    def _drop_damaged_rollouts(self, warn: Callable[[str], None]) -> None:
        """What a damaged file held is asked again, from a state before it."""
        store = RolloutStore(self.out)
        for step, damage in store.damaged():
            warn(f"{damage}; its step is done again")
            store.path(step).unlink()
            self.states.drop_from(step)

    @property
    def learner_state(self) -> Path | None:
        """The learner's state at the last checkpoint; None before the first."""
        return self.states.learner_state

    def _checkpoint(self) -> Path:
        return self.out / "checkpoints" / f"step-{self.progress.step}"

    def open_pool(self, create: Callable[[Path], PoolStore]) -> PoolStore:
        """The pool as it was at the last checkpoint, or a new one, which is kept as checkpoint 0.

        So edits that somebody gives before the first checkpoint outlive a kill like all others.
        """
        path = self.out / POOL_FILE
        if self._newest is not None:
            return PoolStore.restore(self._newest, path, self._warn)
        remove_pool(path)  # of states that are all lost
        pool = create(path)
        self._save(pool, lambda folder: None)
        return pool

    def weights(self, version: int) -> Snapshot:
        """Older weights that the last checkpoint kept, because answers to come were asked of them."""
        assert self._newest is not None, "no state holds older weights"
        return publish(_weights(self._newest, version), version)

    def forget_later(self) -> None:
        """Put back the short examinations up to the last checkpoint; later ones come again."""
        saved = self._newest if self.progress.step else None  # the state of step 0 comes before its examination
        lines = [] if saved is None else read_json_lines(saved / HELD_OUT_FILE)
        write_json_lines(self.out / HELD_OUT_FILE, lines)

    def save(self, pool: PoolStore, save_learner: Callable[[Path], None], older: Sequence[Snapshot] = ()) -> None:
        """Make this the state to continue from. A kill in between leaves the one before."""

        def learner(folder: Path) -> None:
            save_learner(folder / LEARNER_FILE)
            for snapshot in older:
                pull(snapshot, _weights(folder, snapshot.version))

        self._save(pool, learner)

    def _save(self, pool: PoolStore, learner: Callable[[Path], None]) -> None:
        def write(folder: Path) -> None:
            learner(folder)
            write_json_lines(folder / HELD_OUT_FILE, read_json_lines(self.out / HELD_OUT_FILE, missing_ok=True))
            _link(pool.checkpoint(self._checkpoint()), folder / POOL_FILE)
            write_whole(folder / PROGRESS_FILE, json.dumps(asdict(self.progress)))

        self.states.save(self.progress.step, write)
        self._newest = self.states.newest


def _weights(folder: Path, version: int) -> Path:
    return folder / f"weights-{version}"


def _link(source: Path, target: Path) -> None:
    """The same file under a second name, a copy where the file system has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
