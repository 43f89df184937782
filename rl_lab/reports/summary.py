"""The final numbers of a run as `summary.json` has them, in sentences that claim no more than the intervals do, and in
tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from algos.alarms import NOTHING_LEARNED, SIGNAL_LOST
from rl_lab.reports.benchmark import benchmark_lines, success_table
from rl_lab.reports.budgets import REACH_METHOD, REFERENCE, at_equal_budget, tokens_needed
from rl_lab.reports.estimates import (
    BLANK,
    CAPPED_STEPS,
    CONSTANT,
    NAMES,
    REWARD,
    STEPS,
    SUCCESS,
    Estimate,
    cell,
    difference_rows,
    estimates,
    gain_rows,
    held_out_rows,
    num_samples,
    pass_threshold,
    plain,
    score_rows,
    text_table,
)
from rl_lab.reports.numbers import OVERALL, Row, find, find_all, p_text, points, rate, reward, share, signed
from rl_lab.reports.pages.distillation import distillation_summary
from rl_lab.reports.pages.joint import joint_summary, joint_verdict
from rl_lab.reports.pages.pipeline import is_pipeline, pipeline_rows, pipeline_verdict, stopped_by, written_rows
from rl_lab.reports.pages.reward_models import outcome_models, outcome_sentence
from rl_lab.reports.run import BASE, LoadedRun, label
from rl_lab.reports.sweep import is_sweep, sweep_summary
from rl_lab.reports.sweep_verdict import corrected
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


def written(summary: Row) -> Row:
    """What `summary.json` holds of a summary."""
    own = {name: part for name, part in summary.items() if name not in INTERNAL}
    return plain(own | ({"pipeline": written_rows(own["pipeline"])} if "pipeline" in own else {}))


def measure(run: LoadedRun) -> Row:
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


def learned_nothing(run: LoadedRun) -> list[str]:
    """A sentence for every alarm which says that a training could not learn, or no longer."""
    alarms = [
        line for line in run.metrics if any(kind in line.get("alarm", "") for kind in (NOTHING_LEARNED, SIGNAL_LOST))
    ]
    return [f"{line['node']}, step {line['step']}: {line['alarm']}." for line in alarms]


def episode_summary(run: LoadedRun, table: Table) -> Row:
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


def seed_overlap(run: LoadedRun) -> list[int]:
    """Environment seeds that are in a preference pair and in an evaluation as well; must be empty."""
    trained = {pair.seed for pair_set in run.pairs for pair in pair_set.index}
    return sorted({e.seed for evaluation in run.evaluations for e in evaluation.episodes} & trained)


def language_summary(run: LoadedRun, table: Table) -> Row:
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


def episode_verdict(run: LoadedRun, table: Table) -> list[str]:
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


def score_lines(summary: Row, scope: str = OVERALL) -> str:
    """The table of the report's first page for one scope."""
    overs = [BASE, *([summary["control"]] if summary["control"] else [])]
    head = ["policy", "n", "success", "95 % interval", *(f"over {label(over)}" for over in overs), "steps", "capped"]
    table = find_all(summary["estimates"], scope=scope)
    rows = []
    for one in find_all(table, how=SUCCESS, over=None):
        own = find_all(table, model=one.model, round=one.round)
        cells = [label(one.model, one.round), one.n, f"{rate(one.value)} %", f"{one.ends()} %"]
        cells += [find(own, how=SUCCESS, over=over) for over in overs]
        steps = [find(own, how=how, over=None) for how in (STEPS, CAPPED_STEPS)]
        rows.append([*cells, *("" if mean is None else f"{mean.value:.0f}" for mean in steps)])
    return text_table(head, rows)


def episode_lines(summary: Row) -> list[str]:
    """Tables of all scopes of a run on episodes."""
    scopes = list(dict.fromkeys(one.scope for one in find_all(summary["estimates"], how=SUCCESS)))
    shown = scopes if len(scopes) > 2 else scopes[:1]
    return [f"{scope}\n{score_lines(summary, scope)}" for scope in shown] + benchmark_lines(summary["benchmark"])


def held_out_lines(summary: Row) -> list[str]:
    """The table of a run on language: rewards, passes, and what the models are held against."""
    names = list(dict.fromkeys((REWARD, "pass@1", f"pass@{summary['samples']}", BLANK, CONSTANT)))
    table = find_all(summary["estimates"], scope=OVERALL)
    rows = []
    for mean in find_all(table, how=REWARD, over=None):
        own = find_all(table, model=mean.model)
        means = [find(own, how=name, over=None) for name in names[1:]]
        rest = ["" if one is None else reward(one.value) for one in means]
        over = find(own, how=REWARD, over=BASE)
        rows.append([label(mean.model), mean.replicates, mean.n, mean, *rest, cell(over, reward)])
    head = ["model", "replicates", "items", *names, "over base"]
    return [text_table(head, rows)] if rows else []


def pipeline_lines(summary: Row) -> list[str]:
    """The chain of models: what each was made from, what it gained over the one before, what its gate said."""
    rows = []
    for row in summary["pipeline"]:
        gate = "" if row["gate"] is None else "passed" if row["gate"]["passed"] else f"{row['goes_on']} goes on"
        gate = row["status"] if row["status"] != "done" else gate
        gain = f"{row['before']}: {cell(row['over_before'], reward)}" if row["over_before"] else ""
        tokens, seconds = row["tokens_sampled"] or row["tokens_imitated"], f"{row['seconds']:.0f} s"
        cells = [row["model"], row["from_model"], row["held_out"], gain]
        rows.append([*cells, f"{tokens:,}" if tokens else "", seconds, gate])
    head = ["model", "from", "held-out reward", "over the one before", "tokens", "time", "gate"]
    return [text_table(head, rows, left=2)]


def sweep_lines(sweep: Row) -> list[str]:
    """Truth of every variant, and its difference to the baseline at the level that the sweep keeps."""
    rows = []
    for row in sweep["variants"]:
        verdict = row.get("verdict")
        over = ["", ""] if verdict is None else [cell(corrected(verdict, sweep["baseline"]), reward), verdict["scope"]]
        rows.append([row["variant"], row["reward"] and row["reward"].replicates, row["reward"], *over])
    head = ["trained on", "seeds", "held-out truth", f"over {sweep['baseline']}", "holds for"]
    return [text_table(head, rows)]


def summary_lines(summary: Row) -> str:
    """The tables of a run and its verdict."""
    if "sweep" in summary:
        return "\n\n".join([*sweep_lines(summary["sweep"]), "\n".join(summary["verdict"])])
    tables = episode_lines(summary) if "scores" in summary else []
    tables += pipeline_lines(summary) if "pipeline" in summary else []
    tables += held_out_lines(summary) if "held_out" in summary else []
    return "\n\n".join([*tables, "\n".join(summary["verdict"])])
