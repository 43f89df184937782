"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.benchmark import episodes_text, has_several_cells, table_text
from rl_lab.reports.estimates import BLANK, CAPPED_STEPS, CONSTANT, REWARD, STEPS, SUCCESS, cell
from rl_lab.reports.rundir import BASE, label
from rl_lab.reports.sweep_verdict import corrected
from rl_lab.reports.verdict import OVERALL, Row, find, find_all, rate, reward
from rl_lab.terminal import columns


def score_lines(summary: Row, scope: str = OVERALL) -> str:
    """The table of the report's first page for one scope."""
    overs = [BASE, *([summary["control"]] if summary["control"] else [])]
    head = ["policy", "n", "success", "95 % interval", *(f"over {label(over)}" for over in overs), "steps", "capped"]
    table = find_all(summary["estimates"], scope=scope)
    rows = []
    for one in find_all(table, how=SUCCESS, over=None):
        own = find_all(table, model=one.model, round=one.round)
        cells = [label(one.model, one.round), str(one.n), f"{rate(one.value)} %", f"{one.ends()} %"]
        cells += [cell(find(own, how=SUCCESS, over=over)) for over in overs]
        steps = [find(own, how=how, over=None) for how in (STEPS, CAPPED_STEPS)]
        rows.append([*cells, *("" if mean is None else f"{mean.value:.0f}" for mean in steps)])
    return columns(head, rows)


def episode_lines(summary: Row) -> list[str]:
    """Tables of all scopes of a run on episodes."""
    scopes = list(dict.fromkeys(one.scope for one in find_all(summary["estimates"], how=SUCCESS)))
    shown = scopes if len(scopes) > 2 else scopes[:1]
    return [f"{scope}\n{score_lines(summary, scope)}" for scope in shown] + benchmark_lines(summary["benchmark"])


def benchmark_lines(tables: Sequence[Row]) -> list[str]:
    """The table of the papers, where it has more than one cell; a policy without a name has `method` None."""
    if not tables or not has_several_cells(tables[0]):
        return []
    named = [(label(table["method"], table["round"]) if table["method"] else "", table) for table in tables]
    head, rows = table_text(named)
    return [f"success in percent, {episodes_text(tables[0])}\n{columns(head, rows)}"]


def held_out_lines(summary: Row) -> list[str]:
    """The table of a run on language: rewards, passes, and what the models are held against."""
    names = list(dict.fromkeys((REWARD, "pass@1", f"pass@{summary['samples']}", BLANK, CONSTANT)))
    table = find_all(summary["estimates"], scope=OVERALL)
    rows = []
    for mean in find_all(table, how=REWARD, over=None):
        own = find_all(table, model=mean.model)
        means = [find(own, how=name, over=None) for name in names[1:]]
        rest = ["" if one is None else reward(one.value) for one in means]
        counts = [str(mean.replicates), str(mean.n)]
        over = find(own, how=REWARD, over=BASE)
        rows.append([label(mean.model), *counts, cell(mean), *rest, cell(over, reward)])
    head = ["model", "replicates", "items", *names, "over base"]
    return [columns(head, rows)] if rows else []


def pipeline_lines(summary: Row) -> list[str]:
    """The chain of models: what each was made from, what it gained over the one before, what its gate said."""
    rows = []
    for row in summary["pipeline"]:
        gate = "" if row["gate"] is None else "passed" if row["gate"]["passed"] else f"{row['goes_on']} goes on"
        gate = row["status"] if row["status"] != "done" else gate
        gain = f"{row['before']}: {cell(row['over_before'], reward)}" if row["over_before"] else ""
        tokens, seconds = row["tokens_sampled"] or row["tokens_imitated"], f"{row['seconds']:.0f} s"
        cells = [row["model"], row["from_model"] or "", cell(row["held_out"]), gain]
        rows.append([*cells, f"{tokens:,}" if tokens else "", seconds, gate])
    head = ["model", "from", "held-out reward", "over the one before", "tokens", "time", "gate"]
    return [columns(head, rows, left=2)]


def sweep_lines(sweep: Row) -> list[str]:
    """Truth of every variant, and its difference to the baseline at the level that the sweep keeps."""
    rows = []
    for row in sweep["variants"]:
        verdict = row.get("verdict")
        over = ["", ""] if verdict is None else [cell(corrected(verdict, sweep["baseline"]), reward), verdict["scope"]]
        seeds = "" if row["reward"] is None else str(row["reward"].replicates)
        rows.append([row["variant"], seeds, cell(row["reward"]), *over])
    head = ["trained on", "seeds", "held-out truth", f"over {sweep['baseline']}", "holds for"]
    return [columns(head, rows)]


def summary_lines(summary: Row) -> str:
    """The tables of a run and its verdict."""
    if "sweep" in summary:
        return "\n\n".join([*sweep_lines(summary["sweep"]), "\n".join(summary["verdict"])])
    tables = episode_lines(summary) if "scores" in summary else []
    tables += pipeline_lines(summary) if "pipeline" in summary else []
    tables += held_out_lines(summary) if "held_out" in summary else []
    return "\n\n".join([*tables, "\n".join(summary["verdict"])])
