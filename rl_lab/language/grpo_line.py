"""What the driver of GRPO writes about each step: rewards, pool, rollouts, seconds and idle shares."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from algos.curriculum_items import BANDS, Array, Observation
from rl_lab.language.answering import failure_metrics, reward_means
from rl_lab.records.types import RolloutGroup, all_completions, group_rewards, group_versions, num_tokens

PARTS = ("generate", "score", "learn", "publish")
"""What the seconds of a step go to."""
OPTIONAL_PARTS = ("teacher",)
"""And in some runs."""


class Clock:
    """Seconds of one step by what they were spent on. `busy` counts seconds of engines, `examine` is left out."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """A new step."""
        self._began, self._seconds = time.perf_counter(), defaultdict[str, float](float)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds that were measured elsewhere."""
        self._seconds[name] += seconds

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Count the seconds inside the block."""
        began = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - began)

    def line(self, num_engines: int) -> dict[str, float]:
        """`seconds/PART` and `seconds/step`, and `idle/WORKER`: shares of the step without anything to do."""
        parts = self._seconds
        seconds = max(time.perf_counter() - self._began - parts["examine"], 1e-9)
        named = [*PARTS, *(name for name in OPTIONAL_PARTS if name in parts)]
        return {f"seconds/{name}": parts[name] for name in named} | {
            "idle/rollout": max(0.0, 1 - parts["busy"] / (seconds * num_engines)),
            "idle/learner": max(0.0, 1 - (parts["learn"] + parts["publish"]) / seconds),
            "seconds/step": seconds,
        }


def reward_line(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Mean rewards by part, category and type, and counts of failed reward calls."""
    return reward_means(groups) | failure_metrics(groups)


def pool_line(band_counts: Array, observations: Sequence[Observation]) -> dict[str, float]:
    """`pool/BAND`: items in each band, of counts [C, 5]; `pool_flow/BAND>BAND`: items that moved in this step."""
    flow = np.sum([seen.flow() for seen in observations], axis=0)
    line = {f"pool/{band}": float(count) for band, count in zip(BANDS, band_counts.sum(0), strict=True)}
    moved = [(i, j) for i, j in np.argwhere(flow).tolist() if i != j]
    return line | {f"pool_flow/{BANDS[i]}>{BANDS[j]}": float(flow[i, j]) for i, j in moved}


def group_spread(rewards: Array) -> float:
    """Mean over groups of the standard deviation of their known rewards; rewards [P, G], NaN where a call failed."""
    known = rewards[~np.isnan(rewards).all(1)]
    return float(np.nanstd(known, axis=1).mean()) if len(known) else 0.0


def length_line(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Tokens, their number a completion, and the share of completions that were cut off."""
    flat, tokens = all_completions(groups), num_tokens(groups)
    return {
        "rollouts/tokens": float(tokens),
        "rollouts/length": tokens / len(flat),
        "rollouts/truncated": float(np.mean([not completion.finished for completion in flat])),
    }


def rollout_line(groups: Sequence[RolloutGroup], signal: Array, num_first: int, version: int) -> dict[str, float]:
    """`rollouts/..` of a step whose first round asked `num_first` items, with weights of `version` at the learner."""
    return {
        "rollouts/groups": float(len(groups)),
        "rollouts/refilled": float(len(groups) - num_first),
        "rollouts/signal": float(signal.mean()),
        "rollouts/spread": group_spread(group_rewards(groups)),
        **length_line(groups),
        "rollouts/staleness": float(np.mean(version - group_versions(groups))),
    }
