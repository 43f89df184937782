"""The stages of a study: those of the experiment in each of its worlds and with each training seed, shared where alike.

A node's name begins with its world and the number of its training seed, `pairs-10.2.rpro.1.optimise`; where ways to
execute the chunks of one policy are compared an evaluation has the way behind it, `latency-2.1.stitch.evaluate`; where
variants of the file are, all nodes have the variant's name there, `given.1.code.sft`. What
several worlds have in common, such as demonstrations and base policies, is one node with the name that it has in the
first; evaluations are listed in all. Training seeds come one after the other, so that a study that was stopped has all
worlds.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product

from rl_lab.config.load import with_changes
from rl_lab.config.pipeline import Registry
from rl_lab.config.schema import RunConfig
from rl_lab.config.study import StudyConfig, World
from rl_lab.errors import UserError
from rl_lab.graph.nodes import Node

Expand = Callable[[RunConfig], list[Node]]


def worlds(config: RunConfig, registry: Registry) -> list[tuple[World, str, RunConfig]]:
    """The settings of each world, and in it of each variant or way to execute chunks if these are compared, by name,
    with the file's seed. ValueError, naming the factor, for values that cannot be."""
    study = config.study
    assert study is not None
    method, *controls = study.methods
    shared = {"study": None} | ({} if study.ways else {"method": method, "controls": controls})
    found = []
    for world, (way, changes) in product(study.worlds(), (study.ways or {"": {}}).items()):
        try:
            found.append((world, way, with_changes(config, shared, world.levels | changes, registry)))
        except UserError as error:
            raise ValueError(f"study: {error}") from error
    return found


def study_nodes(config: RunConfig, registry: Registry, expand: Expand) -> list[Node]:
    """All nodes, every one after its inputs."""
    assert config.study is not None
    graphs = [(world, way, settings, expand(settings)) for world, way, settings in worlds(config, registry)]
    nodes: dict[str, Node] = {}
    known: dict[str, str] = {}
    for number in range(config.study.seeds):
        for world, way, settings, graph in graphs:
            own = settings.model_copy(update={"seed": config.seed + number})
            names: dict[str, str] = {}
            for node in graph:
                inputs = {role: names[name] for role, name in node.inputs.items()}
                content = json.dumps([node.kind, node.params, inputs, own.seed], sort_keys=True)
                named = _of_way(node, way, config.study)
                name = f"{world.name}.{number + 1}.{named.name}"
                names[node.name] = name if node.kind == "evaluate" else known.setdefault(content, name)
                if names[node.name] == name:
                    varied = own if node.config is None else node.config.model_copy(update={"seed": own.seed})
                    nodes[name] = replace(named, name=name, inputs=inputs, config=varied)
    return list(nodes.values())


def _of_way(node: Node, way: str, study: StudyConfig) -> Node:
    """An evaluation by the name of its variant or of the way in which it executes chunks; what a variant trains too."""
    if way and node.kind == "evaluate":
        return replace(node, name=f"{way}.evaluate", method=way)
    return replace(node, name=f"{way}.{node.name}") if study.variants else node
