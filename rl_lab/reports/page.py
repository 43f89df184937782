"""Run folder -> `report.html`: one file that needs no network, readable without scripts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rl_lab.files import write_whole
from rl_lab.reports.compare import summarise
from rl_lab.reports.curves import learning_curves, rewards
from rl_lab.reports.failures import failure_modes
from rl_lab.reports.markup import Cell, Markup, details, join, note, section, table, tag
from rl_lab.reports.metrics import Record
from rl_lab.reports.overview import duration, header, incomplete, substitutions, tiles, verdict_box
from rl_lab.reports.pairs import pair_browser
from rl_lab.reports.results import results
from rl_lab.reports.rundir import BASE, RunFolder, label, load_run, parse_node
from rl_lab.reports.verdict import Row

VIDEO_BUDGET_BYTES = 4_500_000
"""Both sides of all embedded videos; the rest stays in the run folder."""
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of every page: whatever a config or an instruction contains, nothing is fetched."""


def document(title: str, body: Sequence[Any], script: str = "", style: str = "") -> str:
    """A whole HTML page with the style sheet of reports, and a script and a style sheet of its own."""
    files = resources.files("rl_lab.reports")
    sheets = [files.joinpath(name).read_text(encoding="utf-8") for name in ("page.css", style) if name]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup("".join(sheets))),
    )
    code = tag("script", Markup(files.joinpath(script).read_text(encoding="utf-8"))) if script else ""
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", *body), code), lang="en") + "\n"


def alarms(run: RunFolder) -> Markup:
    """What training warned about."""
    rows = [(r.get("node"), r.get("step"), r["alarm"]) for r in run.metrics if "alarm" in r]
    if not rows:
        return section("alarms", "Alarms", note("None was raised."))
    return section("alarms", "Alarms", table(("Stage", "Step", "Alarm"), rows))


def stages(run: RunFolder) -> Markup:
    """What ran, what was reused, and how long each took."""
    nodes = [s for s in run.stages if s.get("kind") != "report"]
    if not nodes:
        return section("stages", "Stages", note("No stages.json is in this run folder."))
    longest = max((s.get("seconds") or 0 for s in nodes), default=0) or 1
    rows = []
    for stage in nodes:
        seconds = stage.get("seconds")
        how = (
            ("reused" if stage.get("reused") else "computed") if stage.get("status") == "done" else stage.get("status")
        )
        bar = tag("span", css="meter faint" if stage.get("reused") else "meter", style=_width(seconds, longest))
        took = duration(seconds) if seconds is not None else ""
        rows.append(
            (stage["name"], Cell(how, "left"), took, Cell(bar, "metercell"), tag("code", str(stage.get("hash"))[:12]))
        )
    reading = (
        f"Computed in this run: {duration(run.computed_seconds)}, summed over stages that may have run side by side. "
        "Reused stages show the time that they took when they were computed."
    )
    return section("stages", "Stages", table(("Stage", "", "Time", "", "Hash"), rows, css="numbers"), note(reading))


def _width(seconds: float | None, longest: float) -> str:
    return f"width:{100 * (seconds or 0) / longest:.0f}%"


def _picture(path: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()


def _video(folder: Path, record: Record) -> Markup:
    """One rescued episode, before and after."""
    sides = []
    for side in ("before", "after"):
        method, round_ = parse_node(str(record.get(f"{side}_node", side)))
        method = BASE if method == "sft" else method
        end = str(record.get("before_failure") or "failure").replace("_", " ") if side == "before" else "success"
        text = f"{label(method, round_)}: {end}"
        image = tag("img", src=_picture(folder / record[side]), alt=text, loading="lazy")
        sides.append(tag("figure", image, tag("figcaption", text, css=side)))
    heading = tag("div", f"{record.get('task')}, {record.get('variant')}, seed {record.get('seed')}", css="videohead")
    return tag("div", heading, tag("div", *sides, css="sides"), css="video")


def videos(run: RunFolder, budget: int = VIDEO_BUDGET_BYTES) -> Markup:
    """Episodes that went from failure to success, within the budget of bytes."""
    title, shown, used = "From failure to success", [], 0
    found = [(folder, record) for folder, index in run.videos for record in index]
    for folder, record in found:
        files = [folder / str(record.get(side)) for side in ("before", "after")]
        if not all(file.is_file() and file.parent == folder for file in files):
            run.problems.append(f"a video listed in {folder.name} is missing")
            continue
        used += sum(file.stat().st_size for file in files)
        if used > budget:
            break
        shown.append(_video(folder, record))
    if not found:
        return section("videos", title, note("No videos are in this run folder."))
    text = f"{len(shown)} of {len(found)} recorded episodes; the same scene before and after, on an evaluation seed."
    return section("videos", title, tag("div", *shown, css="videos"), note(text))


def appendix(run: RunFolder) -> Markup:
    """Environment and configuration, as they are in the run folder."""
    environment = {k: v for k, v in run.environment.items() if k != "substitutions"}
    config = yaml.safe_dump(run.config, sort_keys=False, width=100)
    return section(
        "setup",
        "Environment and configuration",
        details("environment.json", tag("pre", json.dumps(environment, indent=2))),
        details("config.yaml", tag("pre", config)),
    )


def build_page(run: RunFolder, summary: Row) -> str:
    """The report of a run as HTML; every part that is missing says so."""
    parts = {
        "Success": results(summary),
        "Failures": failure_modes(run),
        "Rewards": rewards(run),
        "Curves": learning_curves(run),
        "Pairs": pair_browser(run),
        "Videos": videos(run),
        "Alarms": alarms(run),
        "Stages": stages(run),
        "Setup": appendix(run),
    }
    anchors = ("results", "failures", "rewards", "curves", "pairs", "videos", "alarms", "stages", "setup")
    links = [tag("a", name, href=f"#{a}") for (name, part), a in zip(parts.items(), anchors, strict=True) if part]
    # After the parts: they add what they could not read to the problems.
    top = [header(run, summary), substitutions(run), incomplete(run), verdict_box(summary), tiles(summary)]
    return document(f"{run.name}: report", [join(top), tag("nav", *links), *parts.values()], "page.js")


def write_report(run_dir: Path) -> tuple[Row, Path]:
    """Write `summary.json` and `report.html` of a run folder, each whole or not at all; returns summary and page path.

    UserError if there is no run folder; whatever else is missing, the page says so.
    """
    run = load_run(Path(run_dir))
    summary = summarise(run)
    path = run.path / "report.html"
    write_whole(run.path / "summary.json", json.dumps(summary, indent=1) + "\n")
    write_whole(path, build_page(run, summary))
    return summary, path
