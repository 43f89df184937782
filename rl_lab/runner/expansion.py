"""The stages of a configuration, written out as the nodes of a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from algos.methods import ALIASES, find_method
from rl_lab.config.action_rewards import RankingConfig
from rl_lab.config.pipeline import GateStage, Repeat, Stage
from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node, stage_params
from rl_lab.runner.joint_graph import joint_nodes
from rl_lab.runner.pipeline import pipeline_nodes
from rl_lab.runner.ranking_graph import MODELS, candidates_node, model_nodes, rank_node, sweep_nodes


def _round(config: RunConfig, of: Sequence[Any], method: str, number: int, policy: str, pairs: list[str]) -> list[Node]:
    """The nodes of one round of one method; appends its pairs to `pairs`."""
    nodes = []
    if find_method(method).needs_collection:
        params = stage_params(config, "collect") | {"round": number}
        nodes.append(Node(f"{method}.{number}.collect", "collect", params, {"policy": policy}, method, number))
        pairs.append(nodes[-1].name)
    inputs = {"policy": policy, "sft": "sft", "demos": "demos"}
    inputs |= {f"pairs.{k}": name for k, name in enumerate(pairs, start=1)}
    ranking = None
    if "rank" in of and find_method(method).rows == "tuples":
        ranking, prefix = config.ranking, f"{method}.{number}"
        nodes.append(candidates_node(config, prefix, policy, method=method, round=number))
        nodes.append(rank_node(config, prefix, nodes[-1].name, MODELS, method=method, round=number))
        inputs["ranked"] = nodes[-1].name
    nodes.append(_optimise(config, method, number, inputs, ranking))
    if "evaluate" in of:
        evaluated = {"policy": nodes[-1].name}
        params = stage_params(config, "evaluate")
        nodes.append(Node(f"{method}.{number}.evaluate", "evaluate", params, evaluated, method, number))
    return nodes


def _optimise(
    config: RunConfig, method: str, number: int, inputs: dict[str, str], ranking: RankingConfig | None
) -> Node:
    """The node that trains; only the settings that the method uses enter its params."""
    row, objective, buffers = find_method(method), config.objective(method), config.buffers
    shares = buffers.mix_first if number == 1 else buffers.mix_later
    mix = shares if ranking is None else ranking.mix(shares)
    params = stage_params(config, "optimise") | {"method": ALIASES.get(method, method), "round": number}
    if row.needs_reference:
        params["objective"] = objective.model_dump(mode="json")
    if row.needs_collection:
        params["mix"] = list(mix)
    return Node(f"{method}.{number}.optimise", "optimise", params, inputs, method, number, objective=objective, mix=mix)


def _variant(config: RunConfig, name: str, inputs: dict[str, str], ranking: RankingConfig, replicate: int) -> Node:
    """The training of a variant of a sweep over rankings with one training seed."""
    node = _optimise(config, config.method, 1, inputs, ranking)
    params = node.params | {"replicate": replicate}
    labels: dict[str, Any] = {"method": name.rpartition(".")[0], "replicate": replicate}
    return replace(node, name=f"{name}.optimise", params=params, **labels)


def _rounds(config: RunConfig, stage: Repeat) -> Iterator[Node]:
    """All rounds of every method, each from the same SFT policy; or the variants of a sweep over rankings."""
    if config.sweep is not None:
        yield from sweep_nodes(config, partial(_variant, config))
        return
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
    elif stage == "reward_models" and config.sweep is None:
        yield from model_nodes(config, MODELS)
    elif stage == "evaluate":
        yield Node("base.evaluate", "evaluate", stage_params(config, "evaluate"), {"policy": "sft"})
    elif stage == "cold_start":
        yield Node("cold_start", "cold_start", stage_params(config, "cold_start"), {"questions": "questions"})
    elif stage == "examine":
        yield Node("base.examine", "examine", stage_params(config, "examine"), _base_inputs(config))
    elif stage == "grpo":
        yield from _arms(config)


def _given_policy(config: RunConfig) -> Iterator[Node]:
    """Without SFT the config's checkpoint takes its place."""
    if "sft" not in config.stage_names and config.needs_policy:
        yield Node("sft", "given", stage_params(config, "given"))


def expand(config: RunConfig) -> list[Node]:
    """The nodes of a run, every node after its inputs."""
    if config.is_joint:
        nodes = [*joint_nodes(config)]
    elif config.is_pipeline:
        nodes = pipeline_nodes(config)
    else:
        nodes = [*_given_policy(config), *(node for stage in config.stages for node in _stage(config, stage))]
    return [*nodes, Node("report", "report", inputs={node.name: node.name for node in nodes})]
