"""The stages of a study: those of the experiment in each of its worlds and with each training seed, shared where alike.

A node's name begins with its world and the number of its training seed, `pairs-10.2.rpro.1.optimise`. Rewards, rankings
and ways to execute chunks stand where methods or schemes do, `given.1.short.1.grpo`, `latency-2.1.stitch.evaluate`;
variants of the file stand before all nodes, `given.1.code.sft`.
What several worlds or methods have in common, such as demonstrations and base policies, is one node with the name that
it has in the first; evaluations and examinations are listed in all. Training seeds come one after the other, so that a
study that was stopped has all worlds. All of them are asked the same questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from rl_lab.common.errors import UserError
from rl_lab.config.load import with_changes
from rl_lab.config.schema import RunConfig, StudyConfig
from rl_lab.config.study import World
from rl_lab.graph.nodes import Node

Expand = Callable[[RunConfig], list[Node]]
LISTED = ("evaluate", "examine")
"""Kinds of stages that every world and method has of its own, with its name."""
ASKED = ("questions", "development")
"""Kinds of stages that no training seed but the file's makes."""


@dataclass(frozen=True)
class Arm:
    """One method, or all that train by rounds or are arms: their expansion shares stages and names its own nodes."""

    method: str | None
    where: str = ""
    """Where its settings stand in the study."""
    sections: dict[str, Any] = field(default_factory=dict)
    """What it changes of the file,"""
    keys: dict[str, Any] = field(default_factory=dict)
    """and by dotted key."""

    def of(self, node: Node, study: StudyConfig) -> Node:
        """A node that is not the same for all methods by the name of this one."""
        is_evaluated = node.kind in LISTED if study.variants else node.kind == "evaluate" and study.executes
        if study.variants and not is_evaluated:
            return replace(node, name=f"{self.method}.{node.name}")
        if self.method is None or not (is_evaluated or node.method is not None):
            return node
        return replace(node, name=f"{self.method}.{node.name.partition('.')[2]}", method=self.method)


def arms(config: RunConfig) -> list[Arm]:
    """The methods of the file's study."""
    study = config.study
    assert study is not None
    if study.compared == "method":
        method, *controls = study.methods
        return [Arm(None, sections={"method": method, "controls": controls})]
    if study.on_arms:
        return [Arm(None, keys={study.compare: list(study.methods)})]
    if study.methods or study.variants:
        keys = study.variants or {name: {study.compare: name} for name in study.methods}
        return [Arm(name, keys=changes) for name, changes in keys.items()]
    run = config.model_dump(mode="json")
    sections: dict[str, Any] = {name: {"rewards": one} for name, one in run["study"]["rewards"].items()}
    for name, one in run["study"]["rankings"].items():
        stages = run["stages"] if one["weights"] else [_unranked(stage) for stage in run["stages"]]
        sections[name] = {"ranking": one, "stages": stages, "controls": []}
    truth = {"truth": run["truth"] or run["rewards"]} if study.on_questions else {}
    place = "rewards" if study.on_questions else "rankings"
    return [Arm(name, f"{place}.{name}", own | truth) for name, own in sections.items()]


def _unranked(stage: Any) -> Any:
    """A stage of the file without ranking."""
    return stage | {"of": [one for one in stage["of"] if one != "rank"]} if isinstance(stage, dict) else stage


def worlds(config: RunConfig) -> list[tuple[World, Arm, RunConfig]]:
    """The settings of each world, and in it of each arm, with the file's seed. ValueError, naming the factor, for
    values that cannot be."""
    assert config.study is not None
    found = []
    for world, arm in product(config.study.worlds(), arms(config)):
        levels = world.levels | arm.keys
        where = [*(f"{key}={json.dumps(value)}" for key, value in levels.items()), arm.where]
        try:
            changes = {"study": None} | arm.sections
            settings = with_changes(config, changes, levels, ", ".join(filter(None, where)))
        except UserError as error:
            raise ValueError(f"study: {error}") from error
        found.append((world, arm, settings))
    return found


def study_nodes(config: RunConfig, expand: Expand) -> list[Node]:
    """All nodes, every one after its inputs."""
    study = config.study
    assert study is not None
    graphs = [(world, arm, settings, expand(settings)) for world, arm, settings in worlds(config)]
    nodes: dict[str, Node] = {}
    known: dict[str, str] = {}
    contents: dict[str, str] = {}
    for number in range(study.seeds):
        for world, arm, settings, graph in graphs:
            names: dict[str, str] = {}
            for node in graph:
                seed = config.seed if node.kind in ASKED else config.seed + number
                inputs = {role: names[name] for role, name in node.inputs.items()}
                content = json.dumps([node.kind, node.params, inputs, seed], sort_keys=True)
                own = arm.of(node, study)
                name = f"{world.name}.{number + 1}.{own.name}"
                names[node.name] = name if node.kind in LISTED else known.setdefault(content, name)
                if names[node.name] == name:
                    assert contents.setdefault(name, content) == content, f"two stages would be called {name}"
                    varied = (node.config or settings).model_copy(update={"seed": seed})
                    nodes.setdefault(name, replace(own, name=name, inputs=inputs, config=varied))
    return list(nodes.values())
