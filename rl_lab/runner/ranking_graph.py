"""Rewards of actions as nodes: what they learn from, the models, sampled chunks, and the pairs that they make of them.

A run:    reward.episodes -> reward.KIND;   m.k.candidates -> m.k.rank -> m.k.optimise   of method m and round k.
A sweep:  of training seed r, seed.r.collect, seed.r.episodes -> seed.r.KIND and seed.r.candidates, shared by all
          variants v: v.r.rank -> v.r.optimise -> v.r.evaluate.
A training seed is everything behind the base policy: other episodes, pairs and candidates, other starting weights of
the reward models, and another order and noise of the optimisation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rl_lab.config.action_rewards import RankingConfig
from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node, stage_params

MODELS, SEED = "reward", "seed"
"""First part of the names of reward models, and of what the variants of a sweep share."""

Optimise = Callable[[str, dict[str, str], RankingConfig, int], Node]
"""(name, inputs, ranking, training seed) -> the node of a training."""


def model_nodes(config: RunConfig, prefix: str, replicate: int | None = None) -> Iterator[Node]:
    """Recorded episodes and the reward models that learn from them."""
    labels = {"replicate": replicate} if replicate is not None else {}
    name = f"{prefix}.episodes"
    params = stage_params(config, "record") | labels
    yield Node(name, "record", params, {"policy": "sft"}, replicate=replicate)
    params = stage_params(config, "reward_model") | labels
    del params["reward_models"]["kinds"]
    demos = {"demos": "demos"} if config.reward_models.demonstrations else {}
    for kind in config.reward_models.kinds:
        inputs = {"episodes": name} | demos
        yield Node(f"{prefix}.{kind}", "reward_model", params | {"kind": kind}, inputs, replicate=replicate)


def candidates_node(config: RunConfig, prefix: str, policy: str, **labels: Any) -> Node:
    """Chunks that a policy samples."""
    given = {name: labels[name] for name in ("round", "replicate") if name in labels}
    params = stage_params(config, "candidates") | given
    return Node(f"{prefix}.candidates", "candidates", params, {"policy": policy}, **labels)


def rank_node(config: RunConfig, prefix: str, candidates: str, models: str, **labels: Any) -> Node:
    """Pairs by the run's ranking, or by that of a variant in `labels["sections"]`."""
    ranking: RankingConfig = labels.get("sections", {}).get("ranking", config.ranking)
    inputs = {"candidates": candidates} | {kind: f"{models}.{kind}" for kind in ranking.learned}
    kept = ranking.model_dump(mode="json", include={"weights", "margin"})
    given = {name: labels[name] for name in ("round", "replicate") if name in labels}
    return Node(f"{prefix}.rank", "rank", {"ranking": kept} | given, inputs, **labels)


def sweep_nodes(config: RunConfig, optimise: Optimise) -> Iterator[Node]:
    """All training seeds of every variant; `optimise` makes the node of a training."""
    assert config.sweep is not None
    for replicate in range(1, config.replicates + 1):
        shared = f"{SEED}.{replicate}"
        params = stage_params(config, "collect") | {"round": 1, "replicate": replicate}
        yield Node(f"{shared}.collect", "collect", params, {"policy": "sft"}, round=1, replicate=replicate)
        if "reward_models" in config.stages:
            yield from model_nodes(config, shared, replicate)
        yield candidates_node(config, shared, "sft", round=1, replicate=replicate)
        for variant in config.sweep.names:
            yield from _variant(config, variant, replicate, optimise)


def _variant(config: RunConfig, variant: str, replicate: int, optimise: Optimise) -> Sequence[Node]:
    assert config.sweep is not None
    ranking, shared, name = config.sweep.rankings[variant], f"{SEED}.{replicate}", f"{variant}.{replicate}"
    labels = {"method": variant, "round": 1, "replicate": replicate, "sections": {"ranking": ranking}}
    nodes = [rank_node(config, name, f"{shared}.candidates", shared, **labels)] if ranking.weights else []
    inputs = {"policy": "sft", "sft": "sft", "demos": "demos", "pairs.1": f"{shared}.collect"}
    inputs |= {"ranked": f"{name}.rank"} if nodes else {}
    nodes.append(optimise(name, inputs, ranking, replicate))
    params = stage_params(config, "evaluate")
    policy = {"policy": nodes[-1].name}
    return [*nodes, Node(f"{name}.evaluate", "evaluate", params, policy, variant, 1, replicate)]
