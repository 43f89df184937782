"""Alarms of training: when it goes wrong, and when a policy satisfies its reward and not its task.

The first look at steps: how far the proximal term lets losses fall, collapse, truncation, steps without a lesson.
Implicit accuracy is no alarm: it is close to 1 in runs that collapse too. Flow losses beside the reference's are,
because policy and reference are measured on the same noise.

The others (reward hacking, over-optimisation of a proxy) compare the beginning of a run with its end and return one
line that names what moved, or None. Series hold one value a step or an examination, oldest first. What the proxy is
worth is judged by `truth`: held-out scores by a reward that no variant trains on. The thresholds are ours; what
over-optimisation looks like is described in Gao, Schulman and Hilton (arXiv:2210.10760).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import numpy as np

from algos.flowpro import check_weights

NOTHING_LEARNED = "nothing learned"
"""How the alarm of steps that could not change the policy begins."""

SIGNAL_LOST = "signal lost"
"""How the alarm of rewards that came to agree begins."""

FAILED_CALL = "reward call failed"
"""How the line about a reward that could not be computed begins."""

LOSER_REWARD_AT_MINIMUM = -0.7563
"""Where the loser of a pair comes to rest: L_PRO is least at r_w = -r_l = 0.7563, the root of s(2r) + s(r) = 3/2."""

SHARE = 0.25
"""Of a series, what counts as its beginning and as its end."""

Metrics = Mapping[str, float]


def loss_drop_ceiling(beta: float, lambda_pro: float, lambda_sft: float) -> tuple[float, float]:
    """How far below the reference's the flow loss of (an identical pair, a winner) can be pushed; inf = no limit.

    There the coefficient on the loss changes sign: s(r) = 1/2 + lambda_sft / (beta lambda_pro) for an identical pair;
    s(r_w) - s(r_l - r_w) = 1/2 + 2 lambda_sft / (beta lambda_pro) for a winner whose loser rests at its minimum. The
    limits exist iff beta lambda_pro > 2 lambda_sft, respectively > 4 lambda_sft. Both are 2 r / beta.
    """
    check_weights(beta, lambda_pro, lambda_sft)
    product = beta * lambda_pro
    identical = winner = math.inf
    if product > 2 * lambda_sft:
        share = 0.5 + lambda_sft / product
        identical = 2 / beta * math.log(share / (1 - share))
    if product > 4 * lambda_sft:
        target = 0.5 + 2 * lambda_sft / product
        winner = 2 / beta * _increasing_root(lambda r: _sigmoid(r) - _sigmoid(LOSER_REWARD_AT_MINIMUM - r) - target)
    return identical, winner


def cap_warning(beta: float, lambda_pro: float, lambda_sft: float) -> str | None:
    """A warning with the numbers when the proximal term limits how far losses can fall (see `loss_drop_ceiling`).

    Only for losses with the proximal term; Flow-DPO has no such limit.
    """
    identical, winner = loss_drop_ceiling(beta, lambda_pro, lambda_sft)
    if identical == math.inf:
        return None
    text = (
        f"beta * lambda_pro = {beta * lambda_pro:g} exceeds 2 * lambda_sft = {2 * lambda_sft:g}: the flow loss of "
        f"identical pairs (demonstrations, winner states) cannot fall more than {identical:.3g} below the reference's"
    )
    if winner < math.inf:
        text += f", and beyond 4 * lambda_sft = {4 * lambda_sft:g} that of winners not more than {winner:.3g}"
    if lambda_sft == 0:
        return text + "; a positive lambda_sft lifts the limit"
    return text + f"; lambda_pro = {2 * lambda_sft / beta:.3g} or less lifts the limit"


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(0.5 * x))


def _increasing_root(function: Callable[[float], float], low: float = -50.0, high: float = 50.0) -> float:
    """Root of an increasing function by bisection."""
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return low


def collapse_alarm(history: Sequence[Metrics], window: int = 50, margin: float = 0.1) -> str | None:
    """Says when demonstrations and winner states are forgotten, else None.

    Fires if, over the last `window` steps, the flow loss of identical pairs is more than `margin` (a fraction) above
    the reference's.
    """
    loss = _recent_mean(history, "flow/identical", window)
    reference = _recent_mean(history, "flow/identical_reference", window)
    if loss is None or reference is None or loss <= (1 + margin) * reference:
        return None
    return (
        f"collapse: the flow loss of identical pairs is {loss:.4g}, above the reference's {reference:.4g} over "
        f"the last {window} steps; raise lambda_sft, lower lambda_pro or the learning rate"
    )


def _recent_mean(history: Sequence[Metrics], name: str, window: int) -> float | None:
    """Mean of a metric over the last `window` steps that logged it; None before there are so many."""
    values = [float(step[name]) for step in islice((step for step in reversed(history) if name in step), window)]
    return sum(values) / window if len(values) == window else None


def cap_alarm(
    history: Sequence[Metrics], window: int = 50, min_drop: float = 0.2, min_capped: float = 0.1
) -> str | None:
    """Says when the proximal term keeps winners from being learned, else None.

    Fires if, over the last `window` steps, the winner loss is within `min_drop` (a fraction) of the reference's while
    for at least `min_capped` of the winners the objective does not pull it down any more. The second condition tells a
    cap from a reference that already fits the winners: there the pull remains and nothing is left to learn.
    """
    loss = _recent_mean(history, "flow/winner", window)
    reference = _recent_mean(history, "flow/winner_reference", window)
    capped = _recent_mean(history, "capped/winner", window)
    if loss is None or reference is None or capped is None:
        return None
    if loss < (1 - min_drop) * reference or capped < min_capped:
        return None
    return (
        f"cap: the flow loss of winners stays at {loss:.4g} beside the reference's {reference:.4g} over the last "
        f"{window} steps, and {100 * capped:.0f} % of them are no longer pulled down; lower beta * lambda_pro"
    )


def truncation_alarm(history: Sequence[Metrics], window: int = 10, limit: float = 0.9) -> str | None:
    """Says when a policy no longer ends its answers (length collapse), else None.

    Fires if, over the last `window` steps, at least `limit` of the answers were cut off at the length limit. Their
    rewards then come from answers that are not finished, and what they teach is to go on writing.
    """
    truncated = _recent_mean(history, "rollouts/truncated", window)
    if truncated is None or truncated < limit:
        return None
    began = next(float(step["rollouts/truncated"]) for step in history if "rollouts/truncated" in step)
    return (
        f"length collapse: {100 * truncated:.0f} % of the answers of the last {window} steps were cut off at the "
        f"limit, {100 * began:.0f} % at the beginning; raise it, lower the learning rate or reward short answers"
    )


def nothing_learned_alarm(history: Sequence[Metrics], window: int = 10) -> str | None:
    """Says when none of the last `window` steps could teach the policy anything, and why, else None.

    A step teaches if its gradient is not zero (`grad_norm`) and, where it learns from rewards, some answer of it has an
    advantage (`groups/with_signal`, the share of such groups). Steps that log neither, as probes, are passed over.
    """
    names = ("grad_norm", "groups/with_signal")
    steps = list(islice((step for step in reversed(history) if any(name in step for name in names)), window))
    if len(steps) < window or any(all(_number(step, name, 1.0) > 0 for name in names) for step in steps):
        return None
    return f"{NOTHING_LEARNED}: {_why_nothing(steps)} (the last {window} steps)"


def _number(step: Metrics, name: str, missing: float) -> float:
    """A metric; what is no number (NaN, or null in a log) is NaN, which no comparison lets through."""
    value = step.get(name, missing)
    return math.nan if value is None else float(value)


def _why_nothing(steps: Sequence[Metrics]) -> str:
    """What steps without a lesson have in common."""
    signal = [_number(step, "groups/with_signal", math.nan) for step in steps if "groups/with_signal" in step]
    if not signal or max(signal) > 0:
        return "the gradient is zero; see whether groups end alike, answers are cut off, or the learning rate is zero"
    spread = max(_number(step, "rollouts/spread", 0.0) for step in steps)
    if spread > 1e-6:
        return (
            f"rewards within a group differ by {spread:.3g} at most, which is too little to count as a signal; lower "
            "curriculum.min_spread, or make the reward tell answers apart"
        )
    rewards = [_number(step, "reward/mean", math.nan) for step in steps]
    if min(rewards) > 1 - 1e-6:
        return "all answers are right, so none has an advantage; give harder questions"
    if max(rewards) < 1e-6:
        return "all answers are wrong, so none has an advantage; give easier questions, or a longer cold start"
    return (
        f"the reward is constant within every group (mean {rewards[0]:.3g}), so no answer has an advantage; make the "
        "reward tell answers apart, or raise the temperature"
    )


def ends(values: Sequence[float], share: float = SHARE) -> tuple[float, float] | None:
    """Means of the first and of the last `share` of a series; None for fewer than four known values."""
    known = np.asarray([value for value in values if not np.isnan(value)], dtype=float)
    if len(known) < 4:
        return None
    size = max(1, int(len(known) * share))
    return float(known[:size].mean()), float(known[-size:].mean())


def proxy_alarm(
    proxy: Sequence[float], truth_high: float, min_rise: float = 0.05, min_share: float = 0.25
) -> str | None:
    """Fires where the proxy rose by `min_rise` or more and the truth by less than `min_share` of that.

    `truth_high` is the upper end of the interval of the truth's paired change over the run, so that a truth which is
    merely uncertain raises no alarm.
    """
    found = ends(proxy)
    if found is None:
        return None
    rise = found[1] - found[0]
    if rise < min_rise or truth_high >= min_share * rise:
        return None
    return (
        f"the reward rose from {found[0]:.3f} to {found[1]:.3f}, but what it stands for by at most {truth_high:+.3f}; "
        "read answers that gained reward, and train on a reward closer to the task"
    )


def variance_shares(parts: Mapping[str, Sequence[float]], weights: Mapping[str, float]) -> dict[str, float]:
    """Share of each weighted part in the variance of the reward: Cov(w_k r_k, R) / Var(R), R = sum_k w_k r_k.

    Shares sum to 1; {} where the reward does not vary. Parts are [N]; rows with a missing value are left out.
    """
    names = [name for name, weight in weights.items() if weight > 0 and name in parts]
    values = np.array([np.asarray(parts[name], dtype=float) * weights[name] for name in names])
    values = values[:, ~np.isnan(values).any(0)] if len(names) else np.zeros((0, 0))
    if values.shape[1:] < (2,):
        return {}
    centred = values - values.mean(1, keepdims=True)
    total = centred.sum(0)
    variance = float(total @ total)
    # Sums of equal numbers leave differences of the size of rounding.
    if variance <= 1e-12 * values.shape[1]:
        return {}
    return dict(zip(names, (centred @ total / variance).tolist(), strict=True))


def dominance_alarm(
    parts: Mapping[str, Sequence[float]], weights: Mapping[str, float], task: str = "answer", limit: float = 0.9
) -> str | None:
    """Fires where one part other than `task` makes up more than `limit` of what the policy can still gain by."""
    shares = variance_shares(parts, weights)
    name = max(shares, key=lambda part: shares[part], default=task)
    if name == task or len(shares) < 2 or shares[name] <= limit:
        return None
    return (
        f"{100 * shares[name]:.0f} % of the reward's variance comes from {name} alone; lower weights.{name}, or the "
        "policy will learn nothing else"
    )


def length_alarm(lengths: Sequence[float], truth_high: float, factor: float = 1.5) -> str | None:
    """Fires where answers became `factor` times as long, or as short, and the truth did not rise (at most 0.01)."""
    found = ends(lengths)
    if found is None or min(found) <= 0 or truth_high > 0.01:
        return None
    ratio = found[1] / found[0]
    if 1 / factor < ratio < factor:
        return None
    return (
        f"answers drifted from {found[0]:.0f} to {found[1]:.0f} tokens without a gain on the task; the reward pays for "
        "length, directly or through a part that does"
    )


def format_alarm(parsed: Sequence[float], drop: float = 0.1) -> str | None:
    """Fires where the share of answers that can be read as asked fell by more than `drop`."""
    found = ends(parsed)
    if found is None or found[0] - found[1] <= drop:
        return None
    return (
        f"the share of answers in the asked format fell from {found[0]:.2f} to {found[1]:.2f}; give format a weight, "
        "or let unreadable answers earn nothing"
    )


def variance_alarm(
    stds: Sequence[float], rewards: Sequence[float], fraction: float = 0.2, solved: float = 0.95
) -> str | None:
    """Fires where the spread of rewards within groups fell to `fraction` of what it was, short of all being solved, and
    where there never was any.

    GRPO learns from nothing but that spread. `stds` and `rewards`: mean standard deviation in a group, mean reward.
    """
    found, level = ends(stds), ends(rewards)
    if found is None or level is None:
        return None
    if np.nanmax(stds) <= 0:
        return "rewards within a group never differed: all answers earned the same, and nothing was learned"
    if found[0] <= 0:
        return None
    if found[1] > fraction * found[0] or level[1] >= solved:
        return None
    return (
        f"rewards within a group differ by {found[1]:.3f} where they differed by {found[0]:.3f}, at a mean of "
        f"{level[1]:.2f}: all answers earn the same, and nothing more is learned"
    )


def signal_alarm(history: Sequence[Mapping[str, float]]) -> str | None:
    """`variance_alarm` on the lines of a run that had a signal; one that had none, `nothing_learned_alarm` tells of."""
    lines = [line for line in history if {"rollouts/spread", "reward/mean"} <= line.keys()]
    spread = [line["rollouts/spread"] for line in lines]
    text = variance_alarm(spread, [line["reward/mean"] for line in lines]) if any(spread) else None
    return text and f"{SIGNAL_LOST}: {text}"


def disagreement_alarm(disagreement: Sequence[float], factor: float = 2.0, least: float = 0.05) -> str | None:
    """Fires where members of a reward ensemble came to disagree: `factor` times as much as before, and by `least`.

    `disagreement`: mean over samples of the standard deviation over members. Policies that leave the data a reward
    model was trained on show it first there (Coste et al., arXiv:2310.02743).
    """
    found = ends(disagreement)
    if found is None or found[1] < least or found[1] < factor * found[0]:
        return None
    return (
        f"the reward models disagree by {found[1]:.3f} where they disagreed by {found[0]:.3f}; the policy has left the "
        "data that they know: label some of its answers and train them again, or let them abstain"
    )
