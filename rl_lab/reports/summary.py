"""The final numbers of a run, and what they showed in words: sentences that claim no more than the intervals do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from algos.alarms import NOTHING_LEARNED, SIGNAL_LOST
from rl_lab.reports.benchmark import success_table
from rl_lab.reports.budgets import REACH_METHOD, REFERENCE, at_equal_budget, tokens_needed
from rl_lab.reports.distillation import distillation_summary
from rl_lab.reports.estimates import (
    NAMES,
    REWARD,
    STEPS,
    SUCCESS,
    Estimate,
    difference_rows,
    estimates,
    gain_rows,
    held_out_rows,
    num_samples,
    pass_threshold,
    plain,
    score_rows,
)
from rl_lab.reports.joint import joint_summary, joint_verdict
from rl_lab.reports.outcome_card import outcome_models, outcome_sentence
from rl_lab.reports.pipeline import is_pipeline, pipeline_rows, pipeline_verdict, stopped_by, written_rows
from rl_lab.reports.rundir import BASE, RunFolder, label
from rl_lab.reports.sweep import is_sweep, sweep_summary
from rl_lab.reports.verdict import OVERALL, Row, find, find_all, p_text, points, rate, reward, share, signed
from rl_lab.stats import EPISODE_METHODS, REWARD_METHOD

Table = Sequence[Estimate]
INTERNAL = ("estimates", "sweep")
"""What a summary holds for pages and tables only; `sweep.json` has the latter."""
STANDINGS = {
    "above": "the interval lies above 0",
    "below": "the interval lies below 0",
    "open": "the interval includes 0, no difference is shown",
}
OPENINGS = {
    "above": "Better than (interval above 0)",
    "below": "Worse than (interval below 0)",
    "open": "No difference shown to (interval around 0)",
}


def summarise(run: RunFolder) -> Row:
    """What `summary.json` holds of a run."""
    return written(measure(run))


def written(summary: Row) -> Row:
    """What `summary.json` holds of a summary."""
    own = {name: part for name, part in summary.items() if name not in INTERNAL}
    return plain(own | ({"pipeline": written_rows(own["pipeline"])} if "pipeline" in own else {}))


def measure(run: RunFolder) -> Row:
    """Name, seed, alarms, seconds and unfinished stages; then what its kind of stages measured, and the verdict.

    `estimates` is the table of which the rest is a view; a sweep also has `sweep`, which `sweep.json` holds.
    """
    table = estimates(run)
    summary: Row = {
        "name": run.name,
        "seed": run.seed,
        "alarms": sum("alarm" in record for record in run.metrics),
        "computed_seconds": run.computed_seconds,
        "unfinished": run.unfinished,
        "verdict": [],
        "estimates": table,
    }
    for wanted, part in ((run.on_episodes, episode_summary), (run.on_language, language_summary)):
        if wanted:
            found = part(run, table)
            summary |= found | {"verdict": summary["verdict"] + found["verdict"]}
    if run.joint:
        joint = joint_summary(run.joint, summary)
        summary |= {"joint": joint, "verdict": joint_verdict(joint, table)}
    if is_sweep(run):
        sweep = sweep_summary(run)
        summary |= {"sweep": sweep, "verdict": [row["sentence"] for row in sweep["variants"] if "sentence" in row]}
    return summary | {"verdict": [*learned_nothing(run), *summary["verdict"]]}


def learned_nothing(run: RunFolder) -> list[str]:
    """A sentence for every alarm which says that a training could not learn, or no longer."""
    alarms = [
        line for line in run.metrics if any(kind in line.get("alarm", "") for kind in (NOTHING_LEARNED, SIGNAL_LOST))
    ]
    return [f"{line['node']}, step {line['step']}: {line['alarm']}." for line in alarms]


def episode_summary(run: RunFolder, table: Table) -> Row:
    """Scores, paired gains, collection counts and verdict of a run on episodes."""
    last = {evaluation.method: evaluation for evaluation in sorted(run.evaluations, key=lambda one: one.round)}
    return {
        "method": run.method,
        "control": run.control,
        "evaluation_seeds": (run.config.get("eval") or {}).get("seeds"),
        "scores": score_rows(run, table),
        "gains": gain_rows(table),
        "benchmark": [
            {"method": one.method, "round": one.round}
            | success_table((e.task, e.variant, e.success) for e in one.episodes)
            for one in last.values()
        ],
        "collection": [{"node": p.node, "method": p.method, "round": p.round, **p.counts} for p in run.pairs],
        "seed_overlap": seed_overlap(run),
        "intervals": EPISODE_METHODS,
        "verdict": episode_verdict(run, table),
    }


def seed_overlap(run: RunFolder) -> list[int]:
    """Environment seeds that are in a preference pair and in an evaluation as well; must be empty."""
    trained = {record.get("seed") for pair_set in run.pairs for record in pair_set.index}
    return sorted({e.seed for evaluation in run.evaluations for e in evaluation.episodes} & trained)


def language_summary(run: RunFolder, table: Table) -> Row:
    """Held-out rewards, paired differences, equal budgets, tokens needed, and verdict of a run on language."""
    summary: Row = {
        "schemes": run.schemes,
        "samples": num_samples(run),
        "pass_threshold": pass_threshold(run),
        "held_out": held_out_rows(run, table),
        "held_out_differences": difference_rows(table),
        "at_equal_steps": at_equal_budget(run, "steps"),
        "at_equal_tokens": at_equal_budget(run, "tokens"),
        "tokens_needed": tokens_needed(run),
        "held_out_intervals": {"rewards and differences": REWARD_METHOD, "tokens needed": REACH_METHOD},
    }
    if is_pipeline(run):
        rows = pipeline_rows(run, table)
        summary |= {"pipeline": rows, "verdict": pipeline_verdict(rows, stopped_by(run))}
    else:
        summary |= {"verdict": held_out_verdict(table, summary["tokens_needed"])}
    models = outcome_models(run)
    if models:
        sentences = [outcome_sentence(name, record) for name, record in models.items()]
        # Without a model of the chain there is nothing but these to say.
        own = summary["verdict"] if summary["held_out"] else []
        summary |= {"reward_models": models, "verdict": [*own, *sentences]}
    distilled = distillation_summary(run)
    if distilled is not None:
        summary |= {"distillation": distilled, "verdict": [*summary["verdict"], *distilled["verdict"]]}
    return summary


def episode_verdict(run: RunFolder, table: Table) -> list[str]:
    """What the run showed in episodes, as sentences with numbers."""
    success = find_all(table, how=SUCCESS, scope=OVERALL)
    base, method, last = find(success, model=BASE), run.method, run.last_round(run.method)
    if method is None:
        return [f"The base policy solves {_rate(base)}." if base else "No policy was evaluated."]
    final = find(success, model=method, round=last, over=None)
    assert final is not None, "a method of the run has a score"
    before = f", the base policy {_rate(base)}" if base else ""
    sentences = [f"After {last} round{'s' * (last != 1)} {label(method)} solves {_rate(final)}{before}."]
    names = {BASE: "the base policy"}
    if run.control:
        names[run.control] = f"{label(run.control)} after the same round"
    for over, name in names.items():
        found = find(success, model=method, round=last, over=over)
        if found is not None:
            sentences.append(_gain_sentence(found, name))
    steps = find(table, how=STEPS, scope=OVERALL, model=method, round=last, over=BASE)
    if steps is not None:
        sentences.insert(2, _speed_sentence(steps))
    if run.control is None:
        sentences.append("No control was run: the gain over the base policy does not say what caused it.")
    return sentences


def _rate(one: Estimate) -> str:
    return f"{one.successes} of {one.n} ({rate(one.value)} %, 95 % interval {one.ends()})"


def _gain_sentence(gain: Estimate, over: str) -> str:
    if gain.refused is not None:
        return f"No paired gain over {over}: {gain.refused}."
    return (
        f"Paired gain over {over}: {points(gain.value)} points, 95 % interval {gain.ends()} (n = {gain.n}, "
        f"{gain.won} episodes won, {gain.lost} lost, p {p_text(gain.p)}); {STANDINGS[gain.standing]}."
    )


def _speed_sentence(steps: Estimate) -> str:
    span = f"95 % interval {steps.ends(lambda value: f'{value:+.1f}')}"
    return f"On the {steps.n} episodes that both solve, control steps change by {steps.value:+.1f} ({span})."


def held_out_verdict(table: Table, tokens: Sequence[Row]) -> list[str]:
    """A paragraph for the base, then for each scheme: what it is better than, paired, and the tokens that it needed."""
    rewards = find_all(table, how=REWARD, scope=OVERALL)
    paragraphs = []
    for mean in find_all(rewards, over=None):
        gains = [one for one in rewards if one.model == mean.model and one.over is not None]
        sentences = [_reward_sentence(mean), *_comparisons(gains)]
        needed = find(tokens, scheme=mean.model)
        if needed is not None and mean.model != REFERENCE:
            sentences.append(_needed(needed))
        paragraphs.append(" ".join(sentences))
    return paragraphs or ["No model was examined."]


def _reward_sentence(mean: Estimate) -> str:
    name = label(mean.model)
    seeds = f", {mean.replicates} replicates" if mean.replicates != 1 else ""
    span = f"95 % interval {mean.ends()}, {mean.n} items{seeds}"
    return f"{name[0].upper()}{name[1:]}: held-out reward {reward(mean.value)} ({span})."


def _comparisons(gains: Table) -> Iterator[str]:
    """One sentence for each side of 0 on which intervals of paired differences lie."""
    for standing, opening in OPENINGS.items():
        found = [one for one in gains if one.standing == standing]
        texts = [f"{NAMES.get(one.over or '', label(one.over or ''))} {signed(one.value)}" for one in found]
        if texts:
            yield f"{opening}: {', '.join(texts)}."


def _needed(row: Row) -> str:
    ends = f"95 % interval {share(row['low'])} to {share(row['high'])}"
    if row["share"] is None:
        return f"It never reaches uniform's final reward within its tokens ({ends})."
    return f"It reaches uniform's final reward with {share(row['share'])} of uniform's tokens ({ends})."
