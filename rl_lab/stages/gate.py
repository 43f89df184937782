"""Gates of a pipeline: which of two models goes on, and what runs where the newest one does not.

Both models answered the same development questions, which nothing else uses. The gain is the mean over questions of the
new model's reward minus that of the model before, with the report's two-sided interval (`rl_lab.common.stats`:
bootstrap over questions) at the gate's confidence c. The new model passes if the whole interval lies above `rise`: a
model that rises by `rise` and no more passes with a chance of about (1 - c) / 2, 2.5 % at the default. "Not passed"
therefore means not shown to be better, which with few questions also happens to better models.

The output of a gate holds the model that goes on, so what follows takes it as its policy. Behind a gate that may stop
the run every node waits for it; a gate with another branch has that branch, MODEL.else.KIND, and a node MODEL.join.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rl_lab.common.errors import UserError
from rl_lab.common.files import Record, read_json_lines, write_whole
from rl_lab.common.stats import mean_interval
from rl_lab.config.pipeline import Gate, Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import BASE, Expansion, ModelRef
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.run_folder import GATE_FILE
from rl_lab.graph.stage import StageContext
from rl_lab.graph.store import RECORD_FILE
from rl_lab.reports.examinations import known_mean
from rl_lab.workers.cluster import Cluster

COMPARED = ("before", "after", "failed_examined")
"""Roles of examinations that answer the development questions as well."""

DEVELOPMENT_FILE = "development.jsonl"
"""Answers of one model to the development questions, in the output of its examination and of the gates behind it."""

MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
"""Files of a checkpoint folder in Hugging Face layout."""


class GateKind(StageKind):
    """The newest model or the one before."""

    name = "gate"
    named_in = ("stages", "repeat")
    reads = ("model",)
    folder = "checkpoints"
    makes_chain = comes_again = True
    makes = "decision"

    def expand(self, graph: Expansion, step: Step) -> None:
        """The decision; with the nodes of another branch, if the gate has one."""
        before, after = self._compared(graph)
        assert step.gate is not None and before.examined is not None and after.examined is not None
        params: dict[str, Any] = {"gate": step.gate.model_dump(mode="json")}
        if before.node is None:
            params |= graph.params("gate")
        inputs = {"before": before.examined, "after": after.examined}
        inputs |= before.inputs("policy_before") | after.inputs("policy_after")
        labels = graph.labels(after, step.cycle)
        node = graph.add(f"{after.name}.gate", "gate", inputs, params=params, **labels)
        graph.head = graph.newest = graph.reference = ModelRef(after.name, node.name, node.name)
        if step.gate.otherwise == "stop":
            graph.when = (node.name, True)
        elif step.gate.otherwise != "previous":
            _add_branch(graph, step.gate.otherwise, step.cycle, labels)

    def _compared(self, graph: Expansion) -> tuple[ModelRef, ModelRef]:
        """The model before and the newest one."""
        if graph.last != "examine":
            raise ValueError("stages: gate needs examine right before it")
        assert graph.newest is not None
        if graph.head.name == BASE or graph.newest != graph.head:
            why = "comes before any training" if graph.head.name == BASE else f"would decide about {graph.newest.name}"
            raise ValueError(f"stages: a gate decides about a model that grpo, rft or distill made; this one {why}")
        if graph.previous is None:
            raise ValueError("stages: gate compares with an earlier examination; put examine behind cold_start too")
        return graph.previous, graph.head

    def finish(self, graph: Expansion) -> None:
        """Further questions, which the examinations that a gate compares answer too."""
        further = Node("development", graph.kinds["development"], graph.params("development"))
        graph.nodes.insert(1, further)
        compared = {name for node in graph.nodes for role, name in node.inputs.items() if role in COMPARED}
        for place, node in enumerate(graph.nodes):
            if node.kind == "examine" and node.name in compared:
                graph.nodes[place] = replace(node, inputs=node.inputs | {"development": further.name})

    def fits(self, config: RunConfig) -> None:
        """There are questions to decide on."""
        questions = config.questions
        if questions.development < 2 and questions.development_file is None:
            raise ValueError(
                f"questions.development is {questions.development}, but a gate decides on questions of its own, so "
                "that held-out ones stay clean; set it to 200, or give questions.development_file"
            )

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Compare two examinations; the output is the decision, and the model that goes on with its answers."""
        inputs = context.inputs
        gate = Gate.model_validate_json(json.dumps(context.node.params["gate"]))
        before, after = (read_json_lines(inputs[name] / DEVELOPMENT_FILE) for name in ("before", "after"))
        decision = decide(before, after, gate)
        chosen = "after" if decision.passed else "before"
        policy = inputs.get(f"policy_{chosen}") or Path(context.config.model.path)
        _take(policy, inputs[chosen], context.out)
        write_whole(context.out / GATE_FILE, json.dumps(asdict(decision), indent=1) + "\n")


