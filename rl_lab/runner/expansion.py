"""The stages of a configuration, written out as the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from algos.methods import ALIASES, Method, find_method
from rl_lab.config.pipeline import GateStage, Repeat, Stage
from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node, stage_params
from rl_lab.runner.joint_graph import joint_nodes
from rl_lab.runner.pipeline import pipeline_nodes


def _round(config: RunConfig, of: Sequence[Any], method: str, number: int, policy: str, pairs: list[str]) -> list[Node]:
    """The nodes of one round of one method; appends its pairs to `pairs`."""
    nodes = []
    if find_method(method).needs_collection:
        params = stage_params(config, "collect") | {"round": number}
        nodes.append(Node(f"{method}.{number}.collect", "collect", params, {"policy": policy}, method, number))
        pairs.append(nodes[-1].name)
    inputs = {"policy": policy, "sft": "sft", "demos": "demos"}
    inputs |= {f"pairs.{k}": name for k, name in enumerate(pairs, start=1)}
    nodes.append(_optimise(config, find_method(method), method, number, inputs))
    if "evaluate" in of:
        evaluated = {"policy": nodes[-1].name}
        params = stage_params(config, "evaluate")
        nodes.append(Node(f"{method}.{number}.evaluate", "evaluate", params, evaluated, method, number))
    return nodes


def _optimise(config: RunConfig, row: Method, method: str, number: int, inputs: dict[str, str]) -> Node:
    """The node that trains; only the settings that the method uses enter its params."""
    objective, buffers = config.objective(method), config.buffers
    mix = buffers.mix_first if number == 1 else buffers.mix_later
    params = stage_params(config, "optimise") | {"method": ALIASES.get(method, method), "round": number}
    if row.needs_reference:
        params["objective"] = objective.model_dump(mode="json")
    if row.needs_collection:
        params["mix"] = list(mix)
    return Node(f"{method}.{number}.optimise", "optimise", params, inputs, method, number, objective=objective, mix=mix)


def _rounds(config: RunConfig, stage: Repeat) -> Iterator[Node]:
    """All rounds of every method, each from the same SFT policy."""
    for method in config.methods:
        policy = "sft"
        pairs: list[str] = []
        for number in range(1, stage.repeat + 1):
            yield from _round(config, stage.of, method, number, policy, pairs)
            policy = f"{method}.{number}.optimise"


def _base_inputs(config: RunConfig) -> dict[str, str]:
    """Inputs of what starts from the base model; without a cold start that is the config's checkpoint, and no input."""
    questions = {"questions": "questions"}
    return questions | {"policy": "cold_start"} if "cold_start" in config.stages else questions


def _arms(config: RunConfig) -> Iterator[Node]:
    """Every curriculum or reward and every replicate, from the same base."""
    inputs = _base_inputs(config)
    for arm, sections in config.arms.items():
        for replicate in range(1, config.replicates + 1):
            own = config.model_copy(update=sections)
            params = stage_params(own, "grpo") | {"replicate": replicate}
            name = f"{arm}.{replicate}"
            labels: dict[str, Any] = {"method": arm, "replicate": replicate}
            yield Node(f"{name}.grpo", "grpo", params, inputs, sections=sections, **labels)
            if "examine" in config.stages:
                trained = inputs | {"policy": f"{name}.grpo"}
                yield Node(f"{name}.examine", "examine", stage_params(config, "examine"), trained, **labels)


def _stage(config: RunConfig, stage: Stage) -> Iterator[Node]:
    """The nodes that an entry of `stages` stands for."""
    if isinstance(stage, Repeat):
        yield from _rounds(config, stage)
    elif isinstance(stage, GateStage):
        raise AssertionError("a run with a gate is a pipeline")
    elif stage in ("demos", "questions"):
        yield Node(stage, stage, stage_params(config, stage))
    elif stage == "sft":
        yield Node("sft", "sft", stage_params(config, "sft"), {"demos": "demos"})
    elif stage == "evaluate":
        yield Node("base.evaluate", "evaluate", stage_params(config, "evaluate"), {"policy": "sft"})
    elif stage == "cold_start":
        yield Node("cold_start", "cold_start", stage_params(config, "cold_start"), {"questions": "questions"})
    elif stage == "examine":
        yield Node("base.examine", "examine", stage_params(config, "examine"), _base_inputs(config))
    elif stage == "grpo":
        yield from _arms(config)


def expand(config: RunConfig) -> list[Node]:
    """The nodes of a run, every node after its inputs."""
    if config.is_joint:
        nodes = [*joint_nodes(config)]
    elif config.is_pipeline:
        nodes = pipeline_nodes(config)
    else:
        nodes = [node for stage in config.stages for node in _stage(config, stage)]
    return [*nodes, Node("report", "report", inputs={node.name: node.name for node in nodes})]
