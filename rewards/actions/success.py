"""Success classifier: does the end of an episode look like a success?

    y = 1 if the episode succeeded else 0, for its last pictures;   R(episode) = p(last picture)

The classifier that robot learning uses where no simulator says so (for example arXiv:1904.07854, section IV, without
its queries). It has seen ends of episodes alone: what it says about pictures in their midst is an extrapolation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.types import Episode

LAST_FRAMES = 2
"""Pictures of each episode that are learned: the end and the decision before it."""


def success_targets(episodes: Sequence[Episode]) -> tuple[np.ndarray, np.ndarray]:
    """Pictures uint8 [N, V, S, S, 3] and targets float32 [N] of the ends of episodes."""
    images = [np.asarray(episode.images[-LAST_FRAMES:]) for episode in episodes]
    labels = [float(episode.success) for episode in episodes]
    return np.concatenate(images), np.repeat(labels, [len(part) for part in images]).astype(np.float32)
