"""Joint training without processes: engines, simulators and a learner whose two skills are numbers."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.rollback import Collection
from rl_lab.config.load import load_config
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageConfig, StageContext
from rl_lab.model.checkpoint import Snapshot, digest
from rl_lab.records.episodes import read_pairs
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.records.types import RolloutGroup
from rl_lab.stages.kinds import KINDS
from rl_lab.terminal import ProgressBars
from rl_lab.training.interleaved import JointRun
from rl_lab.training.state import JointState
from rl_lab.workers.learner import Learned, Weights
from rl_lab.workers.simulation import Unit
from tests.language.builders import FakeEngines, Killed, make_item, write_questions
from tests.rollouts import advantages_of
from tests.support.recorded import pair

CONFIG = """
name: joint
env: {backend: tabletop}
stages: [demos, questions, warm_start, joint]
questions: {development: 40}
grpo: {num_generations: 4, max_completion_length: 16}
engine: {prompts_per_call: 3}
curriculum: {batch_size: 4, explore: 0.5}
rl: {steps: 4, warmup: 0, max_refills: 1}
collect: {pairs: 2, max_episodes: 40}
optimise: {steps: 6, warmup: 0}
joint: {rounds: 2, block: 2, collect_ahead: 1, exam_every: 3, exam_episodes: 40, guard: {allowed: 0.1}}
checkpoint_every: 2
wandb: disabled
"""
TURNS = 4 + 2 * 3
DEVELOPMENT = range(2000, 2040)
START_RATE = 0.6
HELPS = {"grpo": {"language": 0.02, "actions": 0.0}, "rpro": {"language": 0.0, "actions": 0.02}}
"""What a turn of an objective does to each skill."""


def write_joint_questions(folder: Path) -> Path:
    """The output of a `questions` stage with development questions."""
    write_questions(folder)
    write_rows(folder / "development.arrow", (item_row(make_item(number)) for number in DEVELOPMENT))
    return folder


class FakePool:
    """Units are done in threads, each after a moment of its own if there are `delays`."""

    def __init__(self, delays: np.random.Generator | None = None) -> None:
        self.num_workers, self.busy_s = 2, 0.0
        self._threads, self._delays = ThreadPoolExecutor(2), delays

    def submit(self, call: Callable[[Any, Any], Any], units: Iterable[Any]) -> list[Future]:
        """See `WorkerPool.submit`."""
        waits = [0.0 if self._delays is None else float(self._delays.random() * 0.03) for _ in range(100)]

        def run(unit: Any, seconds: float) -> Any:
            time.sleep(seconds)
            return call(SimpleNamespace(**self.remote()), unit)

        return [self._threads.submit(run, unit, seconds) for unit, seconds in zip(units, waits, strict=False)]

    def results(self, batch: list[Future], check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """See `WorkerPool.results`."""
        for future in batch:
            check_stop()
            yield future.result()

    def map(self, call: Any, units: Iterable[Any], check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """See `WorkerPool.map`."""
        for unit in units:
            yield from self.results(self.submit(call, [unit]), check_stop)

    def remote(self) -> dict[str, Any]:
        """Methods of an actor."""
        raise NotImplementedError


class Engines(FakePool):
    """An answer is right if the item's own number is below the weights' language rate."""

    def __init__(self, policy: Path, delays: np.random.Generator | None = None) -> None:
        super().__init__(delays)
        items = [make_item(number) for number in [*range(24), *DEVELOPMENT]]
        self.fake = _Answering(policy, items)

    def remote(self) -> dict[str, Any]:
        return {"generate": SimpleNamespace(remote=self.fake.generate)}


class _Answering(FakeEngines):
    def _answers(self, prompt: Any, count: int, snapshot: Snapshot) -> list[Any]:
        rates = json.loads(snapshot.files["rates"])
        draw = np.random.default_rng(prompt.seed)
        self.rate = lambda item: rates["language"]
        item = self.items[tuple(prompt.tokens)]
        self.asked.append((snapshot.version, item.id))
        return [self._answer(item, prompt, draw, snapshot.version) for _ in range(count)]


class Simulators(FakePool):
    """An episode succeeds if its seed's own number is below the weights' action rate; every unit gives two pairs."""

    def __init__(self, delays: np.random.Generator | None = None) -> None:
        super().__init__(delays)
        self.collected: list[tuple[int, tuple[int, ...]]] = []
        """(weight version, seeds) of every unit."""

    def remote(self) -> dict[str, Any]:
        return {name: SimpleNamespace(remote=getattr(self, name)) for name in ("evaluate", "collect")}

    def evaluate(self, unit: Unit, snapshot: Snapshot, execute: int) -> list[dict[str, Any]]:
        """See `Simulation.evaluate`."""
        rate = json.loads(snapshot.files["rates"])["actions"]
        return [{"seed": seed, "success": bool(np.random.default_rng(seed).random() < rate)} for seed in unit.seeds]

    def collect(self, unit: Unit, snapshot: Snapshot, rollback: Any, corrector: Any) -> Collection:
        """See `Simulation.collect`."""
        self.collected.append((snapshot.version, unit.seeds))
        made = [pair(seed, winner_steps=10, loser_steps=9) for seed in unit.seeds[:1]]
        for one in made:
            one.weight_version = snapshot.version
        return Collection(made, Counter(episodes=len(unit.seeds)))


class FakeJointLearner:
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

    def snapshot(self, weights: Weights) -> Snapshot:
        return weights.reference

    def share(self, snapshot: Snapshot) -> Weights:
        return Weights(snapshot.version, snapshot)


OWN = {"grpo": "language", "rpro": "actions"}


class FakeJoint:
    """An arm in a folder: started, killed, resumed."""

    def __init__(
        self, run: Path, questions: Path, policy: Path, *overrides: str, arm: str = "together", effects: Any = HELPS
    ) -> None:
        run.mkdir(parents=True)
        self.path, self.questions, self.policy, self.overrides = run, questions, policy, overrides
        self.arm, self.effects, self.out = arm, effects, run / "work" / "out"
        self.kill_at: int | None = None
        """Turn after whose line the process dies."""
        self.delays: np.random.Generator | None = None

    def context(self) -> StageContext:
        """The `joint` stage of the arm, as the executor gives it, also a second time after a kill."""
        file = self.path.parent / "joint.yaml"
        file.write_text(CONFIG)
        config = load_config(file, self.overrides)
        node = Node(f"{self.arm}.joint", KINDS["joint"], {"arm": self.arm}, objective=config.objective("rpro"))
        out, scratch = self.path / "work" / "out", self.path / "work" / "scratch"
        for folder in (out, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        folder = RunFolder(self.path)
        folder.keep_metrics(lambda line: False)
        inputs = {role: self.questions for role in ("questions", "development", "demos")}
        return StageContext(
            node=node,
            config=StageConfig(config, KINDS["joint"]),
            inputs=inputs,
            out=out,
            scratch=scratch,
            seed=config.seed,
            _folder=folder,
            _bars=ProgressBars(),
            _stop=threading.Event(),
            _track=self._track,
        )

    def start(self, **learner: Any) -> FakeJoint:
        """Run to the end, from the last checkpoint if there is one, by a learner with these attributes."""
        context = self.context()
        try:
            self.engines, self.simulators = Engines(self.policy, self.delays), Simulators(self.delays)
            state = JointState(context.out, context.scratch, context.say)
            self.learner = FakeJointLearner(state.learner_state, self.effects)
            for name, value in learner.items():
                setattr(self.learner, name, value)
            self.run = JointRun(context, self.policy, self.engines, self.simulators, self.learner, state)  # type: ignore[arg-type]
            self.run.run()
        finally:
            context._folder.close()
        return self

    def _track(self, line: dict[str, Any]) -> None:
        if line["step"] == self.kill_at and "alarm" not in line:
            self.kill_at = None
            raise Killed

    def metrics(self) -> list[dict[str, Any]]:
        """Lines without wall times."""
        lines = [json.loads(line) for line in (self.out / "metrics.jsonl").read_text().splitlines()]
        volatile = ("time", "seconds/", "idle/")
        return [{key: value for key, value in line.items() if not key.startswith(volatile)} for line in lines]