def _add_branch(graph: Expansion, kinds: tuple[str, ...], cycle: int | None, labels: dict[str, Any]) -> None:
    """Stages that run from the model before if the gate does not pass, and the node where the branches meet."""
    passed, outside = graph.head, graph.when
    assert passed.node is not None
    graph.when, graph.branch = (passed.node, False), passed.name
    for kind in kinds:
        graph.kinds[kind].expand(graph, Step(kind, cycle))
    other = graph.head
    assert other.node is not None and other.examined is not None
    graph.when, graph.branch = outside, None
    inputs = {"passed": passed.node, "failed": other.node, "failed_examined": other.examined}
    node = graph.add(f"{passed.name}.join", "join", inputs, params={}, **labels)
    graph.head = graph.newest = graph.reference = ModelRef(passed.name, node.name, node.name)


class JoinKind(StageKind):
    """The model of whichever branch of a gate ran."""

    name = "join"
    named_in = ()
    folder = "checkpoints"
    makes = "model"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """The model of whichever branch ran: the other branch's, else the one that passed the gate."""
        inputs = context.inputs
        if "failed" in inputs:
            _take(inputs["failed"], inputs["failed_examined"], context.out)
        else:
            _take(inputs["passed"], inputs["passed"], context.out)


@dataclass(frozen=True)
class GateDecision:
    """What a gate found; the content of `gate.json`."""

    passed: bool
    difference: float
    """Mean gain in reward of the new model over the one before."""
    low: float
    high: float
    rise: float
    confidence: float
    n: int
    """Questions that both models have a known reward for."""
    before: float
    """Mean reward of the model before on these."""
    after: float
    otherwise: str | list[str]
    reason: str
    """The same in words."""


def paired_rewards(before: Sequence[Record], after: Sequence[Record]) -> np.ndarray:
    """Rewards of the questions that both answered, [n, 2]. UserError if they were asked different questions."""
    sides = [{row["item"]: known_mean(row["rewards"]) for row in rows} for rows in (before, after)]
    if sides[0].keys() != sides[1].keys():
        raise UserError("the two examinations asked different development questions, so nothing can be compared")
    pairs = np.array([[sides[0][item], sides[1][item]] for item in sides[0]], float).reshape(-1, 2)
    return pairs[~np.isnan(pairs).any(1)]


def decide(before: Sequence[Record], after: Sequence[Record], gate: Gate) -> GateDecision:
    """Whether the new model passes. UserError without two questions that both have a known reward for."""
    pairs = paired_rewards(before, after)
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} development questions have a known reward of both models; a gate needs two")
    gain = mean_interval((pairs[:, 1] - pairs[:, 0])[:, None], gate.confidence)
    passed = gain.low > gate.rise
    return GateDecision(
        passed=passed,
        difference=gain.value,
        low=gain.low,
        high=gain.high,
        rise=gate.rise,
        confidence=gate.confidence,
        n=len(pairs),
        before=float(pairs[:, 0].mean()),
        after=float(pairs[:, 1].mean()),
        otherwise=gate.otherwise if isinstance(gate.otherwise, str) else list(gate.otherwise),
        reason=_reason(passed, gain.value, gain.low, gain.high, len(pairs), gate),
    )


def _reason(passed: bool, value: float, low: float, high: float, n: int, gate: Gate) -> str:
    found = (
        f"reward changed by {value:+.3f} on {n} development questions ({100 * gate.confidence:g} % interval {low:+.3f} "
        f"to {high:+.3f})"
    )
    if passed:
        return f"passed: {found}, all of it above {gate.rise:g}; the new model goes on"
    what = {"previous": "the model before goes on", "stop": "the run stops with the model before"}
    then = (
        what[gate.otherwise]
        if isinstance(gate.otherwise, str)
        else f"{', '.join(gate.otherwise)} run from the model before"
    )
    return f"not passed: {found}, not all of it above {gate.rise:g}; {then}"


def take_model(source: Path, out: Path) -> None:
    """Show the checkpoint files of a folder in another, by hard links, copied where links fail."""
    for path in sorted(path for pattern in MODEL_FILES for path in source.glob(pattern)):
        target = out / path.name
        if path.name in (RECORD_FILE, GATE_FILE):
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def _take(model: Path, examined: Path, out: Path) -> None:
    """A model and its answers to the development questions."""
    take_model(model, out)
    shutil.copyfile(examined / DEVELOPMENT_FILE, out / DEVELOPMENT_FILE)
