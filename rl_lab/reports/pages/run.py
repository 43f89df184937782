"""Run folder -> `report.html`: one file that needs no network, readable without scripts.

At its head what is missing, the verdict with a line on what stood in for what, and the numbers that matter most; at its
end the stand-ins, what ran and how long it took, and the settings.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rl_lab.common.files import write_whole
from rl_lab.reports.cards import write_cards
from rl_lab.reports.numbers import Row, duration, percent
from rl_lab.reports.pages.actions import episode_tiles, failure_modes, results, videos
from rl_lab.reports.pages.curves import language_curves, learning_curves, rewards
from rl_lab.reports.pages.distillation import distillation_section
from rl_lab.reports.pages.held_out import held_out_section, held_out_tiles, schemes_section
from rl_lab.reports.pages.imitation import imitation_section, imitation_tiles
from rl_lab.reports.pages.joint import joint_section
from rl_lab.reports.pages.markup import LIVE_POLICY, POLICY, Cell, Markup, Tile, document, parts, typeset
from rl_lab.reports.pages.pairs import pair_browser
from rl_lab.reports.pages.pipeline import pipeline_section, pipeline_tiles, provenance
from rl_lab.reports.pages.reward_models import action_rewards_section, outcome_section
from rl_lab.reports.pages.rollouts import rollouts_section, traces_section
from rl_lab.reports.pages.study import study_link, write_study
from rl_lab.reports.run import LoadedRun, label, load_run
from rl_lab.reports.study import is_privileged
from rl_lab.reports.summary import measure, written

REPORT_FILE = "report.html"


def stages(run: LoadedRun) -> list[list[object]]:
    """A row for each stage: what ran, what was reused, and how long each took."""
    longest = max((stage.seconds or 0 for stage in run.own_stages), default=0) or 1
    rows: list[list[object]] = []
    for stage in run.own_stages:
        how = ("reused" if stage.reused else "computed") if stage.status == "done" else stage.status
        bar = parts.meter(100 * (stage.seconds or 0) / longest, bool(stage.reused))
        took = duration(stage.seconds) if stage.seconds is not None else ""
        rows.append([stage.name, Cell(how, "left"), took, Cell(bar, "metercell"), parts.code(str(stage.hash)[:12])])
    return rows


def setup(run: LoadedRun) -> dict[str, str]:
    """Environment and configuration by file, as they are in the run folder."""
    environment = {k: v for k, v in run.environment.items() if k != "substitutions"}
    config = yaml.safe_dump(run.config, sort_keys=False, width=100)
    return {"environment.json": json.dumps(environment, indent=2), "config.yaml": config}


def world(run: LoadedRun) -> list[str]:
    """What makes the run's world other than the plain one: failing demonstrations, label noise, a hand that shakes."""
    demos, collect, env = (run.config.get(name) or {} for name in ("demos", "collect", "env"))
    modes = [
        f"{percent(share)} {mode.replace('_', ' ')}" for mode, share in (demos.get("modes") or {}).items() if share
    ]
    swapped, tolerance = collect.get("swapped_share") or 0, env.get("success_tolerance", 1)
    noise_m = (collect.get("corrector") or {}).get("noise_m") or 0
    said = {
        f"of the demonstrations {', '.join(modes)}": bool(modes),
        f"{percent(swapped)} of pairs swapped (label noise)": swapped,
        f"corrections with noise of {1000 * noise_m:g} mm": noise_m,
        f"success within {tolerance:g} of the usual distances": tolerance != 1,
    }
    return [text for text, holds in said.items() if holds]


def facts(run: LoadedRun, summary: Row) -> list[str]:
    """Method, seed, commit, processors and time."""
    commit = run.environment.get("commit")
    said = [
        f"arms {', '.join(map(label, summary['joint']['arms']))}" if "joint" in summary else "",
        f"method {label(summary['method'])}" if summary.get("method") and "joint" not in summary else "",
        f"curriculum {', '.join(map(label, summary['schemes']))}"
        if summary.get("schemes") and not {"pipeline", "joint"} & summary.keys()
        else "",
        "a study with the simulator's truth, no pictures" if is_privileged(run) else "",
        *world(run),
        f"training seed {run.seed}",
        f"commit {str(commit)[:12]}" if commit else "",
        "; ".join(run.processors),
        f"stages add up to {duration(summary['computed_seconds'])}",
    ]
    return [fact for fact in said if fact]


NOTHING = Markup("")
SCRIPTS = {"pairs": ("page.js",), "videos": ("films.js",), "rollouts": ("browser.js", "rollouts_page.js")}
"""Scripts by the section that they work for."""
Sections = dict[str, tuple[str, Markup]]
"""Anchor -> name in the navigation and section; empty ones are left out."""


