"""What a run is doing now: its driver's signs of life, running stages, workers, and the newest lines of its trainings.

All of it comes from the run folder, so a run on another machine is seen through its mounted folder; ages are by this
machine's clock.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from rl_lab.common.files import Record
from rl_lab.common.reading import DAMAGE, read_object
from rl_lab.graph.heartbeat import BEAT_S, LIVE_FILE
from rl_lab.graph.run_folder import STAGES_FILE
from rl_lab.reports.metrics import define, is_finite
from rl_lab.reports.numbers import Row, duration, percent
from rl_lab.reports.pages.markup import Cell, Markup, macros, parts
from rl_lab.reports.run import LoadedRun

LIVE = macros("live")
SILENT_BEATS = 6
"""A driver that has not written for so many of its intervals is taken for dead, or its folder for cut off."""
SHOWN = {
    "idle/learner": "Learner idle",
    "idle/rollout": "Engines idle",
    "idle/engines": "Engines idle",
    "idle/simulators": "Simulators idle",
    "mismatch/mean": "Mismatch (nats)",
    "rollouts/staleness": "Staleness (versions)",
    "seconds/step": "Seconds a step",
}
"""Metric -> head of its column."""


def read_signs(path: Path) -> Row:
    """The driver's signs of life; {} where there are none, or none that can be read."""
    try:
        return read_object(path / LIVE_FILE)
    except DAMAGE:
        return {}


def standing(path: Path, signs: Row, statuses: Counter[str], now: float) -> tuple[str, bool]:
    """In a sentence whether the run goes on, and whether that is a reason to look after it."""
    resume = f"continue it with python -m rl_lab.run --resume {path}"
    if signs:
        age = max(now - float(signs.get("time", 0)), 0.0)
        where = f"process {signs.get('pid')} on {signs.get('host')}"
        if age <= SILENT_BEATS * float(signs.get("every_s", BEAT_S)):
            return f"Running: {where} wrote {age:.0f} s ago.", False
        silent = f"No sign of {where} for {duration(age)}: it was killed, or this folder is cut off from it"
        return f"{silent}; {resume}.", True
    if statuses["failed"] or statuses["stopped"] or statuses["running"] or statuses["pending"]:
        return f"Not running, and not finished; {resume}.", True
    return "Finished.", False


def _stages(rows: list[Row], signs: Row) -> list[list[Any]]:
    """A row for each running stage: how far it is, and what it still takes."""
    found = []
    for row in rows:
        if row.get("status") != "running":
            continue
        progress = signs.get("stages", {}).get(row["name"], {})
        done, total, left = progress.get("done"), progress.get("total"), progress.get("left_s")
        bar = parts.meter(100 * done / total, False) if total else ""
        said = f"{done:,} of {total:,}" if total else "begun"
        found.append([row["name"], said, Cell(bar, "metercell"), "" if left is None else f"{duration(left)} left"])
    return found


def _workers(signs: Row) -> list[list[Any]]:
    """A row for each worker of simulators and engines."""
    rows = []
    for one in signs.get("workers", []):
        since = "" if one["seconds"] is None else f" for {duration(one['seconds'])}"
        rows.append([one["name"], f"{one['doing']}{since}", percent(one["idle"]), one["replaced"] or ""])
    return rows


def _trainings(run: LoadedRun, running: list[str]) -> tuple[list[Any], list[list[Any]]]:
    """Head and rows of the newest values of the running trainings, as far as they log any of `SHOWN`."""
    newest: dict[str, Record] = {}
    for line in run.metrics:
        if line.get("node") in running and "alarm" not in line and line.get("step") is not None:
            newest[line["node"]] = line
    names = [name for name in SHOWN if any(is_finite(line.get(name)) for line in newest.values())]
    rows = [[node, line["step"], *(_value(name, line.get(name)) for name in names)] for node, line in newest.items()]
    return ["Training", "Step", *(parts.titled(SHOWN[name], define(name) or "") for name in names)], rows


def _value(name: str, value: Any) -> str:
    if not is_finite(value):
        return ""
    return percent(value) if name.startswith("idle/") else f"{value:.3g}"


def live_section(run: LoadedRun, version: str, now: float, problem: str | None = None) -> Markup:
    """The section; `version` names the state of the report below it, `problem` says why that is an older one."""
    signs = read_signs(run.path)
    try:
        rows = [row for row in read_object(run.path / STAGES_FILE).get("nodes", []) if row.get("kind") != "report"]
    except DAMAGE:
        rows = []
    statuses = Counter(str(row.get("status")) for row in rows)
    sentence, is_alarm = standing(run.path, signs, statuses, now)
    running = [row["name"] for row in rows if row.get("status") == "running"]
    head, trainings = _trainings(run, running)
    counts = [f"{statuses[name]} {name}" for name in ("done", "running", "pending", "skipped", "failed", "stopped")]
    return LIVE.now(
        version=version,
        sentence=sentence,
        is_alarm=is_alarm,
        counts=", ".join(count for count in counts if not count.startswith("0 ")),
        problem=problem,
        stages=_stages(rows, signs),
        workers=_workers(signs),
        head=head,
        trainings=trainings,
    )
