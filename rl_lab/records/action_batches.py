"""Episodes and preference pairs to normalised batches: the only translator between what workers record and what
objectives read.

Letters: N states, H chunk length, K frames of history, S image side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from typing import Any

import numpy as np

from algos.chunks import Timing
from algos.policy import PolicySizes
from algos.smooth_interpolation import Tuples, interpolate_pair
from envs.types import NO_FRAMES, RANKED, Episode, Layout, PreferencePair
from rl_lab.common.errors import UserError
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.episodes import chunk_moments

STD_FLOOR = 0.02
"""Smallest standard deviation of a normalised number (metres, rot6d entries, gripper): a prototype broke at 1e-3."""

TRUTH_LIMIT = 3.0
"""Standard deviations at which auxiliary targets are clipped: rare events would dominate a squared error."""


@dataclass
class States:
    """N states of preference pairs with the chunks to prefer and to avoid; of demonstrations both are the expert's."""

    frames: np.ndarray
    """All views that any state sees, uint8 [F, V, S, S, 3]."""
    seen: np.ndarray
    """Frames that the policy sees in each state, int64 [N, K], the present one last; -1 is black."""
    poses: np.ndarray
    """Measured states, [N, S]."""
    instructions: list[str]
    winner: np.ndarray
    """Commanded chunks, [N, H, A]."""
    loser: np.ndarray
    """Commanded chunks, [N, H, A]; equal to `winner` where `identical`."""
    identical: np.ndarray
    """bool [N]."""
    from_loser: np.ndarray
    """The state lies on the loser's segment, bool [N]."""
    pair: np.ndarray
    """Number of the pair, int64 [N]; every state of a demonstration is one."""
    weight_version: np.ndarray
    """int64 [N]."""
    truth: np.ndarray | None
    """Of the simulator, float32 [N, n], where every record has it."""

    def __len__(self) -> int:
        return len(self.poses)

    def select(self, mask: np.ndarray) -> States:
        """The states where the mask, bool [N], is true, and all frames."""
        whole: dict[str, Any] = {"frames": self.frames, "instructions": list(compress(self.instructions, mask))}
        rows: dict[str, Any] = {
            name: None if value is None else value[mask] for name, value in vars(self).items() if name not in whole
        }
        return States(**whole, **rows)


def joined_truth(parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Truth vectors of several records, [n_i, n] each, as one array [N, n]; None if one has none or another size."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or len({part.shape[1] for part in known}) != 1:
        return None
    return np.concatenate(known)


def standardised_truth(episodes: Sequence[Episode]) -> np.ndarray | None:
    """Truth vectors of all frames, standardised by task because each task has its own meaning and length.

    None if an episode has none, as those of other simulators and of robots.
    """
    if any(episode.truth is None for episode in episodes):
        return None
    truths = [np.asarray(episode.truth) for episode in episodes]
    width = max(truth.shape[1] for truth in truths)
    rows = np.zeros((sum(len(episode.frame_steps) for episode in episodes), width), dtype=np.float32)
    ends = np.cumsum([len(episode.frame_steps) for episode in episodes])
    spans = [slice(end - len(episode.frame_steps), end) for end, episode in zip(ends, episodes, strict=True)]
    for task in {episode.task for episode in episodes}:
        rows_of = zip(spans, truths, episodes, strict=True)
        mine = [(span, truth) for span, truth, episode in rows_of if episode.task == task]
        values = np.concatenate([truth for _, truth in mine])
        mean, std = values.mean(0), np.maximum(values.std(0), 1e-3)
        for span, truth in mine:
            rows[span, : truth.shape[1]] = np.clip((truth - mean) / std, -TRUTH_LIMIT, TRUTH_LIMIT)
    return rows


def join_frames(frames: Sequence[np.ndarray], seen: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Frames of several records, uint8 [F_i, 3, S, S, 3] each, as one array [F, ...], and what their states see, int64
    [n_i, K] each, numbered through it [N, K]; -1 stays black."""
    starts = np.cumsum([0, *map(len, frames)])
    numbers = [np.where(part < 0, -1, part + start) for part, start in zip(seen, starts, strict=False)]
    return np.concatenate(frames), np.concatenate(numbers)


def demonstrations(episodes: Sequence[Episode], timing: Timing) -> States:
    """Every recorded state of demonstration episodes with the expert's next H commands, in order."""
    chunks = np.concatenate([timing.chunks(one.poses, one.actions, one.frame_steps) for one in episodes])
    seen = [np.stack([timing.frames(step, one.frame_steps) for step in one.frame_steps]) for one in episodes]
    frames, numbers = join_frames([np.asarray(episode.images) for episode in episodes], seen)
    count = len(chunks)
    return States(
        frames=frames,
        seen=numbers,
        poses=np.concatenate([episode.poses[episode.frame_steps] for episode in episodes]),
        instructions=[episode.instruction for episode in episodes for _ in episode.frame_steps],
        winner=chunks,
        loser=chunks,
        identical=np.ones(count, dtype=bool),
        from_loser=np.zeros(count, dtype=bool),
        pair=np.arange(count),
        weight_version=np.zeros(count, dtype=np.int64),
        truth=joined_truth([episode.truth for episode in episodes]),
    )


def shared_layout(episodes: Sequence[Episode]) -> Layout:
    """The layout of all episodes; UserError where they differ in it."""
    first = episodes[0].layout
    other = next((episode.layout for episode in episodes if not episode.layout.is_like(first)), None)
    if other is not None:
        raise UserError(f"demonstrations have {first}, but some {other}; a policy learns from one kind")
    return first


def fit_processor(
    config: PolicySizes,
    episodes: Sequence[Episode],
    timing: Timing,
    token_ids: Callable[[str], list[int]] | None = None,
) -> PolicyProcessor:
    """A processor with these `token_ids` and the statistics of the demonstrations, kept for the life of the policy.

    A model that predicts twice the commands of a chunk predicts it relative and absolute.
    """
    state, relative, absolute = chunk_moments(episodes, timing)
    has_absolute = config.n_action_steps == 2 * timing.horizon
    stats = ActionStats.from_moments(state, relative, absolute if has_absolute else None, STD_FLOOR)
    return PolicyProcessor(config, load_tokenizer(), stats, token_ids)


def pair_states(
    pairs: Sequence[PreferencePair], timing: Timing, loser_states: int | None, stats: ActionStats | None = None
) -> States:
    """Smooth Interpolation of every pair with its first `loser_states` (None: all); states of a pair stay together, in
    the order of the pairs.

    Every control step of a round is a command, whatever the stride of recorded demonstrations. UserError for a pair
    without the frames before its start that the policy's memory reaches. Plain numbers are compared by the policy's
    `stats`.
    """
    widths = None if stats is None else stats.qpos_std
    parts = [_tuples(pair, timing, loser_states, widths) for pair in pairs]
    shown = [_seen_frames(pair, tuples, timing) for pair, tuples in zip(pairs, parts, strict=True)]
    frames, seen = join_frames(*zip(*shown, strict=True))
    sizes = [len(tuples) for tuples in parts]

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(tuples, name) for tuples in parts])

    return States(
        frames=frames,
        seen=seen,
        poses=column("start"),
        instructions=[pair.instruction for pair, size in zip(pairs, sizes, strict=True) for _ in range(size)],
        winner=column("winner"),
        loser=column("loser"),
        identical=column("identical"),
        from_loser=column("from_loser"),
        pair=np.repeat(np.arange(len(pairs)), sizes),
        weight_version=np.repeat([pair.weight_version for pair in pairs], sizes),
        truth=joined_truth([_truth(pair, tuples) for pair, tuples in zip(pairs, parts, strict=True)]),
    )


