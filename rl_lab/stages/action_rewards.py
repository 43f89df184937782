"""Rewards of actions: what they learn from, the models, sampled chunks, and the pairs that they make of them.

reward.episodes -> reward.KIND;   m.k.candidates -> m.k.rank -> m.k.optimise   of method m and round k.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray

from envs.branching import BranchConfig
from envs.execution import Execution
from rl_lab.common.errors import RunError
from rl_lab.common.files import write_whole
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
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

MODELS = "reward"
"""First part of the names of reward models."""

CARD_FILE = "card.json"


class RewardModelsKind(StageKind):
    """Recorded episodes and the reward models that learn from them."""

    name = "reward_models"
    start = BASE_POLICY
    of_actions = simulates = True

    def expand(self, graph: Expansion, step: Step) -> None:
        """Shared by all rounds."""
        episodes = graph.add(f"{MODELS}.episodes", "record", {"policy": "sft"}).name
        models = graph.config.reward_models
        inputs = {"episodes": episodes} | ({"demos": "demos"} if models.demonstrations else {})
        for kind in models.kinds:
            graph.add(f"{MODELS}.{kind}", "reward_model", inputs, more={"kind": kind})


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
        plan = RewardPlan(kind, settings, context.inputs["episodes"], demos, horizon, context.seed)
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
        arguments = (context.inputs["candidates"], models, ranking.weights, ranking.margin, context.seed)
        found = _call(rank_folder, *arguments, context.out)
        if not found["pairs"]:
            raise RunError(
                f"no pair in {found['states']} states: {found.get('abstained/disagreement', 0)} times the members "
                f"disagreed, {found.get('abstained/margin', 0)} times chunks were too close; lower ranking.margin or "
                "train the reward models longer"
            )
        context.say(f"{found['pairs']} pairs from {found['states']} states")


def add_ranking(graph: Expansion, prefix: str, policy: str, **labels: Any) -> str:
    """Chunks that a policy samples, and the pairs that the run's ranking makes of them."""
    ranking, more = graph.config.ranking, {"round": labels["round"]}
    candidates = graph.add(f"{prefix}.candidates", "candidates", {"policy": policy}, more=more, **labels).name
    inputs = {"candidates": candidates} | {kind: f"{MODELS}.{kind}" for kind in ranking.learned}
    params = {"ranking": ranking.model_dump(mode="json", include={"weights", "margin"})} | more
    return graph.add(f"{prefix}.rank", "rank", inputs, params=params, **labels).name


def _call(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A result computed in a process of its own, with the threads of a worker."""
    return ray.get(ray.remote(num_cpus=ACTOR_CPUS)(function).remote(*arguments))
