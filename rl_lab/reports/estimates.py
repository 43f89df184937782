"""What a run measured, as one table: every number with its interval, of a model or of the difference between two.

Pages, tables for the terminal, sentences, `summary.json` and comparisons of runs are views of it. Two models are
compared on the same episodes (task, variant, seed) or the same questions, and two schemes also replicate by replicate
(same training seed), before anything is averaged. How intervals are computed is in `rl_lab.common.stats`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from rl_lab.common.errors import UserError
from rl_lab.common.stats import Array, Interval, bootstrap_mean, mcnemar_p, mean_interval, paired_difference, wilson
from rl_lab.common.terminal import columns
from rl_lab.reports.examinations import Examination, ItemResult, reward_table
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, points, rate, reward, signed
from rl_lab.reports.run import BASE, EpisodeResult, Evaluation, LoadedRun

SUCCESS, STEPS, CAPPED_STEPS = "success", "steps", "capped steps"
"""What is measured on episodes. Steps are those of successes, of a difference those where both succeed (a faster
policy, not an easier subset); capped ones count the limit for a failure."""
EPISODES = (SUCCESS, STEPS, CAPPED_STEPS)
REWARD, LOW, BLANK, CONSTANT = "reward", "low", "blank", "constant"
"""What is measured on questions, beside passes (`pass@1`): the reward of answers, of answers at a low temperature, of
answers to grey pictures, and of the best fixed answer. The latter two are also what a model's own reward is held
against."""
NAMES = {BASE: "the base", BLANK: "itself with grey pictures", CONSTANT: "the best constant answer"}
"""What a model is held against, in words; others are schemes."""
THRESHOLD = 0.5
"""Reward from which on an answer counts as a pass, unless the config sets examine.pass_threshold."""
Episodes = Sequence[EpisodeResult]
Examinations = Sequence[Examination]
Write = Callable[[float], str]
"""How a number of its kind is written; see `verdict`."""


@dataclass(frozen=True)
class Estimate(Interval):
    """A mean over episodes or questions with its 95 % interval; ends are NaN where none was computed."""

    n: int
    """Episodes or questions."""
    how: str
    """What was measured, by which its interval is computed."""
    model: str = BASE
    """A method, or a scheme of the curriculum."""
    over: str | None = None
    """What it is the paired difference to; None for the model's own mean."""
    scope: str = OVERALL
    """All of them, or a task, a variant, a category."""
    round: int = 0
    """Of training, where methods are evaluated after each."""
    replicates: int | None = None
    """Training seeds that it covers, where models are trained with several."""
    won: int = 0
    lost: int = 0
    """Of a difference of success: episodes that changed."""
    refused: str | None = None
    """Why there is no difference: the episodes are not the same."""

    @property
    def successes(self) -> int:
        """Of a success rate."""
        return round(self.value * self.n)

    @property
    def p(self) -> float:
        """Exact McNemar test of a difference of success."""
        return mcnemar_p(self.won, self.lost)

    @property
    def subject(self) -> tuple[str, str, int, str | None]:
        """What it is about, whatever is measured."""
        return self.scope, self.model, self.round, self.over

    @property
    def write(self) -> Write:
        """How its numbers are written."""
        level, difference = (rate, points) if self.how == SUCCESS else (reward, signed)
        return level if self.over is None else difference

    def fields(self, *names: str) -> Row:
        """Some of its values by name, as JSON files have them."""
        return {name: getattr(self, name) for name in names}

    def ends(self, write: Write | None = None) -> str:
        """Its interval in words."""
        write = write or self.write
        return f"{write(self.low)} to {write(self.high)}"


def cell(estimate: Estimate | None, write: Write | None = None, unit: str = "") -> str:
    """An estimate, its unit and its interval in a cell of a table; empty where there is none."""
    if estimate is None:
        return ""
    if estimate.refused is not None:
        return "not paired"
    write = write or estimate.write
    return f"{write(estimate.value)}{unit} [{write(estimate.low)}, {write(estimate.high)}]"


