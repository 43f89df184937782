"""Run folder -> `report.html`: one file that needs no network, readable without scripts."""

from __future__ import annotations

import json
from pathlib import Path

from rl_lab.files import write_whole
from rl_lab.reports.action_rewards import action_rewards_section
from rl_lab.reports.appendix import setup, stages
from rl_lab.reports.curves import learning_curves, rewards
from rl_lab.reports.distillation_page import distillation_section
from rl_lab.reports.document import document
from rl_lab.reports.failures import failure_modes
from rl_lab.reports.held_out_page import held_out_section, held_out_tiles
from rl_lab.reports.joint_page import joint_section
from rl_lab.reports.language_curves import language_curves
from rl_lab.reports.markup import Markup, Tile
from rl_lab.reports.numbers import Row, duration
from rl_lab.reports.outcome_card import outcome_section
from rl_lab.reports.overview import facts, incomplete, substitutions, tiles, typeset
from rl_lab.reports.pairs import pair_browser
from rl_lab.reports.pipeline import provenance
from rl_lab.reports.pipeline_page import pipeline_section, pipeline_tiles
from rl_lab.reports.results import results
from rl_lab.reports.rft_page import rft_section
from rl_lab.reports.rollouts_page import rollouts_section
from rl_lab.reports.rundir import RunFolder, load_run
from rl_lab.reports.schemes_page import schemes_section
from rl_lab.reports.summary import measure, written
from rl_lab.reports.sweep_page import sweep_link, write_sweep
from rl_lab.reports.videos import videos

SCRIPTS = {"pairs": ("page.js",), "rollouts": ("browser.js", "rollouts_page.js")}
"""Scripts by the section that they work for."""
PROVENANCE_FILE = "provenance.json"
Sections = dict[str, tuple[str, Markup]]
"""Anchor -> name in the navigation and section; empty ones are left out."""


def episode_sections(run: RunFolder, summary: Row) -> Sections:
    """What a run in an environment shows; every part that is missing says so. Variants of a sweep are held against each
    other on a page of their own."""
    success: Sections = {
        "results": ("Success", results(summary)),
        "failures": ("Failures", failure_modes(run)),
    }
    compared = "sweep" in summary
    return ({} if compared else success) | {
        "action-rewards": ("Reward models", action_rewards_section(run)),
        "rewards": ("Rewards", rewards(run)),
        "curves": ("Curves", learning_curves(run)),
        "pairs": ("Pairs", pair_browser(run)),
        "videos": ("Videos", Markup("") if compared else videos(run)),
    }


def language_sections(run: RunFolder, summary: Row) -> Sections:
    """What a run on questions and answers shows."""
    chain = {"pipeline": ("Chain", pipeline_section(summary["pipeline"]))} if "pipeline" in summary else {}
    return chain | {
        "distillation": ("Distillation", distillation_section(run, summary.get("distillation"))),
        "held-out": ("Held-out", held_out_section(summary)),
        "schemes": ("Training", schemes_section(run, summary)),
        "training": ("Curves", language_curves(run)),
        "traces": ("Traces", rft_section(run)),
        "rollouts": ("Rollouts", rollouts_section(run)),
        "reward-models": ("Reward model", outcome_section(run)),
    }


def _tiles(run: RunFolder, summary: Row) -> list[list[Tile]]:
    """A line of numbers for each skill."""
    shown = [tiles(run, summary)] if run.on_episodes else []
    if run.on_language:
        shown.append(pipeline_tiles(summary["pipeline"]) if "pipeline" in summary else held_out_tiles(summary))
    return shown


def build_page(run: RunFolder, summary: Row) -> str:
    """The report of a run as HTML."""
    sections: Sections = {"joint": ("Interference", joint_section(run.joint, summary))}
    if "sweep" in summary:
        sections |= {"sweep": ("Sweep", sweep_link())}
    if run.on_episodes:
        sections |= episode_sections(run, summary)
    if run.on_language:
        sections |= language_sections(run, summary)
    shown = {anchor: part for anchor, part in sections.items() if part[1]}
    stand_ins = substitutions(run)
    return document(
        "report",
        run=run,
        summary=summary,
        facts=facts(run, summary),
        substitutions=stand_ins,
        stand_ins=[
            (row.get("used"), row.get("wanted"), row.get("why")) for row in stand_ins or [] if isinstance(row, dict)
        ],
        incomplete=incomplete(run),  # after the sections: they add what they could not read to the problems
        verdict=map(typeset, summary["verdict"]),
        tiles=_tiles(run, summary),
        sections=shown,
        alarms=[(r.get("node"), r.get("step"), r["alarm"]) for r in run.metrics if "alarm" in r],
        stages=stages(run),
        computed=duration(run.computed_seconds),
        setup=setup(run),
        styles=["browser.css"] if run.on_language else [],
        scripts=[script for anchor in shown for script in SCRIPTS.get(anchor, ())],
    )


def write_report(run_dir: Path) -> tuple[Row, Path]:
    """Write `summary.json` and `report.html` of a run folder, each whole or not at all; returns summary and page path.

    Of a sweep also `sweep.json` and `sweep.html`, of a pipeline `provenance.json`.

    UserError if there is no run folder; whatever else is missing or damaged, the page and `problems` say so.
    """
    run = load_run(Path(run_dir))
    summary = measure(run)
    path = write_pages(run, summary)
    return written(summary), path


def write_pages(run: RunFolder, summary: Row) -> Path:
    """The same of what was measured already; returns the path of the page."""
    page = build_page(run, summary)  # before anything is written: it may refuse
    summary["problems"] = run.problems
    path = run.path / "report.html"
    write_whole(run.path / "summary.json", json.dumps(written(summary), indent=1) + "\n")
    if "pipeline" in summary:
        write_whole(run.path / PROVENANCE_FILE, json.dumps(provenance(run), indent=1) + "\n")
    write_whole(path, page)
    if "sweep" in summary:
        write_sweep(run, summary["sweep"])
    return path
