"""The last stage: what a run leaves for people to read, and films of evaluated episodes.

A film shows the same scene under two policies of which one solved it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from rl_lab.common.files import Record, write_folder, write_json_lines
from rl_lab.graph.nodes import Place, StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.model.checkpoint import published
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import BASE, LoadedRun, in_world, load_run, study_place
from rl_lab.reports.study import is_study, settings
from rl_lab.reports.study_details import flips, judged
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import Film, evaluation_groups

RESCUED = 4
"""Episodes of a run shown before and after its training."""
FLIPPED = 1
"""Episodes of each direction shown for a ranking of a study."""
TRAINING_SEED = 1
"""Of a study: whose policies are filmed."""


class ReportKind(StageKind):
    """Films, summary and page of the run folder."""

    name = "report"
    named_in = ()
    makes = "page"
    seconds_per_unit = 15.0

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Films of episodes that end differently under two policies, then summary and page of the run folder."""
        run = load_run(context.out)
        contrasts = flipped(run) if is_study(run) else rescued(run)
        record_films(cluster, context, contrasts)
        write_report(context.out)


@dataclass(frozen=True)
class Contrast:
    """Episodes that end differently under the policies of two training nodes."""

    before: str
    after: str
    solved: dict[Place, bool]
    """By episode, whether `after` solved it; `before` did the opposite."""

    @property
    def nodes(self) -> tuple[str, str]:
        """Both of them."""
        return self.before, self.after


def rescued(run: LoadedRun) -> list[Contrast]:
    """What the last policy of the run's method solves and the base policy did not."""
    base = {episode.key: episode.success for one in run.evaluations if one.method == BASE for episode in one.episodes}
    own = [one for one in run.evaluations if one.method == run.config.get("method")]
    last = max(own, key=lambda one: one.round, default=None)
    if last is None:
        return []
    turned = [episode.key for episode in last.episodes if episode.success and base.get(episode.key) is False]
    after = f"{last.method}.{last.round}.optimise"
    return [Contrast("sft", after, dict.fromkeys(turned[:RESCUED], True))] if turned else []


def flipped(run: LoadedRun) -> list[Contrast]:
    """Of a study of rankings in one world: episodes that flip, over all training seeds and in the first one."""
    study = settings(run)
    if not study.rankings or study.factors:
        return []
    here = in_world(run, study.worlds()[0].name)
    inputs = {stage.name: stage.inputs or {} for stage in run.stages}
    evaluated = [one for one in here.evaluations if study_place(one.node)[1] == TRAINING_SEED]
    policies = {one.method: inputs.get(one.node, {}).get("policy", "") for one in evaluated}  # of the last round
    found, truth = [], judged(here, study)
    for name in study.others:
        if any(TRAINING_SEED not in truth.seeds(one) for one in (study.control, name)):
            continue
        own, theirs = (truth.values[one][TRAINING_SEED] for one in (name, study.control))
        solved: dict[Place, bool] = {}
        for flip in flips(truth, name, study.control, 0.5):
            key, gained = flip["item"], flip["method"] > flip["control"]
            shows = own.get(key, 0.0) - theirs.get(key, 0.0) == (1 if gained else -1)
            if shows and list(solved.values()).count(gained) < FLIPPED:
                solved[key] = gained
        if solved:
            found.append(Contrast(policies[study.control], policies[name], solved))
    return found


def record_films(cluster: Cluster, context: StageContext, contrasts: Sequence[Contrast]) -> None:
    """Run the evaluation units of the episodes again, once a policy, and write `videos/AFTER` of each contrast.

    Whole units run, so each episode is bit for bit the one that was evaluated, where the simulator repeats itself;
    where it does not, an episode with another end than then is not shown.
    """
    wanted: dict[str, set[Place]] = defaultdict(set)
    for contrast in contrasts:
        for node in contrast.nodes:
            wanted[node] |= set(contrast.solved)
    films: dict[tuple[str, Place], Film] = {}
    for done, (node, keys) in enumerate(wanted.items(), start=1):
        films |= {(node, (film.task, film.variant, film.seed)): film for film in _film(cluster, context, node, keys)}
        context.progress(done, len(wanted), "films")
    for contrast in contrasts:
        _write(context.out / "videos" / contrast.after, contrast, films)


def _film(cluster: Cluster, context: StageContext, node: str, keys: set[Place]) -> list[Film]:
    config = context.config
    chosen = [
        (unit, tuple(seed for seed in unit.seeds if (unit.env.task, unit.env.variant, seed) in keys))
        for units, _ in evaluation_groups(config, context.seed)
        for unit in units
    ]
    with cluster.simulation_pool() as pool:
        reference = cluster.share(published(context.inputs[node], config.policy_code))

        def submit(actor: Any, item: Any) -> ray.ObjectRef:
            return actor.film.remote(*item, reference, config.eval)

        work = [(unit, seeds) for unit, seeds in chosen if seeds]
        return [film for films in pool.map(submit, work, context.check_stop) for film in films]


def _write(folder: Path, contrast: Contrast, films: dict[tuple[str, Place], Film]) -> None:
    def write(target: Path) -> None:
        write_json_lines(target / "index.jsonl", [_save(target, contrast, *pair) for pair in pairs])

    sides = [(solved, [films[node, key] for node in contrast.nodes]) for key, solved in contrast.solved.items()]
    pairs = [(one, two) for solved, (one, two) in sides if (bool(one.failure), not two.failure) == (solved, solved)]
    if pairs:
        folder.parent.mkdir(exist_ok=True)
        write_folder(folder, write)


def _save(target: Path, contrast: Contrast, before: Film, after: Film) -> Record:
    """Both films as files, and their line in the index."""
    row: Record = {
        "task": before.task,
        "variant": before.variant,
        "seed": before.seed,
        "pictures_hz": before.pictures_hz,
    }
    for side, node, film in (("before", contrast.before, before), ("after", contrast.after, after)):
        row |= {f"{side}_node": node, f"{side}_failure": film.failure}
        row[side] = f"{film.task}-{film.variant}-{film.seed}-{side}.webm"
        (target / row[side]).write_bytes(film.webm)
    return row
