"""The demonstrations of a run from files: read and checked by the simulation workers, their images left in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray

from envs.types import Episode
from rl_lab.action.buffers import write_episodes
from rl_lab.errors import UserError
from rl_lab.formats.checks import Problem
from rl_lab.formats.recordings import Recording, find_recordings
from rl_lab.json_lines import write_json_lines
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.cluster import Cluster

UNIT_FILES = 8
SAID_PROBLEMS = 20
"""So many are printed; all that were skipped are in `problems.jsonl`."""


def record_demos(cluster: Cluster, context: StageContext) -> None:
    """Write the demonstrations of `demos.files`; UserError, after naming every problem, for broken ones."""
    files = context.config.demos.files
    recordings, _ = find_recordings(
        [Path(path) for path in files.paths],
        image_size=context.config.env.image_size,
        save_freq=files.save_freq,
        split=files.instructions,
    )
    episodes, problems = _read(cluster, context, recordings)
    for problem in problems[:SAID_PROBLEMS]:
        context.say(f"{'skipped: ' if files.skip_broken else ''}{problem}")
    broken = len(recordings) - len(episodes)
    if broken and not files.skip_broken:
        raise UserError(
            f"demos.files: {broken} of {len(recordings)} episodes are broken, the first: {problems[0]}; mend them, or "
            "leave them out with demos.files.skip_broken=true"
        )
    if not episodes:
        raise UserError(f"demos.files: none of {len(recordings)} episodes is sound, the first: {problems[0]}")
    write_episodes(context.out, episodes)
    write_json_lines(context.out / "problems.jsonl", [vars(problem) for problem in problems])


def _read(cluster: Cluster, context: StageContext, recordings: list[Recording]) -> tuple[list[Episode], list[Problem]]:
    """All sound episodes in order, and the problems of the others."""
    episodes: list[Episode] = []
    problems: list[Problem] = []

    def submit(actor: Any, unit: list[Recording]) -> ray.ObjectRef:
        return actor.read_recordings.remote(unit)

    units = [recordings[start : start + UNIT_FILES] for start in range(0, len(recordings), UNIT_FILES)]
    done = 0
    with cluster.simulation_pool() as pool:
        for results in pool.map(submit, units, context.check_stop):
            for episode, found in results:
                episodes += [] if episode is None else [episode]
                problems += found
            done += len(results)
            context.progress(done, len(recordings), f"{len(problems)} problems" if problems else "")
    return episodes, problems