def episode_sections(run: LoadedRun, summary: Row) -> Sections:
    """What a run in an environment shows; every part that is missing says so. Methods of a study are held against each
    other on a page of their own."""
    compared = "study" in summary
    success: Sections = (
        {}
        if compared
        else {
            "results": ("Success", results(summary)),
            "failures": ("Failures", failure_modes(run)),
        }
    )
    return success | {
        "action-rewards": ("Reward models", action_rewards_section(run)),
        "rewards": ("Rewards", rewards(run)),
        "curves": ("Action curves", learning_curves(run)),
        "pairs": ("Pairs", pair_browser(run)),
        "videos": ("Videos", Markup("") if compared else videos(run)),
    }


def language_sections(run: LoadedRun, summary: Row) -> Sections:
    """What a run on questions and answers shows."""
    imitated = summary.get("imitation", {})
    chain = {"pipeline": ("Chain", pipeline_section(summary["pipeline"]))} if "pipeline" in summary else {}
    return chain | {
        "distillation": ("Distillation", distillation_section(run, summary.get("distillation"))),
        "imitation": ("Sources", imitation_section(run, imitated)),
        "held-out": ("Held-out", held_out_section(summary) if summary["held_out"] or not imitated else NOTHING),
        "schemes": ("Training", schemes_section(run)),
        "training": ("Language curves", language_curves(run)),
        "traces": ("Traces", traces_section(run)),
        "rollouts": ("Rollouts", rollouts_section(run)),
        "reward-models": ("Reward model", outcome_section(run)),
    }


def _tiles(run: LoadedRun, summary: Row) -> list[list[Tile]]:
    """A line of numbers for each skill."""
    shown = [episode_tiles(summary)] if run.on_episodes and "study" not in summary else []
    if "held_out" in summary:
        shown.append(pipeline_tiles(summary["pipeline"]) if "pipeline" in summary else held_out_tiles(summary))
        shown += [imitation_tiles(summary["imitation"])] if "imitation" in summary else []
    return shown


def build_page(run: LoadedRun, summary: Row, now: Markup = NOTHING, every_s: float | None = None) -> str:
    """The report of a run as HTML; with what it does `now`, a page that is brought up to date every so many seconds."""
    sections: Sections = {"joint": ("Interference", joint_section(run.joint, summary))}
    if "study" in summary:
        sections |= {"study": ("Map", study_link())}
    is_one_world = "study" not in summary or len(summary["study"]["details"]) == 1
    if run.on_episodes and is_one_world:
        sections |= episode_sections(run, summary)
    if run.on_language and is_one_world:
        sections |= language_sections(run, summary)
    shown = {anchor: part for anchor, part in sections.items() if part[1]}
    unfinished = [f"Not finished: {', '.join(run.unfinished)}."] if run.unfinished and not now else []
    live = {"data-live": json.dumps({"every": every_s, "scripts": SCRIPTS})} if now else {}
    stand_ins = run.environment.get("substitutions")
    return document(
        "report",
        policy=LIVE_POLICY if now else POLICY,
        live=live,
        now=now,
        run=run,
        summary=summary,
        facts=facts(run, summary),
        substitutions=stand_ins,
        stand_ins=[(row["used"], row["wanted"], row["why"]) for row in stand_ins or []],
        incomplete=unfinished + run.problems,  # after the sections: they add what they could not read to the problems
        verdict=map(typeset, summary["verdict"]),
        tiles=_tiles(run, summary),
        sections=shown,
        alarms=[(r.get("node"), r.get("step"), r["alarm"]) for r in run.metrics if "alarm" in r],
        stages=stages(run),
        computed=duration(run.computed_seconds),
        setup=setup(run),
        styles=["browser.css"] if run.on_language or now else [],
        scripts=(["watch.js"] if now else []) + [script for anchor in shown for script in SCRIPTS.get(anchor, ())],
    )


def write_report(run_dir: Path) -> tuple[Row, Path]:
    """Write `summary.json` and `report.html` of a run folder, each whole or not at all; returns summary and page path.

    Of a study also `study.json` and `study.html`, of a pipeline
    `provenance.json`; of every model and all data a card.

    UserError if there is no run folder; whatever else is missing or damaged, the page and `problems` say so.
    """
    run = load_run(Path(run_dir))
    summary = measure(run)
    path = write_pages(run, summary)
    return written(summary), path


def write_pages(run: LoadedRun, summary: Row) -> Path:
    """The same of what was measured already; returns the path of the page."""
    page = build_page(run, summary)  # before anything is written: it may refuse
    write_cards(run, summary.get("estimates", []))
    summary["problems"] = run.problems
    path = run.path / REPORT_FILE
    write_whole(run.path / "summary.json", json.dumps(written(summary), indent=1) + "\n")
    if "pipeline" in summary:
        write_whole(run.path / "provenance.json", json.dumps(provenance(run), indent=1) + "\n")
    write_whole(path, page)
    if "study" in summary:
        write_study(run, summary["study"])
    return path