def text_table(head: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table for the terminal, in whose cells estimates may stand."""
    cells = [[cell(v) if v is None or isinstance(v, Estimate) else str(v) for v in row] for row in rows]
    return columns(head, cells, left)


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


def score(episodes: Episodes, **labels: Any) -> list[Estimate]:
    """Success of one policy, and its mean steps: over successes (if there are any) and capped."""
    n, solved = len(episodes), [e.num_steps for e in episodes if e.success]
    found = [Estimate(**vars(wilson(len(solved), n)), n=n, how=SUCCESS, **labels)]
    for how, steps in ((STEPS, solved), (CAPPED_STEPS, [e.capped_steps for e in episodes])):
        if steps:
            found.append(Estimate(sum(steps) / len(steps), math.nan, math.nan, n=len(steps), how=how, **labels))
    return found


def gain(after: Episodes, before: Episodes, **labels: Any) -> list[Estimate]:
    """Paired differences of success and steps, after minus before; steps need two episodes. UserError without a pair"""
    pairs = pair_episodes(after, before)
    if not pairs:
        raise UserError("no episode was evaluated under both")
    both, won, lost, neither = (
        sum((a.success, b.success) == outcome for a, b in pairs)
        for outcome in ((True, True), (True, False), (False, True), (False, False))
    )
    interval = paired_difference(both, won, lost, neither)
    found = [Estimate(**vars(interval), n=len(pairs), how=SUCCESS, won=won, lost=lost, **labels)]
    steps = {
        STEPS: [a.num_steps - b.num_steps for a, b in pairs if a.success and b.success],
        CAPPED_STEPS: [a.capped_steps - b.capped_steps for a, b in pairs],
    }
    for how, differences in steps.items():
        if len(differences) > 1:
            found.append(Estimate(**vars(bootstrap_mean(differences)), n=len(differences), how=how, **labels))
    return found


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


def episode_estimates(run: LoadedRun) -> Iterator[Estimate]:
    """Every evaluation, and every method and round over the base and over the other methods after the same round."""
    for scope in scopes(run.evaluations):
        sides = [(one, [e for e in one.episodes if in_scope(scope, e)]) for one in run.evaluations]
        for one, episodes in sides:
            if episodes:
                yield from score(episodes, model=one.method, scope=scope, round=one.round)
        for after, own in sides:
            labels = {"model": after.method, "scope": scope, "round": after.round}
            for before, theirs in sides:
                same_round = before.method == BASE or before.round == after.round
                if BASE != after.method != before.method and same_round:
                    yield from _gain_or_reason(own, theirs, over=before.method, **labels)


def _gain_or_reason(after: Episodes, before: Episodes, **labels: Any) -> list[Estimate]:
    """The gain, or why there is none when the seeds differ (an evaluation that was changed half-way)."""
    try:
        return gain(after, before, **labels)
    except UserError as error:
        return [Estimate(0.0, 0.0, 0.0, n=0, how=SUCCESS, refused=str(error), **labels)]


def pass_threshold(run: LoadedRun) -> float:
    """Reward from which on an answer counts as a pass."""
    return (run.config.get("examine") or {}).get("pass_threshold", THRESHOLD)


def low_temperature(run: LoadedRun) -> float | None:
    """At which every question was answered once more; None in runs that did not ask so."""
    return (run.config.get("examine") or {}).get("low_temperature")


def num_samples(run: LoadedRun) -> int:
    """Answers that were sampled for an item: the k of pass@k."""
    return max((len(item.rewards) for e in run.examinations for item in e.items), default=0)


def of_scheme(run: LoadedRun, scheme: str) -> list[Examination]:
    """Its examinations, one a replicate."""
    return [examination for examination in run.examinations if examination.scheme == scheme]


def examined(run: LoadedRun) -> list[str]:
    """The base and the schemes with an examination."""
    return [scheme for scheme in (BASE, *run.schemes) if of_scheme(run, scheme)]


def scoped_items(run: LoadedRun) -> dict[str, list[str]]:
    """Ids of the items of each scope: overall and each category."""
    categories = {item.item: item.category for examination in run.examinations for item in examination.items}
    scopes = {OVERALL: list(categories)}
    for item, category in categories.items():
        scopes.setdefault(category, []).append(item)
    return scopes


def mean_estimate(rewards: Array, how: str = REWARD, **labels: Any) -> Estimate | None:
    """A mean, or mean difference, of rewards [n, R]; replicates without any value are left out, None if all."""
    rewards = rewards[:, ~np.isnan(rewards).all(0)]
    if not rewards.size:
        return None
    n = int((~np.isnan(rewards)).any(1).sum())
    return Estimate(**vars(mean_interval(rewards)), n=n, replicates=rewards.shape[1], how=how, **labels)


def measures(run: LoadedRun) -> dict[str, Callable[[ItemResult], float]]:
    """What is measured of the answers to an item."""
    k, threshold = num_samples(run), pass_threshold(run)
    return {
        REWARD: lambda item: item.reward,
        "pass@1": lambda item: item.passed(1, threshold),
        f"pass@{k}": lambda item: item.passed(k, threshold),
        LOW: lambda item: item.low_reward,
        BLANK: lambda item: item.blank_reward,
        CONSTANT: lambda item: item.constant,
    }


def shared_replicates(own: Examinations, theirs: Examinations) -> tuple[Examinations, Examinations]:
    """Of two schemes the examinations of the replicates that both have, in the same order."""
    first, second = ({e.replicate: e for e in side} for side in (own, theirs))
    shared = sorted(first.keys() & second.keys())
    return [first[number] for number in shared], [second[number] for number in shared]


def _over_others(run: LoadedRun, scheme: str, items: Sequence[str]) -> Iterator[tuple[str, str, Array]]:
    """Reward minus that with grey pictures, of constant answers, of the base, and of the others' same replicates; of
    the latter two also at the low temperature."""
    own, values = of_scheme(run, scheme), measures(run)
    yield REWARD, BLANK, reward_table(own, items, lambda item: item.reward - item.blank_reward)
    yield REWARD, CONSTANT, reward_table(own, items, lambda item: item.reward - item.constant)
    for other in examined(run):
        if scheme in (BASE, other):
            continue
        sides = shared_replicates(own, of_scheme(run, other))
        for how in (REWARD, LOW):
            first, second = (reward_table(side, items, values[how]) for side in sides)
            yield how, other, first - second


def question_estimates(run: LoadedRun) -> Iterator[Estimate]:
    """All that is measured of the base and every scheme, and their rewards over everything they are held against."""
    for scope, items in scoped_items(run).items():
        for scheme in examined(run):
            own = of_scheme(run, scheme)
            tables = [(how, None, reward_table(own, items, value)) for how, value in measures(run).items()]
            for how, over, rewards in [*tables, *_over_others(run, scheme, items)]:
                found = mean_estimate(rewards, how, model=scheme, scope=scope, over=over)
                if found is not None:
                    yield found


def estimates(run: LoadedRun) -> list[Estimate]:
    """The whole table of a run."""
    return [*episode_estimates(run), *question_estimates(run)]


def score_row(found: Sequence[Estimate]) -> Row:
    """Success of one policy as `summary.json` has it; mean steps over successes are None without any."""
    rate, *steps = found
    means = {one.how: one.value for one in steps}
    row = {"n": rate.n, "successes": rate.successes, "rate": rate.value, "low": rate.low, "high": rate.high}
    return row | {"steps_over_successes": means.get(STEPS), "capped_steps": means[CAPPED_STEPS]}


def gain_row(found: Sequence[Estimate]) -> Row:
    """A paired difference of success as `summary.json` has it."""
    success, *steps = found
    if success.refused is not None:
        return {"refused": success.refused}
    means = {one.how: one.fields("n", "value", "low", "high") for one in steps}
    row = {"n": success.n, "difference": success.value} | success.fields("low", "high")
    row |= {"wins": success.won, "losses": success.lost, "p": success.p}
    return row | {"steps_where_both_succeed": means.get(STEPS), "capped_steps": means.get(CAPPED_STEPS)}


def score_rows(run: LoadedRun, table: Sequence[Estimate]) -> list[Row]:
    """Success of every evaluation and scope, as `summary.json` has it."""
    nodes = {(one.method, one.round): one.node for one in run.evaluations}
    return [
        {"scope": scope, "method": method, "round": round_, "node": nodes[method, round_], **score_row(list(found))}
        for (scope, method, round_, over), found in _by_subject(table, EPISODES)
        if over is None
    ]


def gain_rows(table: Sequence[Estimate]) -> list[Row]:
    """Every paired difference of success, as `summary.json` has it."""
    return [
        {"scope": scope, "method": method, "round": round_, "over": over, **gain_row(list(found))}
        for (scope, method, round_, over), found in _by_subject(table, EPISODES)
        if over is not None
    ]


def _by_subject(table: Sequence[Estimate], measures: Sequence[str]) -> Any:
    """Estimates of these measures, those about one thing together."""
    return groupby((one for one in table if one.how in measures), attrgetter("subject"))


def plain(part: Any) -> Any:
    """A part of a summary as its JSON file has it: estimates by their numbers, None for one that is not finite."""
    if isinstance(part, dict):
        return {name: plain(value) for name, value in part.items()}
    if isinstance(part, list):
        return [plain(value) for value in part]
    if not isinstance(part, Estimate):
        return part
    counts = {"n": part.n} if part.replicates is None else part.fields("n", "replicates")
    ends = part.fields("value", "low", "high")
    return counts | {name: value if math.isfinite(value) else None for name, value in ends.items()}


def held_out_rows(run: LoadedRun, table: Sequence[Estimate]) -> list[Row]:
    """What was measured of the base and every scheme, overall and by category, as `summary.json` has it."""
    rows = []
    for scope, items in scoped_items(run).items():
        for scheme in examined(run):
            results = [item for one in of_scheme(run, scheme) for item in one.items if item.item in set(items)]
            counts = {"failed_calls": sum(item.failed for item in results)}
            counts |= {"unscored": sum(math.isnan(item.reward) for item in results)}
            own = find_all(table, model=scheme, scope=scope, over=None)
            means = {how: plain(find(own, how=how)) for how in measures(run)}
            rows.append({"scheme": scheme, "scope": scope, **counts, **means})
    return rows


def difference_row(gain: Estimate | None) -> Row | None:
    """A paired difference of reward, as `summary.json` has it."""
    return None if gain is None else {"scheme": gain.model} | gain.fields("scope", "over") | plain(gain)


def difference_rows(table: Sequence[Estimate]) -> list[Row | None]:
    """All of them."""
    return [difference_row(one) for one in table if one.how == REWARD and one.over is not None]
