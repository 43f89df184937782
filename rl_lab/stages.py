"""The steps of a run. Each reads its inputs and configuration from the context and writes into `context.out`.

Simulation and learning happen in Ray actors; this file only says what is asked of them and what is kept.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from algos.alarms import cap_alarm, collapse_alarm
from envs.rollback import Collection, RollbackConfig
from envs.types import Episode, PreferencePair
from rl_lab.buffers import read_pairs, write_episodes, write_pairs
from rl_lab.checkpoint import read_info
from rl_lab.cluster import Cluster
from rl_lab.files import write_folder
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.reports.page import write_report
from rl_lab.seeding import training_seeds
from rl_lab.stage_context import Stage, StageContext
from rl_lab.training import OptimisePlan, SFTPlan
from rl_lab.workers.simulation import Unit
from rl_lab.workers.units import env_specs, episode_units, evaluation_units
from rl_lab.workers.weights import Snapshot, publish

LEARNER_RESTARTS = 3
VIDEOS = 4
"""Episodes shown before and after in the report."""


def _share(total: int, parts: int) -> list[int]:
    """Split a count as evenly as it goes."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _snapshot(folder: Path) -> Snapshot:
    return publish(folder, read_info(folder).weight_version)


class Stages:
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
            "report": self.report,
        }

    def demos(self, context: StageContext) -> None:
        """Successful episodes of the scripted expert, the same number of each task and variant."""
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
        self._train(context, SFTPlan(config.model, config.sft, context.inputs["demos"], context.seed))

    def optimise(self, context: StageContext) -> None:
        """One round of a method on this round's pairs, older pairs and demonstrations."""
        node, inputs = context.node, context.inputs
        assert node.method is not None and node.round is not None and node.mix is not None
        plan = OptimisePlan(
            method=node.method,
            round=node.round,
            settings=context.config.optimise,
            objective=context.objective,
            mix=node.mix,
            policy=inputs["policy"],
            sft=inputs["sft"],
            demos=inputs["demos"],
            pairs=tuple(context.pairs),
            seed=context.seed,
        )
        self._train(context, plan)

    def _train(self, context: StageContext, plan: SFTPlan | OptimisePlan) -> None:
        """Run a plan in a learner process, which is replaced if it dies."""
        for attempt in range(LEARNER_RESTARTS + 1):
            worker = self.cluster.learner(plan, context.scratch)
            try:
                self._run_slices(context, worker, plan.settings.steps)
                ray.get(worker.finish.remote(context.out))
                return
            except RayActorError:
                if attempt == LEARNER_RESTARTS:
                    raise
            finally:
                ray.kill(worker)

    def _run_slices(self, context: StageContext, worker: Any, steps: int) -> None:
        """Drive the learner to `steps`, from wherever its last saved state is."""
        step = ray.get(worker.step.remote())
        context.resume_from(step)
        every = context.config.checkpoint_every
        history: list[dict] = []
        while step < steps:
            result = ray.get(worker.run.remote(min(10, steps - step, every - step % every)))
            for line in result.lines:
                context.log(**line)
            if result.error:
                raise RuntimeError(result.error)
            step += len(result.lines)
            history += result.lines
            if step % every == 0:
                ray.get(worker.save.remote())
            context.progress(step, steps, f"loss {history[-1]['loss']:.4g}")
        for alarm in (collapse_alarm(history), cap_alarm(history)):
            if alarm is not None:
                context.log(step, alarm=alarm)

    def evaluate(self, context: StageContext) -> None:
        """Success of the policy on the evaluation seeds of every task and variant."""
        settings = context.config.eval
        snapshot = _snapshot(context.inputs["policy"])
        units = evaluation_units(context.config, context.seed)

        def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
            return actor.evaluate.remote(unit, snapshot_ref, settings.execute)

        rows: list[dict] = []
        with self.cluster.simulation_pool() as pool:
            run = partial(pool.map, submit, check_stop=context.check_stop)
            snapshot_ref = self.cluster.share(snapshot)
            for results in _kept(context.scratch, units, run, _write_rows, _read_rows):
                rows += results
                context.progress(len(rows), sum(len(unit.seeds) for unit in units))
        write_json_lines(context.out / "results.jsonl", rows)

    def collect(self, context: StageContext) -> None:
        """Preference pairs from the policy's failures, shared evenly by tasks and variants."""
        settings = context.config.collect
        snapshot = _snapshot(context.inputs["policy"])
        rollback = RollbackConfig(**settings.rollback())
        specs = env_specs(context.config, "seen")
        total, counts = settings.pairs, Counter[str]()
        pairs: list[PreferencePair] = []
        with self.cluster.simulation_pool() as pool:
            snapshot_ref = self.cluster.share(snapshot)

            def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
                return actor.collect.remote(unit, snapshot_ref, rollback, settings.corrector)

            run = partial(pool.map, submit, check_stop=context.check_stop)
            for spec, wanted in zip(specs, _share(total, len(specs)), strict=True):
                name = f"collect/{snapshot.version}/{spec.task}/{spec.variant}"
                seeds = training_seeds(context.seed, name, settings.max_episodes // len(specs))
                units = list(episode_units("collect", spec, seeds, context.seed))
                folder = context.scratch / f"{spec.task}-{spec.variant}"
                found: list[PreferencePair] = []
                for collection in _kept(
                    folder,
                    units,
                    run,
                    _write_collection,
                    _read_collection,
                ):
                    found += collection.pairs
                    counts += collection.counts
                    context.progress(min(total, len(pairs) + len(found)), total, f"{spec.task} {spec.variant}")
                    if len(found) >= wanted:
                        break
                pairs += found[:wanted]
        if not pairs:
            raise RuntimeError(
                f"no preference pair in {counts['episodes']} episodes: the policy no longer fails, or nothing it does "
                "can be corrected; raise collect.max_episodes or stop at the previous round"
            )
        write_pairs(context.out, pairs)
        (context.out / "collection.json").write_text(json.dumps({"pairs": len(pairs), **counts}, indent=1) + "\n")

    def report(self, context: StageContext) -> None:
        """Videos of episodes that turned from failure to success, then summary and page of the run folder."""
        config = context.config
        last = f"{config.method}.{config.num_rounds}"
        if {"base.evaluate", f"{last}.evaluate"} <= set(context.inputs):
            self._record_videos(context, "sft", f"{last}.optimise", f"{last}.evaluate")
        write_report(context.out)

    def _record_videos(self, context: StageContext, before: str, after: str, evaluated: str) -> None:
        """Run some evaluation units again with both policies and record the episodes that only the second solved.

        The whole unit runs, so each episode is bit for bit the one that was evaluated.
        """
        config, settings = context.config, context.config.eval
        failed = _solved(context.inputs["base.evaluate"], False)
        turned = [key for key in _solved(context.inputs[evaluated], True) if key in failed][:VIDEOS]
        chosen = [
            (unit, tuple(seed for seed in unit.seeds if (unit.env.task, unit.env.variant, seed) in turned))
            for unit in evaluation_units(config, context.seed)
        ]
        wanted = [(unit, seeds) for unit, seeds in chosen if seeds]
        folder = context.out / "videos" / after
        with self.cluster.simulation_pool() as pool:
            sides = []
            for name in (before, after):
                reference = self.cluster.share(_snapshot(context.inputs[name]))

                def submit(actor: Any, item: Any, reference: ray.ObjectRef = reference) -> ray.ObjectRef:
                    return actor.film.remote(*item, reference, settings.execute)

                sides.append([film for films in pool.map(submit, wanted, context.check_stop) for film in films])
                context.progress(len(sides), 2, "videos")

        def write(target: Path) -> None:
            rows = []
            for first, second in zip(*sides, strict=True):
                labels = {"task": first.task, "variant": first.variant, "seed": first.seed}
                row = labels | {"before_node": before, "after_node": after, "before_failure": first.failure}
                for side, film in (("before", first), ("after", second)):
                    row[side] = f"{first.task}-{first.variant}-{first.seed}-{side}.webp"
                    (target / row[side]).write_bytes(film.webp)
                rows.append(row)
            write_json_lines(target / "index.jsonl", rows)

        if sides[0]:
            folder.parent.mkdir(exist_ok=True)
            write_folder(folder, write)


def _solved(folder: Path, success: bool) -> list[tuple[str, str, int]]:
    """Task, variant and seed of the evaluated episodes with this outcome."""
    rows = read_json_lines(folder / "results.jsonl")
    return [(row["task"], row["variant"], row["seed"]) for row in rows if row["success"] == success]


def _kept(
    folder: Path,
    units: list[Unit],
    run: Callable[[list[Unit]], Iterator[Any]],
    write: Callable[..., None],
    read: Callable[[Path], Any],
) -> Iterator[Any]:
    """Results of the units in order; each is kept in `folder` as it arrives, and read instead of run after a kill."""
    paths = [folder / f"unit-{number:04d}" for number in range(len(units))]
    first_missing = next((number for number, path in enumerate(paths) if not path.is_dir()), len(units))
    for path in paths[:first_missing]:
        yield read(path)
    for path, result in zip(paths[first_missing:], run(units[first_missing:]), strict=False):
        write_folder(path, partial(write, result=result))
        yield result


def _write_rows(folder: Path, result: Iterable[dict]) -> None:
    write_json_lines(folder / "results.jsonl", result)


def _read_rows(folder: Path) -> list[dict]:
    return read_json_lines(folder / "results.jsonl")


def _write_collection(folder: Path, result: Collection) -> None:
    write_pairs(folder, result.pairs)
    (folder / "counts.json").write_text(json.dumps(result.counts))


def _read_collection(folder: Path) -> Collection:
    return Collection(read_pairs(folder), Counter(json.loads((folder / "counts.json").read_text())))
