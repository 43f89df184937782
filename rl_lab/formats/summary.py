"""What a set of episodes holds: counts and lengths, and the mean and deviation of states and of every chunk slot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from algos.chunks import Timing
from envs.se3 import encode_pose, to_relative
from envs.types import Episode
from rl_lab.stats import Moments


def contents(episodes: Iterable[Episode]) -> dict[str, Any]:
    """Counts, lengths in steps, image sides and episodes by task."""
    steps: list[int] = []
    tasks: Counter[str] = Counter()
    sides, instructions = set(), set()
    num_frames = num_successes = 0
    for episode in episodes:
        steps.append(episode.num_steps)
        tasks[f"{episode.task}/{episode.variant}" if episode.variant else episode.task] += 1
        sides.add(int(episode.images.shape[-2]))
        instructions.add(episode.instruction)
        num_frames += len(episode.frame_steps)
        num_successes += episode.success
    lengths = {"min": min(steps), "median": float(np.median(steps)), "max": max(steps)} if steps else {}
    return {
        "episodes": len(steps),
        "successes": num_successes,
        "steps": sum(steps),
        "images_per_camera": num_frames,
        "image_side": sorted(sides),
        "steps_per_episode": lengths,
        "instructions": len(instructions),
        "tasks": dict(sorted(tasks.items())),
    }


def chunk_stats(episodes: Iterable[Episode], timing: Timing) -> dict[str, Any]:
    """Statistics under the released names, of encoded poses (xyz, rot6d, gripper of two arms: 20 numbers).

    qpos_* [20] of states; action_* [H, 20] relative to the state at the chunk's start; action_*_abs [H, 20] absolute.
    No deviation is floored here.
    """
    moments = chunk_moments(episodes, timing)
    lists = {
        f"{name}_{part}{kind}": getattr(each, part).tolist()
        for (name, kind), each in zip((("qpos", ""), ("action", ""), ("action", "_abs")), moments, strict=True)
        for part in ("mean", "std")
    }
    about = {"horizon": timing.horizon, "stride": timing.stride, "first_slot": timing.first_slot}
    return about | {"states": moments[0].count} | lists


def chunk_moments(episodes: Iterable[Episode], timing: Timing) -> tuple[Moments, Moments, Moments]:
    """Of encoded states [20], of relative and of absolute chunks [H, 20], over all states that have a frame."""
    states, relative, absolute = Moments(), Moments(), Moments()
    for episode in episodes:
        steps = episode.frame_steps[episode.frame_steps < len(episode.actions)]
        chunks = timing.chunks(episode.poses, episode.actions, steps)
        states.add(encode_pose(episode.poses[steps]))
        relative.add(to_relative(chunks, episode.poses[steps]))
        absolute.add(encode_pose(chunks))
    return states, relative, absolute
