"""Rewards of actions: what they learn from, the models, sampled chunks, and the pairs that they make of them.

A run:    reward.episodes -> reward.KIND;   m.k.candidates -> m.k.rank -> m.k.optimise   of method m and round k.
A sweep:  of training seed r, seed.r.collect, seed.r.episodes -> seed.r.KIND and seed.r.candidates, shared by all
          variants v: v.r.rank -> v.r.optimise -> v.r.evaluate.
A training seed is everything behind the base policy: other episodes, pairs and candidates, other starting weights of
the reward models, and another order and noise of the optimisation.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray

from envs.branching import BranchConfig
from envs.execution import Execution
from rl_lab.config.actions import RankingConfig
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.errors import RunError
from rl_lab.files import write_whole
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.learner.action_rewards import RewardPlan, make_card
from rl_lab.learner.actions import num_commands
from rl_lab.records.episodes import read_candidates, read_episodes, write_candidates, write_episodes
from rl_lab.rollouts.policy_episodes import simulate
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.stages.base import BASE_POLICY, SIMULATORS, TrainingKind
from rl_lab.training.dataset import train
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.placement import ACTOR_CPUS

MODELS, SEED = "reward", "seed"
"""First part of the names of reward models, and of what the variants of a sweep share."""

CARD_FILE = "card.json"


class RewardModelsKind(StageKind):
    """Recorded episodes and the reward models that learn from them; in a sweep every training seed has its own."""

    name = "reward_models"
    start = BASE_POLICY
    of_actions = simulates = True

    def expand(self, graph: Expansion, step: Step) -> None:
        """Shared by all rounds."""
        if graph.config.sweep is None:
            add_models(graph, MODELS)


class RecordKind(StageKind):
    """Episodes of a policy with their pictures."""

    name = "record"
    named_in = ()
    reads = ("env", "record")
    simulates = True
    workers = SIMULATORS
    folder = "episodes"
    seconds_per_unit = 0.25

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        return config.record.episodes, "episodes"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Episodes of the policy with their pictures, shared evenly by tasks and variants."""
        settings = context.config.record
        episodes = simulate(
            cluster,
            context,
            settings.episodes,
            lambda actor, unit, weights: actor.record.remote(unit, weights, Execution(execute=settings.execute)),
            (write_episodes, read_episodes),
        )
        write_episodes(context.out, episodes)
        context.say(f"{sum(episode.success for episode in episodes)} of {len(episodes)} recorded episodes succeeded")


class RewardModelKind(TrainingKind):
    """One kind of reward model on recorded episodes, an ensemble of small networks whose memory does not count."""

    name = "reward_model"
    named_in = ()
    reads = ("model", "reward_models")
    folder = "reward_models"
    section = "reward_models"
    seconds_per_row = 0.003

    def params(self, config: RunConfig) -> dict[str, Any]:
        """Without the other kinds."""
        params = super().params(config)
        del params["reward_models"]["kinds"]
        return params

    def rows(self, node: Node, config: RunConfig) -> float:
        """Of every member."""
        return super().rows(node, config) * self.settings(node, config).members

    def has_learner(self, config: RunConfig) -> bool:
        """None that counts."""
        return False

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """One kind of reward model on recorded episodes, with a card of what it knows about others."""
        settings, kind = context.config.reward_models, context.node.params["kind"]
        demos = context.inputs.get("demos")
        horizon = num_commands(context.config.model)
        plan = RewardPlan(kind, settings, context.inputs["episodes"], demos, horizon, context.training_seed)
        train(cluster, context, plan)
        card = _call(make_card, context.out, plan)
        write_whole(context.out / CARD_FILE, json.dumps(card, indent=1) + "\n")


