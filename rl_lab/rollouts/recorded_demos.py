"""Demonstrations that others recorded, read and checked by the simulation workers, their images left in place."""

from __future__ import annotations

from typing import Any

import ray

from envs.types import Episode
from rl_lab.common.files import write_json_lines
from rl_lab.config.actions import FilesConfig
from rl_lab.graph.stage import StageContext
from rl_lab.records.checks import Doubts, Problem
from rl_lab.records.episodes import write_episodes
from rl_lab.records.sources import Recording, check_sound, find_recordings
from rl_lab.workers.cluster import Cluster

UNIT_FILES = 8
SAID_PROBLEMS = 20
"""So many are printed; all that were skipped are in `problems.jsonl`."""


def num_recorded(files: FilesConfig) -> int:
    """Episodes in the files of demonstrations."""
    return len(find_recordings(**files.reading(), image_size=1)[0])


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
