"""Learners that are plain objects: a number, or two skills, instead of weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rl_lab.model.checkpoint import Snapshot, digest
from rl_lab.records.episodes import read_pairs
from rl_lab.records.types import RolloutGroup
from rl_lab.workers.learner import Learned, Weights
from tests.support.rollouts import advantages_of


class Killed(Exception):  # noqa: N818 - no error: what stands for a SIGKILL
    """The process is gone."""


class _Learner:
    """What every learner does with its weights."""

    def snapshot(self, weights: Weights) -> Snapshot:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        return weights.reference

    def share(self, snapshot: Snapshot) -> Weights:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        return Weights(snapshot.version, snapshot)


class FakeLearner(_Learner):
    """Weights that are one number, moved by everything that a batch holds."""

    def __init__(self, state: Path | None, start: int = 1) -> None:
        self.start, self.batches, self.weight = start, 0, 0.0
        if state is not None:
            self.batches, self.weight = json.loads(state.read_text())
        self.learned: list[list[RolloutGroup]] = []
        self.error: str | None = None
        self.mismatch = 0.0
        self.die_at: int | None = None
        """Batch that is not survived."""
        self.die_after: str | None = None
        """`save` or `finish`: the call that is the last."""

    def publish(self) -> Weights:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        files = {"weight": repr(self.weight).encode()}
        version = self.start + self.batches
        return Weights(version, Snapshot(version, digest(files), files))

    def learn(self, groups: list[RolloutGroup], bad_batch: Path) -> tuple[Learned, Weights]:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        if self.batches + 1 == self.die_at:
            raise Killed
        self.learned.append(groups)
        rows = [group.completions for group in groups]
        seen: list[Any] = [torch.tensor(advantages_of(groups)).tolist()]
        seen += [[[answer.reward is not None for answer in row] for row in rows]]
        seen += [[[answer.tokens, answer.logprobs, answer.weight_version] for answer in row] for row in rows]
        total = int(hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:8], 16) / 2**32
        self.batches, self.weight = self.batches + 1, 0.5 * self.weight + total
        weights = self.publish()
        signal = float(np.mean([any(row) for row in advantages_of(groups)]))
        metrics = {"loss": self.weight, "mismatch/newest": self.mismatch, "grad_norm": self.weight}
        metrics |= {"groups/with_signal": signal} if groups[0].size > 1 else {}  # else it imitates
        if self.error is not None:
            raise RuntimeError(self.error)
        return Learned(metrics, weights.version, 0.0), weights

    def save(self, path: Path) -> None:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        path.write_text(json.dumps([self.batches, self.weight]))
        self._end("save")

    def finish(self, folder: Path) -> None:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        (folder / "model").write_text(repr(self.weight))
        self._end("finish")

    def _end(self, call: str) -> None:
        if call == self.die_after:
            raise Killed


HELPS = {"grpo": {"language": 0.02, "actions": 0.0}, "rpro": {"language": 0.0, "actions": 0.02}}
"""What a turn of an objective does to each skill."""
OWN = {"grpo": "language", "rpro": "actions"}
START_RATE = 0.6


class FakeJointLearner(_Learner):
    """Skills that every turn moves by a fixed amount, and a hash of all that was learned."""

    def __init__(self, state: Path | None, effects: dict[str, dict[str, float]] = HELPS) -> None:
        self.effects = effects
        self.changes, self.seen = 0, ""
        self.moved = {part: {"language": 0.0, "actions": 0.0} for part in effects}
        self.rate = dict.fromkeys(effects, 1.0)
        self.frozen: list[str] = []
        self.rounds: tuple[Path, ...] = ()
        self.mismatch, self.grad_norm = 0.0, 1.0
        self.die_at: int | None = None
        """Turn that is not survived."""
        if state is not None:
            self._set(json.loads(state.read_text()))

    def _state(self) -> dict[str, Any]:
        names = ("changes", "seen", "moved", "rate", "frozen")
        return {name: getattr(self, name) for name in names}

    def _set(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def _published(self, without: str | None = None) -> Weights:
        rates = {
            skill: START_RATE + sum(moves[skill] for part, moves in self.moved.items() if part != without)
            for skill in ("language", "actions")
        }
        files = {"rates": json.dumps(rates).encode(), "seen": self.seen.encode()}
        version = 1 + self.changes
        return Weights(version, Snapshot(version, digest(files), files))

    def publish(self) -> Weights:
        return self._published()

    def publish_without(self, objective: str) -> Weights:
        return self._published(objective)

    def use_pairs(self, rounds: tuple[Path, ...]) -> None:
        self.rounds = rounds

    def learn(self, groups: list[RolloutGroup], bad_batch: Path) -> tuple[Learned, Weights]:
        what = [[[answer.tokens, answer.weight_version] for answer in group.completions] for group in groups]
        return self._learned("grpo", [what, advantages_of(groups)])

    def learn_pairs(self, steps: int, bad_batch: Path) -> tuple[Learned, Weights]:
        pairs = [[one.seed, one.weight_version] for folder in self.rounds for one in read_pairs(folder)]
        return self._learned("rpro", [steps, pairs])

    def _learned(self, part: str, what: Any) -> tuple[Learned, Weights]:
        if self.changes + 1 == self.die_at:
            raise Killed
        self.seen = hashlib.sha256((self.seen + json.dumps(what)).encode()).hexdigest()
        for skill, effect in self.effects[part].items():
            frozen = part in self.frozen and self.effects[part] is not None and skill != OWN[part]
            self.moved[part][skill] += 0.0 if frozen else self.rate[part] * effect
        self.changes += 1
        weights = self.publish()
        loss = int(self.seen[:8], 16) / 2**32
        metrics = {
            "loss": loss,
            "grad_norm": self.grad_norm,
            "drift/vlm": 0.01 * self.changes,
            "mismatch/newest": self.mismatch,
        }
        return Learned(metrics, weights.version, 0.0), weights

    def lower(self, objective: str, factor: float) -> None:
        self.rate[objective] *= factor

    def freeze(self, objective: str) -> None:
        self.frozen.append(objective)

    def roll_back(self, state: Path, objective: str, factor: float) -> None:
        now = self._state()
        self._set(json.loads(state.read_text()) | {"rate": now["rate"], "frozen": now["frozen"]})
        self.changes = now["changes"] + 1
        self.lower(objective, factor)

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(self._state()))

    def finish(self, folder: Path) -> None:
        (folder / "model").write_text(json.dumps(self._state()))
