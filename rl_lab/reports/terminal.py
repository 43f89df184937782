"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rl_lab.reports.benchmark import episodes_text, has_several_cells, table_text
from rl_lab.reports.rundir import BASE, label
from rl_lab.reports.verdict import OVERALL, Row, find, points


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Aligned columns, the first `left` of them to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rule = ["-" * width for width in widths]

    def written(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        return "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return "\n".join(written(line) for line in (lines[0], rule, *lines[1:]))


def gain_cell(row: Row | None) -> str:
    """A paired difference in points with its interval."""
    if row is None:
        return ""
    if "refused" in row:
        return "not paired"
    return f"{points(row['difference'])} [{points(row['low'])}, {points(row['high'])}]"


def score_lines(summary: Row, scope: str = OVERALL) -> str:
    """The table of the report's first page for one scope."""
    overs = [BASE, *([summary["control"]] if summary["control"] else [])]
    head = ["policy", "n", "success", "95 % interval", *(f"over {label(over)}" for over in overs)]
    rows = []
    for row in (r for r in summary["scores"] if r["scope"] == scope):
        key = {"scope": scope, "method": row["method"], "round": row["round"]}
        cells = [label(row["method"], row["round"]), str(row["n"]), f"{100 * row['rate']:.0f} %"]
        cells.append(f"{100 * row['low']:.0f} to {100 * row['high']:.0f} %")
        cells += [gain_cell(find(summary["gains"], **key, over=over)) for over in overs]
        steps = row["steps_over_successes"]
        rows.append([*cells, "" if steps is None else f"{steps:.0f}", f"{row['capped_steps']:.0f}"])
    return columns([*head, "steps", "capped"], rows)


def episode_lines(summary: Row) -> list[str]:
    """Tables of all scopes of a run on episodes."""
    scopes = list(dict.fromkeys(row["scope"] for row in summary["scores"]))
    shown = scopes if len(scopes) > 2 else scopes[:1]
    return [f"{scope}\n{score_lines(summary, scope)}" for scope in shown] + benchmark_lines(summary["benchmark"])


def benchmark_lines(tables: Sequence[Row]) -> list[str]:
    """The table of the papers, where it has more than one cell; a policy without a name has `method` None."""
    if not tables or not has_several_cells(tables[0]):
        return []
    named = [(label(table["method"], table["round"]) if table["method"] else "", table) for table in tables]
    head, rows = table_text(named)
    return [f"success in percent, {episodes_text(tables[0])}\n{columns(head, rows)}"]


def reward_cell(row: Row | None) -> str:
    """A mean reward, or a difference, with its interval."""
    return "" if row is None else f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def held_out_lines(summary: Row) -> list[str]:
    """The table of a run on language: rewards, passes, and what the models are held against."""
    k = summary["samples"]
    names = list(dict.fromkeys(("reward", "pass@1", f"pass@{k}", "blank", "constant")))
    rows = []
    for row in (r for r in summary["held_out"] if r["scope"] == OVERALL and r["reward"]):
        over = find(summary["held_out_differences"], scope=OVERALL, scheme=row["scheme"], over=BASE)
        counts = [str(row["reward"]["replicates"]), str(row["reward"]["n"])]
        rest = ["" if row[name] is None else f"{row[name]['value']:.3f}" for name in names[1:]]
        rows.append([label(row["scheme"]), *counts, reward_cell(row["reward"]), *rest, reward_cell(over)])
    head = ["model", "replicates", "items", *names, "over base"]
    return [columns(head, rows)] if rows else []


def pipeline_lines(summary: Row) -> list[str]:
    """The chain of models: what each was made from, what it gained over the one before, what its gate said."""
    rows = []
    for row in summary["pipeline"]:
        gate = "" if row["gate"] is None else "passed" if row["gate"]["passed"] else f"{row['goes_on']} goes on"
        gate = row["status"] if row["status"] != "done" else gate
        gain = f"{row['before']}: {reward_cell(row['over_before'])}" if row["over_before"] else ""
        tokens, seconds = row["tokens_sampled"] or row["tokens_imitated"], f"{row['seconds']:.0f} s"
        cells = [row["model"], row["from_model"] or "", reward_cell(row["held_out"]), gain]
        rows.append([*cells, f"{tokens:,}" if tokens else "", seconds, gate])
    head = ["model", "from", "held-out reward", "over the one before", "tokens", "time", "gate"]
    return [columns(head, rows, left=2)]


def sweep_lines(sweep: Row) -> list[str]:
    """Truth of every variant, and its difference to the baseline at the level that the sweep keeps."""
    rows = []
    for row in sweep["variants"]:
        verdict = row.get("verdict")
        over = ["", ""] if verdict is None else [reward_cell(verdict["difference"]), verdict["scope"]]
        seeds = "" if row["reward"] is None else str(row["reward"]["replicates"])
        rows.append([row["variant"], seeds, reward_cell(row["reward"]), *over])
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
