"""Progress: how soon will this state end in success? A Monte-Carlo value function of the policy that was recorded.

    y_t = 1[success] (1 - (T - t) / L),   V(o) = E[y | o]

T control steps to the end, L the longest episode. That is RECAP's return (arXiv:2511.14759, section IV: -1 a step, a
large constant at a failure) on a scale of 0 (a failure, or as far from success as possible) to 1 (success now).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.types import Episode


def progress_targets(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, V, S, S, 3] and targets float32 [N] of all recorded states."""
    longest = max(episode.num_steps for episode in episodes)
    remaining = [episode.num_steps - episode.frame_steps for episode in episodes]
    targets = [episode.success * (1 - left / longest) for episode, left in zip(episodes, remaining, strict=True)]
    return np.concatenate([np.asarray(e.images) for e in episodes]), np.concatenate(targets).astype(np.float32)
