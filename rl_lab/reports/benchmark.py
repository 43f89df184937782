"""Success in the table of RoboTwin's and Hy-VLA's papers: a row for each task, a column for each task config, the mean.

Every task counts the same in the mean, however many episodes it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rl_lab.common.terminal import columns
from rl_lab.reports.numbers import Row
from rl_lab.reports.run import label

Outcome = tuple[str, str, bool]
"""Task, variant, success."""


def success_table(outcomes: Iterable[Outcome]) -> Row:
    """Rates of one policy by task and variant, their means over the tasks, and the numbers of episodes of a cell."""
    cells: dict[tuple[str, str], list[bool]] = {}
    for task, variant, success in outcomes:
        cells.setdefault((task, variant), []).append(success)
    rates: dict[str, dict[str, float]] = {}
    for (task, variant), found in cells.items():
        rates.setdefault(task, {})[variant] = sum(found) / len(found)
    variants = list(dict.fromkeys(variant for _, variant in cells))
    columns = {name: [row[name] for row in rates.values() if name in row] for name in variants}
    mean = {name: sum(column) / len(column) for name, column in columns.items()}
    return {"n": sorted({len(found) for found in cells.values()}), "variants": variants, "rates": rates, "mean": mean}


def has_several_cells(table: Row) -> bool:
    """Whether there is more to show than one number."""
    return len(table["rates"]) * len(table["variants"]) > 1


def table_text(tables: Sequence[tuple[str, Row]]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of some policies side by side, success in percent."""
    pairs = [(name, table, variant) for name, table in tables for variant in table["variants"]]
    head = ["task", *(f"{name} {variant}".strip() for name, _, variant in pairs)]
    tasks = dict.fromkeys(task for _, table in tables for task in table["rates"])
    columns = [[_percent(table["rates"].get(task, {}).get(variant)) for task in tasks] for _, table, variant in pairs]
    means = [_percent(table["mean"][variant]) for _, table, variant in pairs]
    return head, [*([*row] for row in zip(tasks, *columns, strict=True)), ["mean", *means]]


def episodes_text(table: Row) -> str:
    """How many episodes a cell stands for."""
    low, high = table["n"][0], table["n"][-1]
    return f"{low} episodes a cell" if low == high else f"{low} to {high} episodes a cell"


def _percent(rate: float | None) -> str:
    return "" if rate is None else f"{100 * rate:.1f}"


def benchmark_lines(tables: Sequence[Row]) -> list[str]:
    """The table of the papers, where it has more than one cell; a policy without a name has `method` None."""
    if not tables or not has_several_cells(tables[0]):
        return []
    named = [(label(table["method"], table["round"]) if table["method"] else "", table) for table in tables]
    head, rows = table_text(named)
    return [f"success in percent, {episodes_text(tables[0])}\n{columns(head, rows)}"]
