"""Rejection-sampling fine-tuning (RFT): which sampled traces a model is fine-tuned on.

HY-Embodied-0.5 (arXiv:2604.07430): the newest RL model samples several traces an item, partial-success items are kept,
a stronger teacher scores the reasoning, about 1M candidates become about 300K traces. RFT by that name, which keeps
different correct traces: Yuan et al. (arXiv:2308.01825). The first gives no thresholds; ours are in `RFTOptions`.

For an item with candidates i that have a reward r_i (None: the reward failed; not counted):

    bar b = min_reward, or without one max(1/2, mean of the known r_i)
    pass rate p = |{i: r_i >= b}| / |{i: r_i is not None}|

Rewards of 0 and 1 pass this bar as they pass min_reward = 1. Of graded ones (boxes, points, paths), of which hardly any
is exactly 1, those above their item's average do, which is what best-of-n sampling keeps.

A candidate is dropped for the first rule it breaks, in the order of `REASONS`:

    unrewarded      r_i is None: nobody knows whether it is correct
    too_hard        p <= low: the item is (nearly) never solved
    too_easy        p >= high: it is (nearly) always solved
    incorrect       r_i < b
    unfinished      it did not end by itself
    overlong        it has more than max_tokens tokens
    repetitive      its share of repeated token n-grams is above max_repetition (`trace_similarity.repetition`)
    unjudged        a judge is asked for and gave no (finite) score
    low_score       judge score < min_judge_score
    duplicate       the same text, normalised, as a better candidate of the item
    near_duplicate  likeness above max_likeness with a better one that is none itself (`trace_similarity.likeness`)
    surplus         max_per_item others of the item are kept

Better is: higher judge score, then higher reward, then fewer tokens, then the smaller hash of the text, then the
smaller key. The last rule keeps the best, then again and again the candidate whose nearest kept one is farthest,
1 - likeness being the distance and the better one winning ties: the farthest-point heuristic of Gonzalez (1985), which
leaves no candidate more than twice as far from a kept one as the best choice would. Nothing depends on the order given.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from algos.rft_options import LEAST_REWARD, RFTOptions
from algos.trace_similarity import Sketch, Tokens, distance, likeness, normalised, repetition, sketch

REASONS = (
    "unrewarded",
    "too_hard",
    "too_easy",
    "incorrect",
    "unfinished",
    "overlong",
    "repetitive",
    "unjudged",
    "low_score",
    "duplicate",
    "near_duplicate",
    "surplus",
)
"""Why a trace is dropped; the first that applies, in this order."""


@dataclass(frozen=True)
class Candidate:
    """What the rules need to know of a sampled trace, without its text."""

    key: Any
    """Names it within its item; sortable, different for each."""
    reward: float | None
    """None: a reward failed."""
    own_reason: str | None
    """First rule that it breaks by itself, whatever its item and the judge: see `own_reason`."""
    num_tokens: int
    digest: bytes = b""
    """Of the normalised text; equal for duplicates. As the sketch: not needed with an `own_reason`."""
    sketch: Sketch = field(default_factory=lambda: np.zeros(0, np.uint64))
    judge_score: float | None = None
    """None: not asked, or no score."""


def candidate(
    key: Any, text: str, tokens: Tokens, finished: bool, reward: float | None, options: RFTOptions
) -> Candidate:
    """A trace as the rules see it; one that breaks a rule by itself is not compared with others."""
    reward = None if reward is None or not math.isfinite(reward) else reward
    reason = own_reason(tokens, finished, reward, options)
    if reason:
        return Candidate(key, reward, reason, len(tokens))
    text = normalised(text)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return Candidate(key, reward, None, len(tokens), digest, sketch(text, options.shingle))


def own_reason(tokens: Tokens, finished: bool, reward: float | None, options: RFTOptions) -> str | None:
    """First rule that a trace breaks by itself, None if it keeps them all; its item's mean may still be above it."""
    if reward is None:
        return "unrewarded"
    if not reward >= bar(0.0, options):
        return "incorrect"
    if not finished:
        return "unfinished"
    if len(tokens) > options.max_tokens:
        return "overlong"
    return "repetitive" if repetition(tokens, options.ngram) > options.max_repetition else None


