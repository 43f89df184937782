"""Signs that a policy satisfies its reward and not its task (reward hacking, over-optimisation of a proxy).

Each detector compares the beginning of a run with its end and returns one line that names what moved, or None. Series
hold one value a step or an examination, oldest first. What the proxy is worth is judged by `truth`: held-out scores by
a reward that no variant trains on. The thresholds are ours; what over-optimisation looks like is described in Gao,
Schulman and Hilton (arXiv:2210.10760).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

SIGNAL_LOST = "signal lost"
"""How the alarm of rewards that came to agree begins."""
SHARE = 0.25
"""Of a series, what counts as its beginning and as its end."""


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
