"""The action side's stages: demonstrations, imitation, preference pairs, rounds of a method, evaluation.

Demonstrations from files are read and checked by the simulation workers, their images left in place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ray

from envs.types import Episode
from rl_lab.files import write_json_lines
from rl_lab.graph.stage import StageContext
from rl_lab.learner.actions import OptimisePlan, SFTPlan, starting_policy
from rl_lab.model.checkpoint import published, save_policy
from rl_lab.records.checks import Doubts, Problem
from rl_lab.records.episodes import write_episodes
from rl_lab.records.sources import Recording, check_sound, find_recordings
from rl_lab.rollouts.collect import Request, collect_pairs, round_name, write_collection
from rl_lab.rollouts.evaluation import evaluate_policy
from rl_lab.training.dataset import train
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import Rejection, Unit, drawn_units, env_specs

UNIT_FILES = 8

SAID_PROBLEMS = 20
"""So many are printed; all that were skipped are in `problems.jsonl`."""


def record_demos(cluster: Cluster, context: StageContext) -> None:
    """Write the demonstrations of `demos.files`; UserError, after naming every problem, for broken ones."""
    files = context.config.demos.files
    recordings, _ = find_recordings(**files.reading(), image_size=context.config.env.image_size)
    read = _read(cluster, context, recordings)
    episodes = [episode for episode, _ in read if episode is not None]
    problems = [problem for _, found in read for problem in found]
    for problem in problems[:SAID_PROBLEMS]:
        context.say(f"{'skipped: ' if files.skip_broken else ''}{problem}")
    check_sound([found for _, found in read], files.skip_broken)
    doubts = Doubts()
    for episode in episodes:
        doubts.add(episode)
    for doubt in doubts.lines():
        context.say(f"warning: demos.files: {doubt}")
    write_episodes(context.out, episodes)
    write_json_lines(context.out / "problems.jsonl", [vars(problem) for problem in problems])


def _read(
    cluster: Cluster, context: StageContext, recordings: list[Recording]
) -> list[tuple[Episode | None, list[Problem]]]:
    """Every episode in order, or its problems."""
    found: list[tuple[Episode | None, list[Problem]]] = []

    def submit(actor: Any, unit: list[Recording]) -> ray.ObjectRef:
        return actor.read_recordings.remote(unit)

    units = [recordings[start : start + UNIT_FILES] for start in range(0, len(recordings), UNIT_FILES)]
    with cluster.simulation_pool() as pool:
        for results in pool.map(submit, units, context.check_stop):
            found += results
            broken = sum(episode is None for episode, _ in found)
            context.progress(len(found), len(recordings), f"{broken} broken" if broken else "")
    return found


def demos(cluster: Cluster, context: StageContext) -> None:
    """Successful episodes of the scripted expert, the same number of each task and variant; or those of files."""
    if context.config.demos.files is not None:
        record_demos(cluster, context)
        return
    wanted, noise_m = context.config.demos.episodes, context.config.demos.action_noise_m
    specs = env_specs(context.config, "seen")
    kept: list[Episode] = []

    def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
        return actor.demonstrate.remote(unit, noise_m)

    with cluster.simulation_pool() as pool:
        for spec in specs:
            units = drawn_units("demos", spec, "demos", 4 * wanted, context.seed)
            successes: list[Episode] = []
            last = ""
            for found in pool.map(submit, units, context.check_stop):
                successes += [one for one in found if isinstance(one, Episode) and one.success]
                last = next((f"; last: {one.reason}" for one in found if isinstance(one, Rejection)), last)
                done = len(kept) + min(len(successes), wanted)
                context.progress(done, wanted * len(specs), f"{spec.task} {spec.variant}")
                if len(successes) >= wanted:
                    break
            if len(successes) < wanted:
                raise RuntimeError(
                    f"the expert solved {len(successes)} of {4 * wanted} episodes of {spec.task} {spec.variant}{last}"
                )
            kept += successes[:wanted]
    write_episodes(context.out, kept)


def sft(cluster: Cluster, context: StageContext) -> None:
    """Flow matching on the demonstrations, from the configured preset or checkpoint."""
    config = context.config
    plan = SFTPlan(config.model, config.sft, context.inputs["demos"], config.demos.stride, context.seed)
    train(cluster, context, plan)


def given(cluster: Cluster, context: StageContext) -> None:
    """The configured checkpoint as the policy that rounds begin with, with what the lab knows about it."""
    start = starting_policy(context.config.model, context.seed, stride=1)
    assert start.processor is not None, "checked before the run"
    save_policy(context.out, start.policy, start.processor, replace(start.info, weight_version=1))


def optimise(cluster: Cluster, context: StageContext) -> None:
    """One round of a method on this round's pairs, older pairs and demonstrations."""
    node, inputs = context.node, context.inputs
    assert node.round is not None and node.mix is not None
    plan = OptimisePlan(
        method=node.params["method"],
        round=node.round,
        settings=context.config.optimise,
        objective=context.objective,
        mix=node.mix,
        policy=inputs["policy"],
        sft=inputs["sft"],
        demos=inputs["demos"],
        stride=context.config.demos.stride,
        pairs=tuple(context.pairs),
        seed=context.training_seed,
        ranked=inputs.get("ranked"),
    )
    train(cluster, context, plan)


def evaluate(cluster: Cluster, context: StageContext) -> None:
    """Success of the policy on the evaluation seeds of every task and variant."""
    snapshot = published(context.inputs["policy"])
    with cluster.simulation_pool() as pool:
        found = evaluate_policy(
            pool,
            cluster.share(snapshot),
            context.config,
            context.seed,
            context.scratch,
            check_stop=context.check_stop,
            progress=context.progress,
        )
    write_json_lines(context.out / "results.jsonl", found.rows)
    if found.rejected:
        write_json_lines(context.out / "rejected.jsonl", found.rejected)


def collect(cluster: Cluster, context: StageContext) -> None:
    """Preference pairs from the policy's failures, shared evenly by tasks and variants."""
    snapshot = published(context.inputs["policy"])
    name = round_name(snapshot.version)
    request = Request(name, context.training_seed, context.scratch, context.check_stop, context.progress)
    with cluster.simulation_pool() as pool:
        pairs, counts = collect_pairs(pool, cluster.share(snapshot), context.config, request)
    if not pairs:
        raise RuntimeError(
            f"no preference pair in {counts['episodes']} episodes: the policy no longer fails, or nothing it does "
            "can be corrected; raise collect.max_episodes or stop at the previous round"
        )
    write_collection(context.out, pairs, counts)
