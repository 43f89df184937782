"""The last stage: what a run leaves for people to read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from rl_lab.files import write_folder
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.learning.checkpoint import published
from rl_lab.reports.page import write_report
from rl_lab.runner.stage_context import Stage, StageContext
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.units import evaluation_groups

VIDEOS = 4
"""Episodes shown before and after in the report."""


class ReportStage:
    """Videos, summary and page."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def functions(self) -> dict[str, Stage]:
        """Stage functions by node kind."""
        return {"report": self.report}

    def report(self, context: StageContext) -> None:
        """Videos of episodes that turned from failure to success, then summary and page of the run folder."""
        config = context.config
        last = f"{config.method}.{config.num_rounds}"
        if {"base.evaluate", f"{last}.evaluate"} <= set(context.inputs):
            self._record_videos(context, "sft", f"{last}.optimise", f"{last}.evaluate")
        write_report(context.out)

    def _record_videos(self, context: StageContext, before: str, after: str, evaluated: str) -> None:
        """Run some evaluation units again with both policies and record the episodes that only the second solved.

        The whole unit runs, so each episode is bit for bit the one that was evaluated, where the simulator repeats
        itself; where it does not, an episode with another end than then is not shown.
        """
        config, settings = context.config, context.config.eval
        failed = _solved(context.inputs["base.evaluate"], False)
        turned = [key for key in _solved(context.inputs[evaluated], True) if key in failed][:VIDEOS]
        chosen = [
            (unit, tuple(seed for seed in unit.seeds if (unit.env.task, unit.env.variant, seed) in turned))
            for units, _ in evaluation_groups(config, context.seed)
            for unit in units
        ]
        wanted = [(unit, seeds) for unit, seeds in chosen if seeds]
        folder = context.out / "videos" / after
        with self.cluster.simulation_pool() as pool:
            sides = []
            for name in (before, after):
                reference = self.cluster.share(published(context.inputs[name]))

                def submit(actor: Any, item: Any, reference: ray.ObjectRef = reference) -> ray.ObjectRef:
                    return actor.film.remote(*item, reference, settings.execute)

                sides.append([film for films in pool.map(submit, wanted, context.check_stop) for film in films])
                context.progress(len(sides), 2, "videos")

        def write(target: Path) -> None:
            rows = []
            for first, second in films:
                labels = {"task": first.task, "variant": first.variant, "seed": first.seed}
                row = labels | {"before_node": before, "after_node": after, "before_failure": first.failure}
                for side, film in (("before", first), ("after", second)):
                    row[side] = f"{first.task}-{first.variant}-{first.seed}-{side}.webp"
                    (target / row[side]).write_bytes(film.webp)
                rows.append(row)
            write_json_lines(target / "index.jsonl", rows)

        films = [(one, other) for one, other in zip(*sides, strict=True) if one.failure and not other.failure]
        if films:
            folder.parent.mkdir(exist_ok=True)
            write_folder(folder, write)


def _solved(folder: Path, success: bool) -> list[tuple[str, str, int]]:
    """Task, variant and seed of the evaluated episodes with this outcome."""
    rows = read_json_lines(folder / "results.jsonl")
    return [(row["task"], row["variant"], row["seed"]) for row in rows if row["success"] == success]
