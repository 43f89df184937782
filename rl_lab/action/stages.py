"""The action side's stages: demonstrations, imitation, preference pairs, rounds of a method, evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import ray

from envs.types import Episode
from rl_lab.action.buffers import write_episodes
from rl_lab.action.collection import Request, collect_pairs, kept, write_collection
from rl_lab.action.recorded_demos import record_demos
from rl_lab.action.training import OptimisePlan, SFTPlan
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.learning.checkpoint import published
from rl_lab.learning.stage import train
from rl_lab.runner.stage_context import Stage, StageContext
from rl_lab.seeding import training_seeds
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import Unit
from rl_lab.workers.units import env_specs, episode_units, evaluation_units


class ActionStages:
    """The stage functions of one run, by kind; they share its cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def functions(self) -> dict[str, Stage]:
        """Stage functions by node kind."""
        return {
            "demos": self.demos,
            "sft": self.sft,
            "collect": self.collect,
            "optimise": self.optimise,
            "evaluate": self.evaluate,
        }

    def demos(self, context: StageContext) -> None:
        """Successful episodes of the scripted expert, the same number of each task and variant; or those of files."""
        if context.config.demos.files is not None:
            record_demos(self.cluster, context)
            return
        wanted, noise_m = context.config.demos.episodes, context.config.demos.action_noise_m
        specs = env_specs(context.config, "seen")
        kept: list[Episode] = []

        def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
            return actor.demonstrate.remote(unit, noise_m)

        with self.cluster.simulation_pool() as pool:
            for spec in specs:
                seeds = training_seeds(context.seed, f"demos/{spec.task}/{spec.variant}", 4 * wanted)
                units = episode_units("demos", spec, seeds, context.seed)
                successes: list[Episode] = []
                for episodes in pool.map(submit, units, context.check_stop):
                    successes += [episode for episode in episodes if episode.success]
                    done = len(kept) + min(len(successes), wanted)
                    context.progress(done, wanted * len(specs), f"{spec.task} {spec.variant}")
                    if len(successes) >= wanted:
                        break
                if len(successes) < wanted:
                    raise RuntimeError(
                        f"the expert solved {len(successes)} of {len(seeds)} episodes of {spec.task} {spec.variant}"
                    )
                kept += successes[:wanted]
        write_episodes(context.out, kept)

    def sft(self, context: StageContext) -> None:
        """Flow matching on the demonstrations, from the configured preset or checkpoint."""
        config = context.config
        plan = SFTPlan(config.model, config.sft, context.inputs["demos"], config.demos.stride, context.seed)
        train(self.cluster, context, plan)

    def optimise(self, context: StageContext) -> None:
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
        train(self.cluster, context, plan)

    def evaluate(self, context: StageContext) -> None:
        """Success of the policy on the evaluation seeds of every task and variant."""
        settings = context.config.eval
        snapshot = published(context.inputs["policy"])
        units = evaluation_units(context.config, context.seed)

        def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
            return actor.evaluate.remote(unit, snapshot_ref, settings.execute)

        rows: list[dict] = []
        with self.cluster.simulation_pool() as pool:
            run = partial(pool.map, submit, check_stop=context.check_stop)
            snapshot_ref = self.cluster.share(snapshot)
            for results in kept(context.scratch, units, run, _write_rows, _read_rows):
                rows += results
                context.progress(len(rows), sum(len(unit.seeds) for unit in units))
        write_json_lines(context.out / "results.jsonl", rows)

    def collect(self, context: StageContext) -> None:
        """Preference pairs from the policy's failures, shared evenly by tasks and variants."""
        snapshot = published(context.inputs["policy"])
        name = f"collect/{snapshot.version}"
        request = Request(name, context.training_seed, context.scratch, context.check_stop, context.progress)
        with self.cluster.simulation_pool() as pool:
            pairs, counts = collect_pairs(pool, self.cluster.share(snapshot), context.config, request)
        if not pairs:
            raise RuntimeError(
                f"no preference pair in {counts['episodes']} episodes: the policy no longer fails, or nothing it does "
                "can be corrected; raise collect.max_episodes or stop at the previous round"
            )
        write_collection(context.out, pairs, counts)


def _write_rows(folder: Path, result: Iterable[dict]) -> None:
    write_json_lines(folder / "results.jsonl", result)


def _read_rows(folder: Path) -> list[dict]:
    return read_json_lines(folder / "results.jsonl")