def _truth(pair: PreferencePair, tuples: Tuples) -> np.ndarray | None:
    """Truth vectors of the states of a pair, [n, n_truth]; None where nobody recorded them."""
    loser, winner = pair.loser.truth, pair.winner.truth
    if loser is None or winner is None:
        return None
    behind = np.where(tuples.from_loser, 0, len(loser))
    return np.concatenate([loser, winner])[tuples.step + behind]


def _tuples(pair: PreferencePair, timing: Timing, loser_states: int | None, widths: np.ndarray | None) -> Tuples:
    """Smooth Interpolation of a pair, with the measured pose in slot 0 where the policy's chunks begin with it.

    Two ranked chunks are compared as they were sampled, in their state and nowhere else.
    """
    if pair.origin == RANKED:
        tuples = interpolate_pair(pair, timing.horizon, 1, widths)
        return tuples.select(tuples.from_loser)
    if timing.first_slot == "next":
        return interpolate_pair(pair, timing.horizon, loser_states, widths)
    tuples = interpolate_pair(pair, timing.horizon - 1, loser_states, widths)
    now = tuples.start[:, : tuples.winner.shape[-1]]
    winner, loser = (np.insert(chunks, 0, now, axis=1) for chunks in (tuples.winner, tuples.loser))
    return replace(tuples, winner=winner, loser=loser)


def _seen_frames(pair: PreferencePair, tuples: Tuples, timing: Timing) -> tuple[np.ndarray, np.ndarray]:
    """Frames that the states of a pair see, uint8 [F, V, S, S, 3], and their numbers for each state, int64 [n, K].

    From both segments a memory looks back to the same steps before their shared start. UserError for a pair that was
    collected without them.
    """
    before = NO_FRAMES if pair.before is None else pair.before
    back = timing.interval * np.arange(timing.history - 1, -1, -1)
    if len(before) < min(pair.start_step, back[0]):
        raise UserError(
            f"the policy looks {back[0]} steps back, but a pair of {pair.task}, seed {pair.seed}, has {len(before)} "
            "frames before its start; collect pairs with a policy of the same memory"
        )
    step = tuples.step[:, None] - back
    is_own, began = step >= 0, pair.start_step + step >= 0
    behind = np.where(tuples.from_loser[:, None], 0, len(pair.loser.images))
    numbers = len(before) + step + np.where(is_own, behind, 0)
    shown, found = np.unique(numbers[began], return_inverse=True)
    seen = np.full(step.shape, -1)
    seen[began] = found
    sources = [part for part in (before, pair.loser.images, pair.winner.images) if len(part)]
    return np.concatenate(sources)[shown], seen
