"""Stored chunks and episodes under another reward, without simulating anything: agreement, and what flips."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from envs.types import Candidates
from rewards.actions.ranking import choose, combined
from rewards.calibration import rank_correlation
from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit
from rl_lab.config.actions import RankingConfig
from rl_lab.learner.action_rewards import load_ensemble
from rl_lab.records.episodes import read_candidates, read_episodes
from rl_lab.rollouts.ranking import score_states

FLIPS_KEPT = 50


@dataclass(order=True)
class ChunkFlip:
    """A state in which the new reward prefers the chunk that the old one ranks lower."""

    gap: float
    """How far apart the old reward's pair is under the new one, standard deviations, by which flips are ordered."""
    task: str
    seed: int
    step: int
    old_progress: float
    """Simulator truth after the chunk that the old reward prefers."""
    new_progress: float
    """The same for the new reward's."""


@dataclass
class ChunkAgreement:
    """How two rewards order the same chunks."""

    states: int
    chunks: int
    rank_correlation: float | None
    """Spearman's rho over all chunks, each standardised within its state; None where one of them does not vary."""
    state_correlation: float | None
    """Kendall's tau-b within states, mean over those in which both vary."""
    best_changed: float
    """Share of states with another best chunk."""
    pairs: int
    """Made by the old reward."""
    new_pairs: int
    """Made by the new one."""
    reversed: int
    """Pairs of the old reward whose loser the new one ranks higher."""
    flips: list[ChunkFlip] = field(default_factory=list)
    """Of these the widest, at most FLIPS_KEPT."""


def compare_scores(
    states: Sequence[Candidates], old: Sequence[np.ndarray], new: Sequence[np.ndarray], margins: tuple[float, float]
) -> ChunkAgreement:
    """Agreement of standardised scores [M, N] of the same states; `margins` are those of the old and the new reward."""
    means = [(a.mean(0), b.mean(0)) for a, b in zip(old, new, strict=True)]
    taus = [float(kendalltau(a, b).statistic) for a, b in means if np.ptp(a) > 0 and np.ptp(b) > 0]
    choices = [(choose(a, margins[0]), choose(b, margins[1])) for a, b in zip(old, new, strict=True)]
    flips = []
    for state, (before, after), (_, score) in zip(states, choices, means, strict=True):
        gap = float(score[before.worst] - score[before.best])
        if before.abstained is None and gap > 0:
            progress = np.where(state.success, 1.0, state.progress)
            truth = float(progress[before.best]), float(progress[after.best])
            flips.append(ChunkFlip(gap, state.task, state.seed, state.step, *truth))
    before, after = (np.concatenate(side) for side in zip(*means, strict=True))
    return ChunkAgreement(
        states=len(states),
        chunks=len(before),
        rank_correlation=rank_correlation(before.tolist(), after.tolist()),
        state_correlation=float(np.mean(taus)) if taus else None,
        best_changed=sum(one.best != other.best for one, other in choices) / len(choices),
        pairs=sum(one.abstained is None for one, _ in choices),
        new_pairs=sum(other.abstained is None for _, other in choices),
        reversed=len(flips),
        flips=sorted(flips, reverse=True)[:FLIPS_KEPT],
    )


def rescore_node(
    run: Path, row: Mapping[str, Any], old: RankingConfig, new: RankingConfig, seed: int, prefix: str = ""
) -> ChunkAgreement:
    """The chunks that one ranking was made from, ranked again; `row` is its stage, `seed` its training seed.

    The reward models are those of the run, their names with `prefix`. UserError for one that it did not train.
    """
    inputs = fit(row.get("inputs"), dict[str, str], f"stages.json, {row.get('name')}: inputs")
    states = read_candidates(run / "candidates" / inputs.get("candidates", ""))
    names = {kind: f"{prefix}reward.{kind}" for kind in new.learned} | inputs
    models = {kind: run / "reward_models" / names[kind] for kind in {*old.learned, *new.learned}}
    for kind, folder in models.items():
        if not folder.is_dir():
            raise UserError(f"{run} trained no reward model {kind}; it needs reward_models/{folder.name}")
    scores = [
        combined(
            score_states(states, list(one.weights), {kind: models[kind] for kind in one.learned}, seed),
            {str(name): weight for name, weight in one.weights.items()},
        )
        for one in (old, new)
    ]
    return compare_scores(states, scores[0], scores[1], (old.margin, new.margin))


@dataclass
class EpisodeAgreement:
    """How a reward model orders recorded episodes, beside their success. Most of them it has learned from: the card has
    the numbers on others."""

    episodes: int
    successes: int
    rank_correlation: float | None
    """Spearman's rho of score and success; None where one of them does not vary."""
    flips: list[dict[str, Any]] = field(default_factory=list)
    """Episodes on the other side, if as many count as successes as there are: task, seed, success, score."""


def rescore_episodes(run: Path, kind: str) -> dict[str, EpisodeAgreement]:
    """The recorded episodes of a run under its own reward models of a kind, by node of the episodes."""
    found = {}
    for folder in sorted(run.glob("episodes/*.episodes")):
        model = run / "reward_models" / f"{folder.name.removesuffix('.episodes')}.{kind}"
        if not model.is_dir():
            raise UserError(f"{run} trained no reward model {kind}; it needs reward_models/{model.name}")
        episodes = read_episodes(folder)
        scores = load_ensemble(model).score_episodes(episodes).mean(0)
        success = np.array([one.success for one in episodes])
        high = np.zeros(len(episodes), bool)
        high[np.argsort(-scores, kind="stable")[: success.sum()]] = True
        flips = [
            {"task": one.task, "seed": one.seed, "success": one.success, "score": float(score)}
            for one, score, place in zip(episodes, scores, high, strict=True)
            if one.success != place
        ]
        rho = rank_correlation(scores.tolist(), success.astype(float).tolist())
        found[folder.name] = EpisodeAgreement(len(episodes), int(success.sum()), rho, flips)
    return found
