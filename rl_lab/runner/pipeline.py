"""A pipeline as nodes: one chain of models, each made from the newest, and gates that decide which of two goes on.

A model has the name of the stage that makes it: base, grpo, or grpo.2 in the second cycle, rft, teacher, distill,
imitate.

    base          questions, development (questions for the gates), cold_start, base.examine
    grpo.1        grpo.1, grpo.1.examine, grpo.1.gate
    rft.1         rft.1.traces, rft.1, rft.1.examine, rft.1.gate
    teacher       teacher, teacher.examine
    distill       distill, distill.examine          from the newest model of the chain, towards the teacher
    imitate       imitate.traces, imitate, imitate.examine      a control of distill: from the same model, ends there
    outcome_model outcome_model.traces, outcome_model.labels, outcome_model.member.1, ..., outcome_model

The output of a gate holds the model that goes on, so what follows takes it as its policy. Behind a gate that may stop
the run every node waits for it; a gate with another branch has that branch, MODEL.else.KIND, and a node MODEL.join.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from rl_lab.config.pipeline import Gate, Step, steps
from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node, stage_params

BASE = "base"
TEACHER = "teacher"


@dataclass(frozen=True)
class Model:
    """A model and where it is."""

    name: str
    node: str | None
    """Its checkpoint is the output of this node; None: the checkpoint of the config."""
    examined: str | None = None
    """The node with its answers to the development questions."""

    def inputs(self, role: str = "policy") -> dict[str, str]:
        """As input of another node; none for the config's checkpoint."""
        return {} if self.node is None else {role: self.node}


