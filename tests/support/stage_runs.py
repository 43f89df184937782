"""Stages on plain objects in a run folder: started, killed, resumed, as the executor does it."""

import json
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.common.terminal import ProgressBars
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageConfig, StageContext
from rl_lab.records.rollouts import RolloutStore
from rl_lab.stages.distill import DistillRun, ImitateRun
from rl_lab.stages.grpo import GRPORun
from rl_lab.stages.kinds import KINDS, load_config
from rl_lab.training.interleaved import JointRun
from rl_lab.training.state import JointState, RunState
from tests.support.engines import FakeEngines, FakeTeacher, SkilledEngines, SkilledSimulators
from tests.support.learners import HELPS, FakeJointLearner, FakeLearner, Killed
from tests.support.pools import content
from tests.support.questions import DEVELOPMENT, HELD_OUT, TRAIN, make_item

CONFIG = """
name: language
stages: [questions, cold_start, grpo]
grpo: {num_generations: 4, max_completion_length: 16}
engine: {prompts_per_call: 3}
curriculum: {batch_size: 4, explore: 0.5}
rl: {steps: 6, warmup: 0, examine_every: 2, max_refills: 2}
checkpoint_every: 2
wandb: disabled
"""
DISTILLATION = """
name: distillation
stages: [questions, cold_start, teacher, distill, imitate]
engine: {prompts_per_call: 3}
distill: {steps: 6, warmup: 0, batch_size: 4, num_generations: 2, max_completion_length: 16, examine_every: 2}
imitate: {steps: 6, warmup: 0, batch_size: 3, examine_every: 2}
checkpoint_every: 2
wandb: disabled
"""
JOINT = """
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
"""Of `JOINT`."""
VOLATILE = ("time", "seconds/", "idle/")
"""First words of the names of wall times."""


def without_times(path: Path) -> list[dict[str, Any]]:
    """Lines of metrics without wall times."""
    return [{k: v for k, v in line.items() if not k.startswith(VOLATILE)} for line in read_json_lines(path)]


def stage_context(
    run: Path,
    node: Node,
    config: RunConfig,
    inputs: dict[str, Path],
    track: Callable[[dict], None] = lambda line: None,
    work: str = "work",
) -> StageContext:
    """A stage of a run folder, as the executor gives it, also a second time after a kill."""
    out, scratch = run / work / "out", run / work / "scratch"
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    return StageContext(
        node=node,
        config=StageConfig(config, node.stage),
        inputs=inputs,
        out=out,
        scratch=scratch,
        seed=config.seed,
        _folder=RunFolder(run),
        _bars=ProgressBars(),
        _stop=threading.Event(),
        _track=track,
    )


def grpo_node(config: RunConfig) -> Node:
    """GRPO of the run's scheme."""
    scheme = config.curriculum.scheme
    return Node(f"{scheme}.1.grpo", KINDS["grpo"], {"curriculum": {"scheme": scheme}}, method=scheme)


