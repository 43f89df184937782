"""The rollouts of pool items, read from the Parquet files under RUN/rollouts; a run without them has none."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
COLUMNS = ("item", "prompt", "completion", "tokens", "logprobs", "rewards", "weight_version", "step")
"""What is read of each rollout; a column that a file lacks is None. `rewards`: value by part, also as `reward_PART`."""


def read_rollouts(run: Path, items: Sequence[str], last: int) -> tuple[dict[str, list[Row]], list[str]]:
    """The newest `last` rollouts of each item, newest first, and one line for each file that cannot be read."""
    found: dict[str, list[Row]] = {item: [] for item in items}
    problems = []
    for path in sorted((run / "rollouts").glob("**/*.parquet")):
        if path.name.startswith("."):
            continue
        try:
            rows = _read(path, items)
        except (OSError, ValueError) as error:
            problems.append(f"{path.relative_to(run)} cannot be read: {' '.join(str(error).split())}")
            continue
        for row in rows:
            found[row["item"]].append(row)
    for item, rows in found.items():
        found[item] = sorted(rows, key=lambda row: -(row["step"] or 0))[:last]
    return found, problems


def _read(path: Path, items: Sequence[str]) -> list[Row]:
    import pyarrow.parquet

    names = pyarrow.parquet.read_schema(path).names
    if "item" not in names:
        raise ValueError(f"it has no column item, only {', '.join(names)}")
    parts = [name for name in names if name.startswith("reward")]
    wanted = [name for name in COLUMNS if name in names and name not in parts]
    table = pyarrow.parquet.read_table(path, columns=wanted + parts, filters=[("item", "in", list(items))])
    return [_rollout(row) for row in table.to_pylist()]


def _rollout(row: Row) -> Row:
    """One rollout with every column of COLUMNS; rewards as {part: value or None}."""
    rewards = row.get("rewards")
    if isinstance(rewards, list):
        rewards = dict(rewards)
    elif not isinstance(rewards, dict):
        rewards = {"reward": rewards} if rewards is not None else {}
    rewards |= {
        key.removeprefix("reward_"): value
        for key, value in row.items()
        if key.startswith("reward") and key != "rewards"
    }
    return {name: row.get(name) for name in COLUMNS} | {"rewards": rewards}