class _Chain:
    """Nodes so far and the models that the next stage starts from."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.nodes: list[Node] = []
        self.base = self.head = self.newest = Model(BASE, None)
        self.reference: Model | None = None
        """The last model of the chain that was examined; a gate holds the newest against it."""
        self.previous: Model | None = None
        """The one that was examined before it."""
        self.before_distill: Model | None = None
        self.teacher: Model | None = None
        self.when: tuple[str, bool] | None = None
        self.branch: str | None = None
        """Model whose gate the stages of another branch belong to."""

    def add(self, name: str, kind: str, inputs: dict[str, str], **fields: Any) -> Node:
        """A node under the condition of the moment; its params unless given."""
        params = fields.pop("params", None)
        node = Node(
            name, kind, stage_params(self.config, kind) if params is None else params, inputs, when=self.when, **fields
        )
        self.nodes.append(node)
        return node

    def take(self, step: Step) -> None:
        """The nodes of one stage."""
        if step.kind == "gate":
            assert step.gate is not None
            self.gate(step.gate, step.cycle)
        else:
            {
                "questions": self.questions,
                "cold_start": self.cold_start,
                "examine": self.examine,
                "teacher": self.make_teacher,
                "imitate": self.imitate,
                "outcome_model": self.outcome_model,
            }.get(step.kind, self.train)(step)

    def questions(self, step: Step) -> None:
        """All sets of questions."""
        self.add("questions", "questions", {})

    def cold_start(self, step: Step) -> None:
        """The base of the chain."""
        self.add("cold_start", "cold_start", {"questions": "questions"})
        self.base = self.head = self.newest = Model(BASE, "cold_start")

    def examine(self, step: Step) -> None:
        """Answers of the newest model, which becomes what the next gate compares with, if it is of the chain."""
        model = self.newest
        of_teacher = model == self.teacher
        params = stage_params(self.teacher_config() if of_teacher else self.config, "examine")
        node = self.add(
            f"{model.name}.examine",
            "examine",
            {"questions": "questions"} | model.inputs(),
            params=params,
            **self.labels(model, step.cycle),
        )
        self.newest = examined = replace(model, examined=node.name)
        if model == self.head:
            self.reference, self.head, self.previous = examined, examined, self.reference

    def labels(self, model: Model, cycle: int | None) -> dict[str, Any]:
        """Which model a node belongs to."""
        return {} if model.name == BASE else {"method": model.name, "round": cycle, "replicate": 1}

    def train(self, step: Step) -> None:
        """A stage that makes the next model of the chain."""
        name = step.model if self.branch is None else f"{self.branch}.else.{step.kind}"
        labels = self.labels(Model(name, None), step.cycle)
        stream = [*([step.cycle] if (step.cycle or 1) > 1 else []), *(["else"] if self.branch else [])]
        inputs = {"questions": "questions"} | self.head.inputs()
        extra: dict[str, Any] = {"replicate": 1} | ({"cycle": stream} if stream else {})
        if step.kind == "rft":
            params = stage_params(self.config, "traces") | extra
            traces = self.add(f"{name}.traces", "traces", inputs, params=params, **labels)
            start = self.base if self.config.rft.start == "base" else self.head
            inputs = {"questions": "questions", "traces": traces.name} | start.inputs()
        if step.kind == "distill":
            assert self.teacher is not None
            self.before_distill = self.head
            inputs |= self.teacher.inputs("teacher")
        self.add(name, step.kind, inputs, params=stage_params(self.config, step.kind) | extra, **labels)
        self.head = self.newest = Model(name, name)

    def teacher_config(self) -> RunConfig:
        """The run with the teacher's model and cold start in place of the student's."""
        return self.config.model_copy(update=self.teacher_sections())

    def teacher_sections(self) -> dict[str, Any]:
        """What the teacher has of its own."""
        teacher = self.config.teacher
        return {"model": teacher.model} | ({} if teacher.training is None else {"cold_start": teacher.training})

    def make_teacher(self, step: Step) -> None:
        """Another base, with sizes and settings of its own, or a checkpoint as it is; not part of the chain."""
        self.teacher = self.newest = Model(TEACHER, TEACHER)
        kind = "teacher" if self.config.teacher.training is None else "cold_start"
        params, sections = stage_params(self.teacher_config(), kind), self.teacher_sections()
        inputs = {} if kind == "teacher" else {"questions": "questions"}
        self.add(TEACHER, kind, inputs, params=params, sections=sections, **self.labels(self.teacher, None))

    def imitate(self, step: Step) -> None:
        """Fine-tuning on the teacher's traces, from where distill starts; not part of the chain."""
        assert self.teacher is not None
        labels = self.labels(Model("imitate", None), None)
        inputs = {"questions": "questions"} | self.teacher.inputs()
        params = stage_params(self.teacher_config(), "traces") | {"replicate": 1}
        traces = self.add("imitate.traces", "traces", inputs, params=params, sections=self.teacher_sections(), **labels)
        student = self.before_distill or self.head
        inputs = {"questions": "questions", "traces": traces.name} | student.inputs()
        self.add("imitate", "imitate", inputs, params=stage_params(self.config, "imitate") | {"replicate": 1}, **labels)
        self.newest = Model("imitate", "imitate")

    def outcome_model(self, step: Step) -> None:
        """A reward model that starts from the newest model and learns from its traces, or from another run's answers;
        not part of the chain."""
        inputs = {}
        labels = {"method": "outcome_model", "replicate": 1}
        if self.config.outcome.run is None:
            inputs = {"questions": "questions"}
            params = stage_params(self.config, "traces") | {"replicate": 1}
            asked = inputs | self.head.inputs()
            inputs["traces"] = self.add("outcome_model.traces", "traces", asked, params=params, **labels).name
        labelled = self.add("outcome_model.labels", "outcome_labels", inputs, **labels).name
        members, start = {}, {} if self.config.outcome.classifier else self.head.inputs()
        for number in range(1, self.config.outcome.members + 1):
            params = stage_params(self.config, "outcome_member") | {"member": number}
            name, inputs = f"outcome_model.member.{number}", {"labels": labelled} | start
            members[f"member.{number}"] = self.add(name, "outcome_member", inputs, params=params, **labels).name
        self.add("outcome_model", "outcome_model", {"labels": labelled} | members, **labels)

    def gate(self, gate: Gate, cycle: int | None) -> None:
        """The newest model or the one before; with the nodes of another branch, if the gate has one."""
        before, after = self.previous, self.head
        assert before is not None and before.examined is not None and after.examined is not None
        params: dict[str, Any] = {"gate": gate.model_dump(mode="json")}
        if before.node is None:
            params |= stage_params(self.config, "gate")
        inputs = {"before": before.examined, "after": after.examined}
        inputs |= before.inputs("policy_before") | after.inputs("policy_after")
        labels = self.labels(after, cycle)
        node = self.add(f"{after.name}.gate", "gate", inputs, params=params, **labels)
        self.head = self.newest = self.reference = Model(after.name, node.name, node.name)
        if gate.otherwise == "stop":
            self.when = (node.name, True)
        elif gate.otherwise != "previous":
            self.other_branch(gate.otherwise, cycle, labels)

    def other_branch(self, kinds: tuple[str, ...], cycle: int | None, labels: dict[str, Any]) -> None:
        """Stages that run from the model before if the gate does not pass, and the node where the branches meet."""
        passed, outside = self.head, self.when
        assert passed.node is not None
        self.when, self.branch = (passed.node, False), passed.name
        for kind in kinds:
            self.take(Step(kind, cycle))
        other = self.head
        assert other.node is not None and other.examined is not None
        self.when, self.branch = outside, None
        inputs = {"passed": passed.node, "failed": other.node, "failed_examined": other.examined}
        node = self.add(f"{passed.name}.join", "join", inputs, params={}, **labels)
        self.head = self.newest = self.reference = Model(passed.name, node.name, node.name)


def _with_development(nodes: list[Node], config: RunConfig) -> list[Node]:
    """With gates, further questions; the examinations that a gate compares answer them too."""
    roles = ("before", "after", "failed_examined")
    compared = {name for node in nodes for role, name in node.inputs.items() if role in roles}
    if not compared:
        return nodes
    further = Node("development", "development", stage_params(config, "development"))
    return [
        nodes[0],
        further,
        *(
            replace(node, inputs=node.inputs | {"development": further.name})
            if node.kind == "examine" and node.name in compared
            else node
            for node in nodes[1:]
        ),
    ]


def pipeline_nodes(config: RunConfig) -> list[Node]:
    """The nodes of a pipeline without the report, every node after its inputs."""
    chain = _Chain(config)
    for step in steps(config.stages):
        chain.take(step)
    return _with_development(chain.nodes, config)
