"""The final numbers of a run: what `summary.json` holds and every table shows."""

from __future__ import annotations

from algos.alarms import NOTHING_LEARNED
from algos.hacking_alarms import SIGNAL_LOST
from rl_lab.reports.budgets import REACH_METHOD, at_equal_budget, tokens_needed
from rl_lab.reports.compare import episode_summary
from rl_lab.reports.distillation import distillation_summary
from rl_lab.reports.held_out import differences, num_samples, pass_threshold, policies
from rl_lab.reports.held_out_verdict import held_out_verdict
from rl_lab.reports.joint import joint_summary, joint_verdict
from rl_lab.reports.outcome_card import outcome_models, outcome_sentence
from rl_lab.reports.pipeline import is_pipeline, pipeline_rows, pipeline_verdict, stopped_by
from rl_lab.reports.rundir import RunFolder
from rl_lab.reports.sweep import is_sweep, sweep_summary
from rl_lab.reports.verdict import Row
from rl_lab.stats import REWARD_METHOD


def summarise(run: RunFolder) -> Row:
    """Name, seed, alarms, seconds and unfinished stages; then what its kind of stages measured, and the verdict.

    Of a sweep also `sweep`, which `sweep.json` holds.
    """
    summary: Row = {
        "name": run.name,
        "seed": run.seed,
        "alarms": sum("alarm" in record for record in run.metrics),
        "computed_seconds": run.computed_seconds,
        "unfinished": run.unfinished,
        "verdict": [],
    }
    for wanted, part in ((run.on_episodes, episode_summary), (run.on_language, language_summary)):
        if wanted:
            found = part(run)
            summary |= found | {"verdict": summary["verdict"] + found["verdict"]}
    if run.joint:
        joint = joint_summary(run.joint, summary)
        summary |= {"joint": joint, "verdict": joint_verdict(joint)}
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


def language_summary(run: RunFolder) -> Row:
    """Held-out rewards, paired differences, equal budgets, tokens needed, and verdict of a run on language."""
    summary: Row = {
        "schemes": run.schemes,
        "samples": num_samples(run),
        "pass_threshold": pass_threshold(run),
        "held_out": policies(run),
        "held_out_differences": differences(run),
        "at_equal_steps": at_equal_budget(run, "steps"),
        "at_equal_tokens": at_equal_budget(run, "tokens"),
        "tokens_needed": tokens_needed(run),
        "held_out_intervals": {"rewards and differences": REWARD_METHOD, "tokens needed": REACH_METHOD},
    }
    if is_pipeline(run):
        rows = pipeline_rows(run, summary)
        summary |= {"pipeline": rows, "verdict": pipeline_verdict(rows, stopped_by(run))}
    else:
        summary |= {"verdict": held_out_verdict(summary)}
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
