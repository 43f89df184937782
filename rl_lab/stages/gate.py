"""Gates of a pipeline: which of two models goes on, and what runs where the newest one does not.

The output of a gate holds the model that goes on, so what follows takes it as its policy. Behind a gate that may stop
the run every node waits for it; a gate with another branch has that branch, MODEL.else.KIND, and a node MODEL.join.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import BASE, Expansion, ModelRef
from rl_lab.graph.nodes import Node, StageKind

COMPARED = ("before", "after", "failed_examined")
"""Roles of examinations that answer the development questions as well."""


class GateKind(StageKind):
    """The newest model or the one before."""

    name = "gate"
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
    folder = "checkpoints"
    makes = "model"
