"""Chunks that were sampled in one state -> preference pairs, by rewards; and how right the rewards were."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.types import RANKED, Candidates, PreferencePair, Segment
from rewards.actions.ranking import Choice, choose, combined, expert_deviation
from rewards.calibration import pair_accuracy, rank_correlation
from rl_lab.common.seeding import stream
from rl_lab.learner.action_rewards import load_ensemble
from rl_lab.records.episodes import read_candidates
from rl_lab.rollouts.collect import write_collection

TRUTH_MARGIN = 0.02
"""Progress by which one chunk must have led further than another for the two to count as different."""

Scores = dict[str, list[np.ndarray]]
"""Reward -> scores of every state's chunks, [M, N] each."""


def score_states(states: Sequence[Candidates], rewards: Sequence[str], models: Mapping[str, Path], seed: int) -> Scores:
    """What each reward says about the chunks of every state; `random` is drawn by the seed."""
    found: Scores = {}
    for name in rewards:
        if name == "deviation":
            found[name] = _deviations(states)
        elif name == "random":
            found[name] = [stream(seed, "random_rank", n).normal(size=(1, len(s))) for n, s in enumerate(states)]
        else:
            ensemble = load_ensemble(models[name])
            found[name] = [ensemble.score_chunks(state) for state in states]
    return found


def _deviations(states: Sequence[Candidates]) -> list[np.ndarray]:
    """[1, N] of every state; numbers that are no poses count in standard deviations of the experts' commands."""
    is_pose = states[0].layout.numbers == "ee"
    spread = None if is_pose else np.concatenate([state.expert for state in states]).std(axis=0)
    return [expert_deviation(state.actions, state.expert, spread)[None] for state in states]


def ranked_pair(state: Candidates, choice: Choice, reward: str) -> PreferencePair:
    """The best and the worst chunk of a state as a pair."""
    sides: dict[str, Any] = {
        side: Segment(poses=state.poses[number], actions=state.actions[number], images=state.images[number])
        for side, number in (("winner", choice.best), ("loser", choice.worst))
    }
    return PreferencePair(
        task=state.task,
        variant=state.variant,
        seed=state.seed,
        instruction=state.instruction,
        **sides,
        start_step=state.step,
        trigger_step=state.step + len(state.actions[0]),
        trigger=RANKED,
        rollback_steps=0,
        corrector="policy",
        start_digest=state.start_digest,
        weight_version=state.weight_version,
        origin=RANKED,
        reward=reward,
        reward_gap=choice.gap,
        before=state.before,
        control_hz=state.control_hz,
        simulation=state.simulation,
        layout=state.layout,
    )


def rank_states(
    states: Sequence[Candidates], scores: Scores, weights: Mapping[str, float], margin: float
) -> tuple[list[PreferencePair], Counter[str], list[Choice]]:
    """Pairs of all states about which the rewards say something; counts of the others by reason; all choices."""
    name = " + ".join(f"{weights[one]:g} {one}" if len(scores) > 1 else one for one in scores)
    choices = [choose(one, margin) for one in combined(scores, weights)]
    pairs = [ranked_pair(s, c, name) for s, c in zip(states, choices, strict=True) if c.abstained is None]
    counts = Counter({"states": len(states)})
    counts.update(f"abstained/{choice.abstained}" for choice in choices if choice.abstained is not None)
    return pairs, counts, choices


def agreement(states: Sequence[Candidates], scores: Sequence[np.ndarray], choices: Sequence[Choice]) -> dict[str, Any]:
    """How scores [M, N] of chunks go with how far the task had come after each, which no reward has seen.

    rank_correlation: Spearman's rho of chunks in a state, mean over the states where both vary. pair_accuracy: of two
    chunks of a state that led to different progress, how often the better one scores higher. chosen_right: the same for
    the pairs that were made, of `chosen_different` whose chunks led to different progress.
    """
    progress = [np.where(state.success, 1.0, state.progress) for state in states]
    means = [one.mean(0) for one in scores]
    found = [
        rank_correlation(s.tolist(), p.tolist())
        for s, p in zip(means, progress, strict=True)
        if np.ptp(p) > TRUTH_MARGIN
    ]
    rhos = [rho for rho in found if rho is not None]
    group = np.repeat(np.arange(len(states)), [len(state) for state in states])
    gains = [
        float(p[choice.best] - p[choice.worst])
        for p, choice in zip(progress, choices, strict=True)
        if choice.abstained is None
    ]
    different = [gain for gain in gains if abs(gain) > TRUTH_MARGIN]
    return {
        "states_that_differ": sum(bool(np.ptp(p) > TRUTH_MARGIN) for p in progress),
        "rank_correlation": float(np.mean(rhos)) if rhos else None,
        "pair_accuracy": pair_accuracy(np.concatenate(means), np.concatenate(progress), group, TRUTH_MARGIN),
        "chosen_different": len(different),
        "chosen_right": sum(gain > 0 for gain in different) / len(different) if different else None,
    }


def rank_folder(
    candidates: Path, models: Mapping[str, Path], weights: Mapping[str, float], margin: float, seed: int, out: Path
) -> dict[str, Any]:
    """Write the pairs of a folder of sampled chunks into another one; counts, agreement with the truth, and speed."""
    states = read_candidates(candidates)
    began = time.perf_counter()
    scores = score_states(states, list(weights), models, seed)
    seconds = time.perf_counter() - began
    pairs, counts, choices = rank_states(states, scores, weights, margin)
    card = agreement(states, combined(scores, weights), choices)
    card["chunks_per_second"] = sum(map(len, states)) / max(seconds, 1e-9)
    write_collection(out, pairs, counts, agreement=card)
    return {"pairs": len(pairs), **counts, **card}
