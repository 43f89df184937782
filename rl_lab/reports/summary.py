"""What a report says of a run: its numbers as `summary.json` has them, sentences that claim no more than the intervals
do, and tables for the terminal. Every subject has them in a file of `pages`, beside its part of the page."""

from __future__ import annotations

from collections.abc import Sequence

from algos.alarms import NOTHING_LEARNED, SIGNAL_LOST
from rl_lab.common.stats import REWARD_METHOD
from rl_lab.reports.estimates import (
    Estimate,
    difference_rows,
    estimates,
    held_out_rows,
    low_temperature,
    num_samples,
    pass_threshold,
    plain,
)
from rl_lab.reports.numbers import Row
from rl_lab.reports.pages.actions import episode_lines, episode_summary
from rl_lab.reports.pages.distillation import distillation_summary
from rl_lab.reports.pages.held_out import held_out_lines, held_out_verdict
from rl_lab.reports.pages.imitation import imitation_verdict, imitations
from rl_lab.reports.pages.joint import joint_summary, joint_verdict
from rl_lab.reports.pages.pipeline import (
    is_pipeline,
    pipeline_lines,
    pipeline_rows,
    pipeline_verdict,
    stopped_by,
    written_rows,
)
from rl_lab.reports.pages.reward_models import outcome_models, outcome_sentence
from rl_lab.reports.pages.study import study_lines
from rl_lab.reports.run import LoadedRun
from rl_lab.reports.study import is_study, study_summary
from rl_lab.reports.study_details import details

INTERNAL = ("estimates", "study")
"""What a summary holds for pages and tables only; `study.json` has the latter."""


def written(summary: Row) -> Row:
    """What `summary.json` holds of a summary."""
    own = {name: part for name, part in summary.items() if name not in INTERNAL}
    return plain(own | ({"pipeline": written_rows(own["pipeline"])} if "pipeline" in own else {}))


def measure(run: LoadedRun) -> Row:
    """Name, seed, alarms, seconds and unfinished stages; then what its kind of stages measured, and the verdict.

    `estimates` is the table of which the rest is a view. A study has `study`, which `study.json` holds, and beside it
    only what it measured on language in its one world.
    """
    summary: Row = {
        "name": run.name,
        "seed": run.seed,
        "alarms": sum("alarm" in record for record in run.metrics),
        "computed_seconds": run.computed_seconds,
        "unfinished": run.unfinished,
        "verdict": [],
    }
    if is_study(run):
        study = study_summary(run) | {"details": details(run)}
        table = estimates(run) if run.on_language and len(study["details"]) == 1 else []
        summary |= ({"estimates": table} | language_summary(run, table)) if table else {}
        verdict = [*several_processors(run), *learned_nothing(run), *study["verdict"]]
        return summary | {"study": study, "verdict": verdict}
    table = estimates(run)
    summary |= {"estimates": table}
    for wanted, part in ((run.on_episodes, episode_summary), (run.on_language, language_summary)):
        if wanted:
            found = part(run, table)
            summary |= found | {"verdict": summary["verdict"] + found["verdict"]}
    if run.joint:
        joint = joint_summary(run.joint, summary)
        summary |= {"joint": joint, "verdict": joint_verdict(joint, table)}
    return summary | {"verdict": [*several_processors(run), *learned_nothing(run), *summary["verdict"]]}


def several_processors(run: LoadedRun) -> list[str]:
    """A sentence where stages ran on different processors, which weakens every comparison."""
    if len(run.processors) < 2:
        return []
    named = "; ".join(run.processors)
    return [f"Stages ran on different processors ({named}), which round differently: a difference may be theirs."]


def learned_nothing(run: LoadedRun) -> list[str]:
    """A sentence for every alarm which says that a training could not learn, or no longer."""
    kinds = (NOTHING_LEARNED, SIGNAL_LOST)
    alarms = [line for line in run.metrics if any(kind in line.get("alarm", "") for kind in kinds)]
    return [f"{line['node']}, step {line['step']}: {line['alarm']}." for line in alarms]


def language_summary(run: LoadedRun, table: Sequence[Estimate]) -> Row:
    """Held-out rewards, paired differences and verdict of a run on language."""
    summary: Row = {
        "schemes": run.schemes,
        "samples": num_samples(run),
        "pass_threshold": pass_threshold(run),
        "low_temperature": low_temperature(run),
        "held_out": held_out_rows(run, table),
        "held_out_differences": difference_rows(table),
        "held_out_intervals": {"rewards and differences": REWARD_METHOD},
    }
    if is_pipeline(run):
        rows = pipeline_rows(run, table)
        summary |= {"pipeline": rows, "verdict": pipeline_verdict(rows, stopped_by(run))}
    else:
        summary |= {"verdict": held_out_verdict(table, low_temperature(run))}
    imitated, models = imitations(run), outcome_models(run)
    if (imitated or models) and not summary["held_out"]:
        summary["verdict"] = []  # without a model of the chain there is nothing but these to say
    if imitated:
        summary |= {"imitation": imitated, "verdict": [*imitation_verdict(imitated), *summary["verdict"]]}
    if models:
        sentences = [outcome_sentence(name, record) for name, record in models.items()]
        summary |= {"reward_models": models, "verdict": [*summary["verdict"], *sentences]}
    distilled = distillation_summary(run)
    if distilled is not None:
        summary |= {"distillation": distilled, "verdict": [*summary["verdict"], *distilled["verdict"]]}
    return summary


def summary_lines(summary: Row) -> str:
    """The tables of a run and its verdict."""
    if "study" in summary:
        return "\n\n".join([*study_lines(summary["study"]), "\n".join(summary["verdict"])])
    tables = episode_lines(summary) if "scores" in summary else []
    tables += pipeline_lines(summary) if "pipeline" in summary else []
    tables += held_out_lines(summary) if "held_out" in summary else []
    return "\n\n".join([*tables, "\n".join(summary["verdict"])])
