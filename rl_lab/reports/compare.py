"""Success, completion steps and paired gains of a run on episodes.

Two policies are compared on the same (task, variant, seed) episodes; the methods are in `stats.EPISODE_METHODS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rl_lab.errors import UserError
from rl_lab.reports.benchmark import success_table
from rl_lab.reports.rundir import BASE, EpisodeResult, Evaluation, RunFolder
from rl_lab.reports.verdict import OVERALL, Row, verdict
from rl_lab.stats import EPISODE_METHODS, bootstrap_mean, mcnemar_p, paired_difference, wilson

Episodes = Sequence[EpisodeResult]


def pair_episodes(after: Episodes, before: Episodes) -> list[tuple[EpisodeResult, EpisodeResult]]:
    """Episodes of two policies matched by (task, variant, seed), sorted. UserError unless both have the same ones."""
    first, second = {e.key: e for e in after}, {e.key: e for e in before}
    if first.keys() != second.keys():
        odd = sorted(first.keys() ^ second.keys())
        task, variant, seed = odd[0]
        raise UserError(
            f"cannot pair {len(first)} with {len(second)} episodes: {len(odd)} occur on one side only, such as {task} "
            f"{variant} seed {seed}; evaluate both on the same seeds"
        )
    return [(first[key], second[key]) for key in sorted(first)]


def score(episodes: Episodes) -> Row:
    """Success of one policy: n, successes, rate, low, high, mean steps over successes (None without any) and capped."""
    solved = [e.num_steps for e in episodes if e.success]
    rate = wilson(len(solved), len(episodes))
    return {
        "n": len(episodes),
        "successes": len(solved),
        "rate": rate.value,
        "low": rate.low,
        "high": rate.high,
        "steps_over_successes": sum(solved) / len(solved) if solved else None,
        "capped_steps": sum(e.capped_steps for e in episodes) / len(episodes),
    }


def _steps_interval(differences: list[int]) -> Row | None:
    return {"n": len(differences), **asdict(bootstrap_mean(differences))} if len(differences) > 1 else None


def gain(after: Episodes, before: Episodes) -> Row:
    """Paired difference of success, after minus before, with low and high; wins and losses are episodes that changed.

    Steps are compared where both policies succeed (a faster policy, not an easier subset) and capped over all episodes.
    """
    pairs = pair_episodes(after, before)
    if not pairs:
        raise UserError("no episode was evaluated under both")
    both, wins, losses, neither = (
        sum((a.success, b.success) == outcome for a, b in pairs)
        for outcome in ((True, True), (True, False), (False, True), (False, False))
    )
    interval = paired_difference(both, wins, losses, neither)
    return {
        "n": len(pairs),
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "wins": wins,
        "losses": losses,
        "p": mcnemar_p(wins, losses),
        "steps_where_both_succeed": _steps_interval(
            [a.num_steps - b.num_steps for a, b in pairs if a.success and b.success]
        ),
        "capped_steps": _steps_interval([a.capped_steps - b.capped_steps for a, b in pairs]),
    }


def in_scope(scope: str, episode: EpisodeResult) -> bool:
    """Whether an episode belongs to a subset of `scopes`."""
    return scope in (OVERALL, episode.task, f"{episode.task}/{episode.variant}")


def scopes(evaluations: Sequence[Evaluation]) -> list[str]:
    """Subsets to report: `overall`, each task, and `task/variant` for a task with several variants."""
    variants: dict[str, dict[str, None]] = {}
    for evaluation in evaluations:
        for episode in evaluation.episodes:
            variants.setdefault(episode.task, {})[episode.variant] = None
    found = [OVERALL]
    for task, names in variants.items():
        found += [task, *(f"{task}/{name}" for name in names if len(names) > 1)]
    return found


def _scores(run: RunFolder) -> list[Row]:
    rows = []
    for scope in scopes(run.evaluations):
        for evaluation in run.evaluations:
            episodes = [e for e in evaluation.episodes if in_scope(scope, e)]
            if episodes:
                head = {"scope": scope, "method": evaluation.method, "round": evaluation.round, "node": evaluation.node}
                rows.append(head | score(episodes))
    return rows


def _benchmark(run: RunFolder) -> list[Row]:
    """The table of the papers for the base policy and every method after its last round."""
    last = {evaluation.method: evaluation for evaluation in sorted(run.evaluations, key=lambda one: one.round)}
    return [
        {"method": one.method, "round": one.round} | success_table((e.task, e.variant, e.success) for e in one.episodes)
        for one in last.values()
        if one.episodes
    ]


def _gains(run: RunFolder) -> list[Row]:
    """Every method and round over the base policy and over every other method after the same round."""
    rows = []
    for scope in scopes(run.evaluations):
        for after in run.evaluations:
            if after.method == BASE:
                continue
            for before in run.evaluations:
                if before.method == after.method or (before.method != BASE and before.round != after.round):
                    continue
                head = {"scope": scope, "method": after.method, "round": after.round, "over": before.method}
                rows.append(head | _gain_or_reason(after, before, scope))
    return rows


def _gain_or_reason(after: Evaluation, before: Evaluation, scope: str) -> Row:
    """The gain, or `refused` with the reason when the seeds differ (an evaluation that was changed half-way)."""
    try:
        first, second = ([e for e in side.episodes if in_scope(scope, e)] for side in (after, before))
        return gain(first, second)
    except UserError as error:
        return {"refused": str(error)}


def episode_summary(run: RunFolder) -> Row:
    """Scores, paired gains, collection counts and verdict of a run on episodes."""
    summary = {
        "method": run.method,
        "control": run.control,
        "evaluation_seeds": (run.config.get("eval") or {}).get("seeds"),
        "scores": _scores(run),
        "gains": _gains(run),
        "benchmark": _benchmark(run),
        "collection": [{"node": p.node, "method": p.method, "round": p.round, **p.counts} for p in run.pairs],
        "seed_overlap": seed_overlap(run),
        "intervals": EPISODE_METHODS,
    }
    return summary | {"verdict": verdict(summary)}


def seed_overlap(run: RunFolder) -> list[int]:
    """Environment seeds that are in a preference pair and in an evaluation as well; must be empty."""
    trained = {record.get("seed") for pair_set in run.pairs for record in pair_set.index}
    return sorted({e.seed for evaluation in run.evaluations for e in evaluation.episodes} & trained)
