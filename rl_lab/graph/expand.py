"""The stages of a run, written out as nodes one after the other; each says whether it can stand where it is.

A run has one of four shapes. A node's name says to which method, scheme, arm or model it belongs:

    rounds      demos, sft (without the stage: the given policy), base.evaluate; of every method m and round k
                m.k.collect, m.k.optimise, m.k.evaluate; with rewards of actions see `rl_lab.stages.action_rewards`
    plain       questions, cold_start, base.examine, and by the curriculum's scheme s s.1.grpo, s.1.examine
    joint       see `rl_lab.stages.joint`
    pipeline    one chain of models, each made from the newest, and gates that decide which of two goes on

A run on language is a pipeline as soon as it has a stage that makes one, or a repeat of language stages. There a model
has the name of the stage that makes it: base, grpo, or grpo.2 in the second cycle, rft, teacher, distill, imitate.

    base          questions, development (questions for the gates), cold_start, base.examine
    grpo.1        grpo.1, grpo.1.examine, grpo.1.gate
    rft.1         rft.1.traces, rft.1, rft.1.examine, rft.1.gate
    teacher       teacher, teacher.examine
    distill       distill, distill.examine          from the newest model of the chain, towards the teacher
    imitate       imitate.traces, imitate, imitate.examine      a control of distill: from the same model, ends there
    outcome_model outcome_model.traces, outcome_model.labels, outcome_model.member.1, ..., outcome_model
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rl_lab.config.pipeline import Repeat, Step, steps
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import Node, StageKind

BASE = "base"


@dataclass(frozen=True)
class ModelRef:
    """A model and where it is."""

    name: str
    node: str | None
    """Its checkpoint is the output of this node; None: the checkpoint of the config."""
    examined: str | None = None
    """The node with its answers to the development questions."""

    def inputs(self, role: str = "policy") -> dict[str, str]:
        """As input of another node; none for the config's checkpoint."""
        return {} if self.node is None else {role: self.node}


class Expansion:
    """Nodes so far, and the models that the next stage starts from."""

    def __init__(self, config: RunConfig, kinds: Mapping[str, StageKind], *, hashed: bool = True) -> None:
        """Without `hashed` nodes have no params of their own: no file is read."""
        self.config, self.kinds, self.hashed = config, kinds, hashed
        self.nodes: list[Node] = []
        self.names = config.stage_names
        cycles = any(isinstance(stage, Repeat) and stage.on_language for stage in config.stages)
        self.is_chain = not config.is_joint and (cycles or any(kinds[name].makes_chain for name in self.names))
        self.done: set[str] = set()
        """Stages and models so far."""
        self.last = ""
        """The stage before."""
        self.base = self.head = ModelRef(BASE, "warm_start" if "warm_start" in self.names else None)
        self.newest = self.base if config.is_joint or config.model.path is not None else None
        """What an examination would examine; the head of the chain, or a model beside it."""
        self.examined: set[str] = set()
        self.reference: ModelRef | None = None
        """The last model of the chain that was examined; a gate holds the newest against it."""
        self.previous: ModelRef | None = None
        """The one that was examined before it."""
        self.before_distill: ModelRef | None = None
        self.teacher: ModelRef | None = None
        self.when: tuple[str, bool] | None = None
        self.branch: str | None = None
        """Model whose gate the stages of another branch belong to."""

    def run(self) -> list[Node]:
        """The nodes of all stages, every node after its inputs. ValueError where a stage cannot stand."""
        self._check_side()
        if self.config.needs_policy and "sft" not in self.names and not (self.is_chain or self.config.is_joint):
            self.add("sft", "given")  # the config's checkpoint takes its place
        for step in steps(self.config.stages):
            self.take(step)
        for name in sorted(self.kinds.keys() & (self.names | self.done)):
            self.kinds[name].finish(self)
        return self.nodes

    def _check_side(self) -> None:
        foreign = sorted(name for name in self.names if self.kinds[name].of_actions)
        if self.is_chain and foreign:
            raise ValueError(
                f"stages: {foreign[0]} is of the action side; give it a run of its own, beside this pipeline"
            )

    def take(self, step: Step) -> None:
        """The next stage. ValueError where it cannot stand."""
        kind = self.kinds[step.kind]
        self._check_order(kind, step)
        kind.expand(self, step)
        self.done.add(step.model)
        self.last = step.kind

    def _check_order(self, kind: StageKind, step: Step) -> None:
        again = f"stages: {step.kind} is there twice"
        if not self.is_chain and step.kind in self.done:
            raise ValueError(again)
        if self.config.is_joint and not kind.is_joint:
            raise ValueError(f"stages: {step.kind} cannot be part of a joint run; give it a run of its own")
        for wanted in kind.needs(self):
            if wanted not in self.done:
                raise ValueError(f"stages: {step.kind} needs {wanted} before it")
        if self.is_chain and step.model in self.done and not kind.comes_again:
            repeat = f"{{repeat: 2, of: [{step.kind}, ...]}}"
            raise ValueError(f"{again}; write {repeat}, whose cycles are numbered")
        self._check_start(kind, step)

    def _check_start(self, kind: StageKind, step: Step) -> None:
        """There is a model to start from."""
        starts = kind.starts(self)
        if starts is None:
            return
        maker, what = ("warm_start", "policy") if self.config.is_joint else starts
        comes_later = maker in self.names - self.done and not self.config.is_joint and not self.is_chain
        if maker not in self.done and (self.config.model.path is None or comes_later):
            raise ValueError(f"stages: {step.kind} needs {maker} before it, or a trained {what}: give model.path")

    def params(self, kind: str, config: RunConfig | None = None) -> dict[str, Any]:
        """What a stage of this kind reads, or of another configuration than the run's."""
        return self.kinds[kind].params(config or self.config) if self.hashed else {}

    def add(self, name: str, kind: str, inputs: Mapping[str, str] | None = None, **fields: Any) -> Node:
        """A node under the condition of the moment; its params by its own settings unless given, and `more` of them."""
        params, more = fields.pop("params", None), fields.pop("more", {})
        params = (self.params(kind, fields.get("config")) if params is None else params) | more
        self.nodes.append(Node(name, self.kinds[kind], params, dict(inputs or {}), when=self.when, **fields))
        return self.nodes[-1]

    def labels(self, model: ModelRef, cycle: int | None) -> dict[str, Any]:
        """Which model a node of a chain belongs to."""
        return {} if model.name == BASE else {"method": model.name, "round": cycle}

    def extend(self, step: Step, inputs: Mapping[str, str], start: ModelRef, *, sampled: bool = False) -> None:
        """The node that makes the next model of the chain from `start`, of traces of the head if they are `sampled`."""
        name = step.model if self.branch is None else f"{self.branch}.else.{step.kind}"
        labels = self.labels(ModelRef(name, None), step.cycle)
        stream = [*([step.cycle] if (step.cycle or 1) > 1 else []), *(["else"] if self.branch else [])]
        more: dict[str, Any] = {"cycle": stream} if stream else {}
        questions = {"questions": "questions"}
        if sampled:
            asked = questions | self.head.inputs()
            questions["traces"] = self.add(f"{name}.traces", "traces", asked, more=more, **labels).name
        self.add(name, step.kind, questions | start.inputs() | dict(inputs), more=more, **labels)
        self.head = self.newest = ModelRef(name, name)
