"""What kinds of stages share: workers of which a run has one pool, the cost of training, and online runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl_lab.common.files import read_json_lines
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.graph.store import METRICS_FILE
from rl_lab.learner.plans import Plan
from rl_lab.training.dataset import with_learner
from rl_lab.training.state import RunState
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.pool import WorkerPool

SIMULATORS, ENGINES = frozenset({"simulators"}), frozenset({"engines"})
BASE_MODEL = ("cold_start", "model")
"""Where language starts from: the stage that makes it, and what it is."""
BASE_POLICY = ("sft", "policy")
"""Where actions start from."""
SECONDS_PER_ANSWER = 0.01


class TrainingKind(StageKind):
    """A stage of so many steps on batches of rows."""

    learns = True
    folder = "checkpoints"
    seconds_per_row = 0.0
    """Of a batch through one training step, everything trainable; measured like `seconds_per_unit`."""
    section = ""
    """Where its settings stand, if not under its own name."""
    examines = False
    """Whether it asks held-out questions on the way, one answer each."""

    def settings(self, node: Node, config: RunConfig) -> Any:
        """The section with its steps."""
        return getattr(config, self.section or self.name)

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Its steps."""
        return self.settings(node, config).steps, "steps"

    def finding(self, out: Path) -> str:
        """The last loss."""
        losses = logged(out, "loss")
        return f"last loss {losses[-1]:.4g}" if losses else ""

    def rows(self, node: Node, config: RunConfig) -> float:
        """Rows of a batch, or what costs as much."""
        settings = self.settings(node, config)
        return settings.batch_size * getattr(settings, "num_generations", 1)

    def work_seconds(self, node: Node, config: RunConfig) -> float:
        """Of the steps, and of its own examinations."""
        settings = self.settings(node, config)
        work = settings.steps * (self.rows(node, config) * self.seconds_per_row)
        if self.examines and settings.examine_every:
            work += settings.steps // settings.examine_every * config.questions.held_out * SECONDS_PER_ANSWER
        return work


def logged(out: Path, name: str) -> list[float]:
    """The values of a metric in the output of a stage, in the order of its steps."""
    lines = read_json_lines(out / METRICS_FILE, missing_ok=True)
    return [line[name] for line in lines if isinstance(line.get(name), int | float)]


def run_online(
    cluster: Cluster,
    context: StageContext,
    plan: Plan,
    make: Callable[..., Any],
    *pools: WorkerPool,
    state: type[RunState] = RunState,
) -> None:
    """`make(learner, state).run()` in a learner process; if that dies, it goes on from the last saved state.

    `pools` then forget what the dead one waited for.
    """
    with_learner(
        cluster,
        context,
        plan,
        lambda: state(context.out, context.scratch, context.say),
        lambda learner, saved: make(learner, saved).run(),
        pools,
    )
