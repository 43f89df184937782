"""Episodes of a stage's policy on training seeds, as they are or with noise in groups, for what learns from them."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from envs.execution import Execution
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_whole
from rl_lab.common.seeding import training_seeds
from rl_lab.graph.stage import StageContext
from rl_lab.learner.policy_gradient import Exploration, advantages
from rl_lab.model.checkpoint import published, read_info
from rl_lab.records.episodes import read_episodes, write_episodes
from rl_lab.rollouts.collect import COUNTS_FILE, kept
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import Unit, env_specs, episode_units


def simulate(
    cluster: Cluster,
    context: StageContext,
    episodes: int,
    submit: Callable[[Any, Unit, ray.ObjectRef], ray.ObjectRef],
    files: tuple[Callable[..., None], Callable[[Path], list]],
    group: int = 1,
) -> list[Any]:
    """Results of the policy's episodes on training seeds, unit by unit; those that are done survive a kill.

    With a `group` above 1 a unit is so many episodes from one seed, of which there are `episodes`.
    """
    snapshot, seed, specs = (
        published(context.inputs["policy"], context.config.policy_code),
        context.seed,
        env_specs(context.config, "seen"),
    )
    kind, results = context.node.kind, []
    write, read = files
    units: list[Unit] = []
    for number, spec in enumerate(specs):
        share = episodes // len(specs) + (number < episodes % len(specs))
        name = f"{kind}/{snapshot.version}/{spec.task}/{spec.variant}"
        seeds = training_seeds(seed, name, share, spec.backend)
        units += (
            episode_units(kind, spec, seeds, seed) if group == 1 else [Unit(spec, (s,) * group, seed) for s in seeds]
        )
    with cluster.simulation_pool() as pool:
        weights = cluster.share(snapshot)
        run = partial(pool.map, lambda actor, unit: submit(actor, unit, weights), check_stop=context.check_stop)
        store = kept(context.scratch, units, run, lambda folder, result: write(folder, result), read)
        for done, found in enumerate(store, start=1):
            results += found
            context.progress(done, len(units), f"{len(results)} so far")
    return results


def explore(cluster: Cluster, context: StageContext) -> None:
    """Write groups of episodes with the paths of all decisions, and their counts. UserError for a policy that sees
    earlier frames, which these episodes do not keep."""
    settings, weights, sampler = context.config.explore, context.objective, context.node.params["sampler"]
    if read_info(context.inputs["policy"]).memory.frames > 1:
        raise UserError(f"{context.node.method} keeps no earlier frames, but the policy has a memory; use rpro")
    how = Exploration(sampler, settings.denoising_steps, weights.noise, weights.noise_bounds)
    execution = Execution(execute=settings.execute)
    episodes = simulate(
        cluster,
        context,
        settings.groups,
        lambda actor, unit, policy: actor.explore.remote(unit, policy, execution, how),
        (write_episodes, read_episodes),
        settings.episodes,
    )
    write_episodes(context.out, episodes)
    counts = {
        "episodes": len(episodes),
        "successes": sum(one.success for one in episodes),
        "with_signal": int((advantages(episodes) != 0).sum()),
        "policy_steps": sum(one.num_steps for one in episodes),
    }
    if not counts["with_signal"]:
        context.say(
            f"{counts['successes']} of {len(episodes)} episodes succeeded, and all of each start ended alike: this "
            "round teaches nothing; raise explore.groups, or begin with a policy that solves some"
        )
    write_whole(context.out / COUNTS_FILE, json.dumps(counts, indent=1) + "\n")
