"""A small experiment file, and stages that stand in for its real ones."""

import json
import threading
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rl_lab import run as run_command
from rl_lab.common.files import write_whole
from rl_lab.config.schema import RunConfig
from rl_lab.graph.executor import Executor
from rl_lab.graph.nodes import Node, stage_hashes
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import Stage, StageContext
from rl_lab.graph.store import Store
from rl_lab.stages.kinds import expand

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
RUNS = sorted(path for path in EXPERIMENTS.glob("*.yaml") if not path.stem.startswith("eval_"))
"""Experiments for `rl_lab.run`."""
VERSIONS = {"code": "1"}
KINDS = ("demos", "sft", "collect", "optimise", "evaluate")

SMALL = """
name: small
stages: [demos, sft, evaluate, {repeat: 2, of: [collect, optimise, evaluate]}]
sft: {steps: 10, warmup: 2}
optimise: {steps: 10, warmup: 2}
wandb: disabled
"""


def write_small(folder: Path, extra: str = "") -> Path:
    """The small experiment, with further lines of YAML, in a folder."""
    path = folder / "small.yaml"
    path.write_text(SMALL + extra)
    return path


class FakeStages:
    """Stages that write what they read, so that a wrong input shows in the output."""

    kinds = KINDS

    def __init__(self, steps: int = 3) -> None:
        self.steps, self.active, self.most_active = steps, 0, 0
        self.ran: list[str] = []
        self.lock = threading.Lock()
        self.fail_at: str | None = None
        self.failure: BaseException = RuntimeError("no luck")
        self.before: Stage = lambda context: None
        self.after: Stage = lambda context: None
        """Called around every stage."""

    def run(self, context: StageContext) -> None:
        with self.lock:
            self.ran.append(context.node.name)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            done = context.scratch / "done"
            first = int(done.read_text()) + 1 if done.exists() else 1
            context.resume_from(first - 1)
            for step in range(first, self.steps + 1):
                time.sleep(0.005)
                context.log(step, loss=1.0 / step)
                write_whole(done, str(step))  # a kill may come between any two instructions
                if self.fail_at == context.node.name and step == 2:
                    raise self.failure
                context.progress(step, self.steps)
            read = {role: (path / "result").read_text() for role, path in sorted(context.inputs.items())}
            (context.out / "result").write_text(json.dumps([context.node.kind, context.node.params, read]))
        finally:
            with self.lock:
                self.active -= 1

    def report(self, context: StageContext) -> None:
        (context.out / "report.html").write_text("page")

    def functions(self) -> dict[str, Stage]:
        """Stage functions by kind."""
        made = dict.fromkeys(self.kinds, self.run) | {"report": self.report}
        return {kind: partial(self._around, stage) for kind, stage in made.items()}

    def _around(self, stage: Stage, context: StageContext) -> None:
        self.before(context)
        stage(context)
        self.after(context)


def nodes(config: RunConfig) -> dict[str, Node]:
    """The graph of a run, by name."""
    return {node.name: node for node in expand(config)}


def hashes(config: RunConfig) -> dict[str, str]:
    """Content hash of every stage."""
    return stage_hashes(expand(config), config.seed, VERSIONS)


def differing(before: dict[str, str], after: dict[str, str]) -> set[str]:
    """Names of the stages whose hash is another one, or that are no more."""
    return {name for name in before if before[name] != after.get(name)}


def executor(config: RunConfig, stages: Any, folder: RunFolder, store: Path, versions: Any = VERSIONS) -> Executor:
    """Ready to run; `stages` have `functions()`."""
    nodes = expand(config)
    hashes = stage_hashes(nodes, config.seed, versions)
    return Executor(config, nodes, hashes, versions, stages.functions(), Store(store), folder)


def run(config: RunConfig, stages: Any, path: Path) -> RunFolder:
    """The run in a new folder; its store lies beside it."""
    folder = RunFolder.create(path, config.name)
    executor(config, stages, folder, path.parent / "store").run()
    return folder


def statuses(folder: RunFolder) -> dict[str, str]:
    """Status by node."""
    return {row["name"]: row["status"] for row in folder.read_stages()[1]}


def main(*arguments: str, stages: FakeStages | None = None) -> int:
    """`python -m rl_lab.run` with plain functions as stages."""
    functions = (stages or FakeStages()).functions()
    return run_command.main(arguments, lambda config: nullcontext(functions))
