"""A small pipeline for tests, and stages that stand in for training and examinations."""

import json
from collections.abc import Callable
from pathlib import Path

from rl_lab.common.files import write_json_lines
from rl_lab.config.schema import RunConfig
from rl_lab.graph.stage import Stage, StageContext
from rl_lab.stages.gate import DEVELOPMENT_FILE
from rl_lab.stages.kinds import load_config, stage_functions

TEXT = """
name: chain
stages: {stages}
questions: {{development: 20}}
cold_start: {{steps: 20, warmup: 2}}
rl: {{steps: 10}}
wandb: disabled
"""
FRONT = "questions, cold_start, examine"
CYCLE = "{repeat: 2, of: [grpo, examine, gate, rft, examine, gate]}"
WHOLE = f"[{FRONT}, {CYCLE}, teacher, examine, distill, examine, imitate, examine]"
NUM_QUESTIONS = 20
KINDS = ("questions", "development", "cold_start", "grpo", "traces", "rft", "distill", "imitate")


def pipeline(folder: Path, stages: str, *overrides: str) -> RunConfig:
    """A run with these stages."""
    path = folder / "chain.yaml"
    path.write_text(TEXT.format(stages=stages))
    return load_config(path, overrides)


class FakeModels:
    """A model is its name and skill in a file; an examination answers every question with that skill."""

    def __init__(self, **gains: float) -> None:
        """`gains` are what a node's training adds to the skill of its policy; `_` stands for a dot."""
        self.gains = {name.replace("__", "."): gain for name, gain in gains.items()}
        self.ran: list[str] = []
        self.seen: dict[str, tuple[str, ...]] = {}
        """Roles that each node was given."""
        self.fail_at: str | None = None
        self.before: Callable[[StageContext], None] = lambda context: None

    def make(self, context: StageContext) -> None:
        """Train: the skill of the policy plus the node's gain."""
        self._enter(context)
        policy = context.inputs.get("policy")
        skill = json.loads((policy / "config.json").read_text())["skill"] if policy else 0.3
        model = {"name": context.node.name, "skill": skill + self.gains.get(context.node.name, 0.0)}
        (context.out / "config.json").write_text(json.dumps(model))
        (context.out / "model.safetensors").write_text(context.node.name)
        (context.out / "lab.json").write_text(json.dumps({"weight_version": 3, "steps": 20}))
        if context.node.kind in ("grpo", "traces", "distill"):
            for step in (1, 2):
                context.log(step, **{"rollouts/tokens": 1000.0})
        (context.out / "pool.sqlite").write_text("not a file of the model")

    def examine(self, context: StageContext) -> None:
        """Answer with the model's skill, a little more or less from question to question."""
        self._enter(context)
        skill = json.loads((context.inputs["policy"] / "config.json").read_text())["skill"]
        other = {"category": "count", "blank": [0.1], "constant": 0.2}
        rows = [{"item": f"q{i}", "rewards": [skill + 0.01 * (i % 3)]} | other for i in range(NUM_QUESTIONS)]
        write_json_lines(context.out / "results.jsonl", rows)
        if "development" in context.inputs:
            write_json_lines(context.out / DEVELOPMENT_FILE, rows)

    def _enter(self, context: StageContext) -> None:
        self.before(context)
        self.ran.append(context.node.name)
        self.seen[context.node.name] = tuple(sorted(context.inputs))
        if self.fail_at == context.node.name:
            raise RuntimeError("no luck")

    def report(self, context: StageContext) -> None:
        """A page."""
        self.seen["report"] = tuple(sorted(context.inputs))
        (context.out / "report.html").write_text("page")

    def functions(self) -> dict[str, Stage]:
        """Stage functions by kind; gates are the real ones."""
        made = dict.fromkeys(KINDS, self.make) | {"examine": self.examine, "report": self.report}
        real = stage_functions(None)
        return made | {name: self._watched(real[name]) for name in ("gate", "join", "teacher")}

    def _watched(self, stage: Stage) -> Stage:
        def run(context: StageContext) -> None:
            self._enter(context)
            stage(context)

        return run
