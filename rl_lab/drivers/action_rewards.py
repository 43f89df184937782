"""The stages of rewards of actions: recorded episodes, reward models, sampled chunks, pairs of ranked chunks."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from envs.branching import BranchConfig
from rl_lab.errors import RunError
from rl_lab.files import write_whole
from rl_lab.graph.stage import StageContext
from rl_lab.learner.action_rewards import RewardPlan, make_card
from rl_lab.learner.actions import num_commands
from rl_lab.model.checkpoint import published
from rl_lab.records.episodes import read_candidates, read_episodes, write_candidates, write_episodes
from rl_lab.rollouts.collect import kept
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.seeding import training_seeds
from rl_lab.training.dataset import train
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.placement import ACTOR_CPUS
from rl_lab.workers.simulation import Unit, env_specs, episode_units

CARD_FILE = "card.json"


def record(cluster: Cluster, context: StageContext) -> None:
    """Episodes of the policy with their pictures, shared evenly by tasks and variants."""
    settings = context.config.record
    episodes = _simulate(
        cluster,
        context,
        settings.episodes,
        lambda actor, unit, weights: actor.record.remote(unit, weights, settings.execute),
        (write_episodes, read_episodes),
    )
    write_episodes(context.out, episodes)
    context.say(f"{sum(episode.success for episode in episodes)} of {len(episodes)} recorded episodes succeeded")


def candidates(cluster: Cluster, context: StageContext) -> None:
    """Several chunks in each of some states of the policy's episodes, shared evenly by tasks and variants."""
    settings = context.config.candidates
    each = settings.states_per_episode
    config = BranchConfig(settings.execute, each, settings.samples, settings.decisions)
    states = _simulate(
        cluster,
        context,
        -(-settings.states // each),
        lambda actor, unit, weights: actor.candidates.remote(unit, weights, config),
        (write_candidates, read_candidates),
    )
    write_candidates(context.out, states[: settings.states])


def reward_model(cluster: Cluster, context: StageContext) -> None:
    """One kind of reward model on recorded episodes, with a card of what it knows about others."""
    settings, kind = context.config.reward_models, context.node.params["kind"]
    demos = context.inputs.get("demos")
    horizon = num_commands(context.config.model)
    plan = RewardPlan(kind, settings, context.inputs["episodes"], demos, horizon, context.training_seed)
    train(cluster, context, plan)
    card = _call(make_card, context.out, plan)
    write_whole(context.out / CARD_FILE, json.dumps(card, indent=1) + "\n")


def rank(cluster: Cluster, context: StageContext) -> None:
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


def _simulate(
    cluster: Cluster,
    context: StageContext,
    episodes: int,
    submit: Callable[[Any, Unit, ray.ObjectRef], ray.ObjectRef],
    files: tuple[Callable[..., None], Callable[[Path], list]],
) -> list[Any]:
    """Results of the policy's episodes on training seeds, unit by unit; those that are done survive a kill."""
    snapshot, seed, specs = (
        published(context.inputs["policy"]),
        context.training_seed,
        env_specs(context.config, "seen"),
    )
    kind, results = context.node.kind, []
    write, read = files
    units: list[Unit] = []
    for number, spec in enumerate(specs):
        share = episodes // len(specs) + (number < episodes % len(specs))
        name = f"{kind}/{snapshot.version}/{spec.task}/{spec.variant}"
        units += episode_units(kind, spec, training_seeds(seed, name, share, spec.backend), seed)
    with cluster.simulation_pool() as pool:
        weights = cluster.share(snapshot)
        run = partial(pool.map, lambda actor, unit: submit(actor, unit, weights), check_stop=context.check_stop)
        store = kept(context.scratch, units, run, lambda folder, result: write(folder, result), read)
        for done, found in enumerate(store, start=1):
            results += found
            context.progress(done, len(units), f"{len(results)} so far")
    return results


def _call(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """A result computed in a process of its own, with the threads of a worker."""
    return ray.get(ray.remote(num_cpus=ACTOR_CPUS)(function).remote(*arguments))