class CandidatesKind(StageKind):
    """Several chunks in each of some states of a policy's episodes."""

    name = "candidates"
    named_in = ()
    reads = ("env", "candidates")
    simulates = True
    workers = SIMULATORS
    folder = "candidates"
    seconds_per_unit = 0.25

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """States with their chunks."""
        return config.candidates.states, "states"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Several chunks in each of some states of the policy's episodes, shared evenly by tasks and variants."""
        settings = context.config.candidates
        each = settings.states_per_episode
        config = BranchConfig(settings.execute, each, settings.samples, settings.decisions)
        states = simulate(
            cluster,
            context,
            -(-settings.states // each),
            lambda actor, unit, weights: actor.candidates.remote(unit, weights, config),
            (write_candidates, read_candidates),
        )
        if len(states) < settings.states:
            context.say(
                f"{len(states)} of {settings.states} states: the simulator or its expert had none for the others"
            )
        write_candidates(context.out, states[: settings.states])


class RankKind(StageKind):
    """Preference pairs of sampled chunks."""

    name = "rank"
    named_in = ("repeat",)
    reads = ("ranking",)
    of_actions = True
    folder = "pairs"
    seconds_per_unit = 0.02

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """States with their chunks."""
        return config.candidates.states, "states"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Preference pairs of sampled chunks. RunError if no state gives one."""
        ranking = context.config.ranking
        models = {kind: context.inputs[kind] for kind in ranking.learned}
        arguments = (context.inputs["candidates"], models, ranking.weights, ranking.margin, context.training_seed)
        found = _call(rank_folder, *arguments, context.out)
        if not found["pairs"]:
            raise RunError(
                f"no pair in {found['states']} states: {found.get('abstained/disagreement', 0)} times the members "
                f"disagreed, {found.get('abstained/margin', 0)} times chunks were too close; lower ranking.margin or "
                "train the reward models longer"
            )
        context.say(f"{found['pairs']} pairs from {found['states']} states")


def add_models(graph: Expansion, prefix: str, replicate: int | None = None) -> None:
    """Recorded episodes and the reward models that learn from them."""
    more = {} if replicate is None else {"replicate": replicate}
    episodes = graph.add(f"{prefix}.episodes", "record", {"policy": "sft"}, more=more, replicate=replicate).name
    models = graph.config.reward_models
    inputs = {"episodes": episodes} | ({"demos": "demos"} if models.demonstrations else {})
    for kind in models.kinds:
        graph.add(f"{prefix}.{kind}", "reward_model", inputs, more=more | {"kind": kind}, replicate=replicate)


def add_candidates(graph: Expansion, prefix: str, policy: str, **labels: Any) -> str:
    """Chunks that a policy samples."""
    more = _numbers(labels)
    return graph.add(f"{prefix}.candidates", "candidates", {"policy": policy}, more=more, **labels).name


def add_rank(graph: Expansion, prefix: str, candidates: str, models: str, **labels: Any) -> str:
    """Pairs by the run's ranking, or by that of a variant, whose settings are `labels["config"]`."""
    ranking: RankingConfig = labels.get("config", graph.config).ranking
    inputs = {"candidates": candidates} | {kind: f"{models}.{kind}" for kind in ranking.learned}
    params = {"ranking": ranking.model_dump(mode="json", include={"weights", "margin"})} | _numbers(labels)
    return graph.add(f"{prefix}.rank", "rank", inputs, params=params, **labels).name


def _numbers(labels: dict[str, Any]) -> dict[str, Any]:
    """Of the labels those that address random streams."""
    return {name: labels[name] for name in ("round", "replicate") if name in labels}


def add_sweep(graph: Expansion, optimise: Callable[..., str]) -> None:
    """All training seeds of every variant; `optimise` adds the node of a training."""
    config = graph.config
    for replicate in range(1, config.replicates + 1):
        shared, labels = f"{SEED}.{replicate}", {"round": 1, "replicate": replicate}
        graph.add(f"{shared}.collect", "collect", {"policy": "sft"}, more=labels, **labels)
        if "reward_models" in graph.names:
            add_models(graph, shared, replicate)
        add_candidates(graph, shared, "sft", **labels)
        for variant, own in config.arms.items():
            _add_variant(graph, variant, own, replicate, optimise)


def _add_variant(graph: Expansion, variant: str, own: RunConfig, replicate: int, optimise: Callable[..., str]) -> None:
    shared, name = f"{SEED}.{replicate}", f"{variant}.{replicate}"
    labels: dict[str, Any] = {"method": variant, "round": 1, "replicate": replicate}
    inputs = {"policy": "sft", "sft": "sft", "demos": "demos", "pairs.1": f"{shared}.collect"}
    if own.ranking.weights:
        inputs["ranked"] = add_rank(graph, name, f"{shared}.candidates", shared, config=own, **labels)
    more = {"replicate": replicate}
    trained = optimise(graph, name, graph.config.method, inputs, own.ranking, more, **labels)
    graph.add(f"{name}.evaluate", "evaluate", {"policy": trained}, **labels)


def _call(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A result computed in a process of its own, with the threads of a worker."""
    return ray.get(ray.remote(num_cpus=ACTOR_CPUS)(function).remote(*arguments))