def config_of(folder: Path, text: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The config that is read from a file with this text."""
    file = folder / "experiment.yaml"
    file.write_text(text)
    return load_config(file, overrides)


class StageRun:
    """A run of one stage."""

    text = CONFIG
    inputs: dict[str, Path]

    def __init__(self, path: Path, *overrides: str) -> None:
        path.mkdir(parents=True)
        self.path, self.overrides = path, overrides
        self.out, self.scratch = path / "work" / "out", path / "work" / "scratch"
        self.kill_at: int | None = None
        """Step after whose line the process dies."""

    def node(self, config: RunConfig) -> Node:
        """The stage's place in the graph."""
        raise NotImplementedError

    def drive(self, context: StageContext, learner: dict[str, Any]) -> None:
        """Run to the end, from the last state if there is one, by a learner with these attributes."""
        raise NotImplementedError

    def start(self, **learner: Any) -> Any:
        """Run to the end, from the last state if there is one, by a learner with these attributes."""
        config = config_of(self.path.parent, self.text, self.overrides)
        context = stage_context(self.path, self.node(config), config, self.inputs, self._track)
        context._folder.keep_metrics(lambda line: False)
        try:
            self.drive(context, learner)
        finally:
            context._folder.close()
        return self

    def killed(self, at: int | None = None, **learner: Any) -> Any:
        """Start and die: after the line of a step, or where the learner's attributes say."""
        self.kill_at = at
        with pytest.raises(Killed):
            self.start(**learner)
        return self

    def _track(self, line: dict[str, Any]) -> None:
        if line["step"] == self.kill_at and "alarm" not in line:
            self.kill_at = None
            raise Killed

    def _learner(self, learner: Any, attributes: dict[str, Any]) -> Any:
        vars(learner).update(attributes)
        self.learner = learner
        return learner

    def metrics(self, path: str = "work/out/metrics.jsonl") -> list[dict[str, Any]]:
        """Lines without wall times."""
        return without_times(self.path / path)


class FakeRun(StageRun):
    """A run of GRPO."""

    def __init__(self, path: Path, questions: Path, policy: Path, *overrides: str, rate: Any = None) -> None:
        super().__init__(path, *overrides)
        self.inputs, self.policy, self.rate = {"questions": questions}, policy, rate

    def node(self, config: RunConfig) -> Node:
        return grpo_node(config)

    def drive(self, context: StageContext, learner: dict[str, Any]) -> None:
        self.engines = FakeEngines(self.policy, map(make_item, [*TRAIN, *HELD_OUT]), self.rate)
        state = RunState(context.out, context.scratch, context.say)
        made = self._learner(FakeLearner(state.learner_state), learner)
        self.run = GRPORun(context, self.policy, self.engines, made, state)  # type: ignore[arg-type]
        self.run.run()

    def outcome(self) -> dict[str, Any]:
        """Everything that a run leaves, wall times aside."""
        pools = sorted(self.out.rglob("pool.sqlite"))
        return {
            "pools": {str(path.relative_to(self.out)): content(path) for path in pools},
            "rollouts": RolloutStore(self.out).read(),
            "held_out": read_json_lines(self.out / "held_out.jsonl"),
            "metrics": self.metrics(),
            "shown": self.metrics("metrics.jsonl"),
            "model": (self.out / "model").read_text(),
        }


class FakeDistillation(StageRun):
    """A run of distillation, or of its control on stored traces."""

    text = DISTILLATION

    def __init__(self, path: Path, kind: str, inputs: dict[str, Path], policy: Path, *overrides: str) -> None:
        super().__init__(path, *overrides)
        self.kind, self.inputs, self.policy = kind, inputs, policy
        self.teacher: FakeTeacher | None = None

    def node(self, config: RunConfig) -> Node:
        return Node(self.kind, KINDS[self.kind], method=self.kind)

    def drive(self, context: StageContext, learner: dict[str, Any]) -> None:
        self.engines: Any = FakeEngines(self.policy, map(make_item, [*TRAIN, *HELD_OUT]))
        state = RunState(context.out, context.scratch, context.say)
        made = self._learner(FakeLearner(state.learner_state), learner)
        if self.kind == "distill":
            DistillRun(context, self.policy, self.engines, made, state, self.teacher).run()
        else:
            ImitateRun(context, self.policy, self.engines, made, state).run()

    def outcome(self) -> dict[str, Any]:
        """What it leaves."""
        held_out, model = read_json_lines(self.out / "held_out.jsonl"), (self.out / "model").read_text()
        rollouts = RolloutStore(self.out).read() if self.kind == "distill" else []
        return {"metrics": self.metrics(), "held_out": held_out, "model": model, "rollouts": rollouts}


class FakeJoint(StageRun):
    """An arm of joint training; its steps are turns."""

    text = JOINT

    def __init__(
        self, path: Path, questions: Path, policy: Path, *overrides: str, arm: str = "together", effects: Any = HELPS
    ) -> None:
        super().__init__(path, *overrides)
        self.inputs = {role: questions for role in ("questions", "development", "demos")}
        self.policy, self.arm, self.effects = policy, arm, effects
        self.delays: np.random.Generator | None = None

    def node(self, config: RunConfig) -> Node:
        return Node(f"{self.arm}.joint", KINDS["joint"], {"arm": self.arm}, objective=config.objective("rpro"))

    def drive(self, context: StageContext, learner: dict[str, Any]) -> None:
        items = map(make_item, [*TRAIN, *DEVELOPMENT])
        self.engines: Any = SkilledEngines(self.policy, items, num_threads=2, delays=self.delays)
        self.simulators: Any = SkilledSimulators(delays=self.delays)
        state = JointState(context.out, context.scratch, context.say)
        made = self._learner(FakeJointLearner(state.learner_state, self.effects), learner)
        self.run = JointRun(context, self.policy, self.engines, self.simulators, made, state)
        self.run.run()

    def outcome(self) -> dict[str, Any]:
        """Everything that a run leaves, wall times aside."""
        pairs = {path.name: read_json_lines(path / "index.jsonl") for path in sorted((self.out / "pairs").glob("*"))}
        return {
            "pool": content(self.out / "pool.sqlite"),
            "rollouts": RolloutStore(self.out).read(),
            "pairs": pairs,
            "collections": [json.loads(path.read_text()) for path in sorted(self.out.glob("pairs/*/collection.json"))],
            "exams": read_json_lines(self.out / "exams.jsonl"),
            "guard": read_json_lines(self.out / "guard.jsonl", missing_ok=True),
            "metrics": self.metrics(),
            "model": (self.out / "model").read_text(),
        }