def band_reason(num_correct: int, num_rewarded: int, options: RFTOptions) -> str | None:
    """Why an item is no partial success, None if it is one."""
    rate = num_correct / num_rewarded if num_rewarded else 0.0
    if rate <= options.low:
        return "too_hard"
    return "too_easy" if options.high is not None and rate >= options.high else None


def bar(mean: float, options: RFTOptions) -> float:
    """Reward from which a trace is correct, of an item with this mean reward; sums of equal rewards may round up."""
    return max(LEAST_REWARD, mean - 1e-9) if options.min_reward is None else options.min_reward


def num_correct(rewards: Sequence[float], options: RFTOptions) -> int:
    """How many of an item's known rewards are those of correct traces."""
    least = bar(sum(rewards) / max(len(rewards), 1), options)
    return sum(reward >= least for reward in rewards)


def reason_alone(own: str | None, band: str | None, correct: bool) -> str | None:
    """First rule that a candidate breaks before judges and comparisons: its own, or that of its item."""
    return own if own == "unrewarded" else band or (own if correct else "incorrect")


def select(candidates: Sequence[Candidate], options: RFTOptions) -> list[str | None]:
    """Why each candidate of one item is dropped, None for those kept, in the order given."""
    rewards = [one.reward for one in candidates if one.reward is not None]
    band = band_reason(num_correct(rewards, options), len(rewards), options)
    least = bar(sum(rewards) / max(len(rewards), 1), options)
    reasons = [_reason_unlike_others(one, band, least, options) for one in candidates]
    left = sorted((i for i, reason in enumerate(reasons) if not reason), key=lambda i: _rank(candidates[i]))
    distinct: list[int] = []
    seen: set[bytes] = set()
    for i in left:
        if candidates[i].digest in seen:
            reasons[i] = "duplicate"
        elif any(likeness(candidates[i].sketch, candidates[j].sketch) > options.max_likeness for j in distinct):
            reasons[i] = "near_duplicate"
        else:
            distinct.append(i)
        seen.add(candidates[i].digest)
    kept = most_diverse([candidates[i].sketch for i in distinct], options.max_per_item)
    for place in set(range(len(distinct))) - set(kept):
        reasons[distinct[place]] = "surplus"
    return reasons


def most_diverse(sketches: Sequence[Sketch], count: int) -> list[int]:
    """Places of `count` texts far from each other: the first, then the one farthest from those taken, and so on."""
    if len(sketches) <= count:
        return list(range(len(sketches)))
    taken, nearest = [0], np.full(len(sketches), np.inf)
    while len(taken) < count:
        to_last = np.array([distance(sketches[taken[-1]], other) for other in sketches])
        nearest = np.minimum(nearest, to_last)
        nearest[taken[-1]] = -1.0
        taken.append(int(nearest.argmax()))
    return taken


def count_reasons(reasons: Sequence[str | None]) -> dict[str, int]:
    """How many were dropped for each reason, in the order of REASONS; those that occurred."""
    found = Counter(reasons)
    return {reason: found[reason] for reason in REASONS if found[reason]}


def _reason_unlike_others(one: Candidate, band: str | None, least: float, options: RFTOptions) -> str | None:
    """First rule that it breaks before it is compared with others."""
    reason = reason_alone(one.own_reason, band, one.reward is not None and one.reward >= least)
    if reason or options.min_judge_score is None:
        return reason
    if one.judge_score is None or not math.isfinite(one.judge_score):
        return "unjudged"
    return "low_score" if not one.judge_score >= options.min_judge_score else None


def _rank(one: Candidate) -> tuple[Any, ...]:
    """Smaller is better."""
    score = -math.inf if one.judge_score is None or not math.isfinite(one.judge_score) else one.judge_score
    return -score, -(one.reward or 0.0), one.num_tokens, one.digest, one.key
