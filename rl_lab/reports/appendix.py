"""The end of every report: what ran and how long it took, and the settings."""

from __future__ import annotations

import json

import yaml

from rl_lab.reports.markup import Cell, parts
from rl_lab.reports.numbers import duration
from rl_lab.reports.rundir import RunFolder


def stages(run: RunFolder) -> list[list[object]]:
    """A row for each stage: what ran, what was reused, and how long each took."""
    nodes = [s for s in run.stages if s.get("kind") != "report"]
    longest = max((s.get("seconds") or 0 for s in nodes), default=0) or 1
    rows: list[list[object]] = []
    for stage in nodes:
        seconds, reused = stage.get("seconds"), bool(stage.get("reused"))
        how = ("reused" if reused else "computed") if stage.get("status") == "done" else stage.get("status")
        bar = parts.meter(100 * (seconds or 0) / longest, reused)
        took = duration(seconds) if seconds is not None else ""
        digest = parts.code(str(stage.get("hash"))[:12])
        rows.append([stage["name"], Cell(how, "left"), took, Cell(bar, "metercell"), digest])
    return rows


def setup(run: RunFolder) -> dict[str, str]:
    """Environment and configuration by file, as they are in the run folder."""
    environment = {k: v for k, v in run.environment.items() if k != "substitutions"}
    config = yaml.safe_dump(run.config, sort_keys=False, width=100)
    return {"environment.json": json.dumps(environment, indent=2), "config.yaml": config}
