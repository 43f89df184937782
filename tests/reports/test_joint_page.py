"""Joint training in a report: what is summed up of its arms, and that a page shows it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from rl_lab.common.files import write_json_lines
from rl_lab.reports.estimates import plain
from rl_lab.reports.examinations import Arm, read_arm
from rl_lab.reports.numbers import find
from rl_lab.reports.pages.joint import joint_verdict, score, times
from rl_lab.reports.pages.markup import typeset
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure
from tests.support.pages import page_of

ARMS = ("together", "sequence", "grpo_alone", "rpro_alone")
RATES = {
    "base": (0.4, 0.3),
    "together": (0.5, 0.6),
    "sequence": (0.5, 0.5),
    "grpo_alone": (0.6, 0.3),
    "rpro_alone": (0.3, 0.7),
}
N = 40


def solved(rate: float, seed: int) -> list[bool]:
    """Of N questions or episodes those whose own number is below the rate."""
    return (np.random.default_rng(seed).permutation(np.linspace(0, 1, N)) < rate).tolist()


def turn(number: int, part: str) -> dict:
    line = {"part": part, "seconds/turn": 2.0, "seconds/learn": 1.5, "idle/learner": 0.25, "idle/engines": 0.5}
    line |= {"idle/simulators": 1.0, "weight_version": number + 1.0, f"{part}/loss": 0.1, "drift/vision": 0.01}
    line |= {"drift/vlm": 0.01 * number, "drift/expert": 0.0}
    if part == "grpo":
        return line | {"cosine/vision": 0.1, "cosine/vlm": -0.2, "cosine/shared": -0.1, "grpo/reward/mean": 0.4}
    return line | {"rpro/steps": 10.0 * number, "rpro/reward/margin": 0.1}


def write_joint_run(folder: Path) -> Path:
    """The folder of a finished joint run, without models."""
    folder.mkdir()
    (folder / "config.yaml").write_text(
        "name: joint\nseed: 3\nexamine: {pass_threshold: 0.5}\neval: {seeds: held_out}\n"
    )
    (folder / "environment.json").write_text(json.dumps({"substitutions": []}))
    nodes, metrics = [], []

    def node(name: str, kind: str, arm: str | None) -> None:
        labels = {"method": arm, "round": None if arm is None else 1}
        nodes.append(
            {"name": name, "kind": kind, "hash": name, "status": "done", "seconds": 10.0, "reused": False} | labels
        )

    node("warm_start", "warm_start", None)
    for name, (language, actions) in RATES.items():
        arm = None if name == "base" else name
        node(f"{name}.examine", "examine", arm)
        node(f"{name}.evaluate", "evaluate", arm)
        for kind in ("examinations", "episodes"):
            (folder / kind / f"{name}.{'examine' if kind == 'examinations' else 'evaluate'}").mkdir(parents=True)
        answer = {"task": "t", "category": "c", "reward_type": "choice", "tokens": [3], "finished": [True]}
        answer |= {"answers": ["a"], "blank": [0.0], "constant": 0.1}
        rows = [answer | {"item": f"q{k}", "rewards": [float(hit)]} for k, hit in enumerate(solved(language, 1))]
        write_json_lines(folder / "examinations" / f"{name}.examine" / "results.jsonl", rows)
        episodes = [
            {"task": "handover_block", "variant": "clean", "seed": 2_000_000 + k, "success": hit, "num_steps": 70}
            | {"step_limit": 120, "stage": 0, "failure": None if hit else "no_progress"}
            for k, hit in enumerate(solved(actions, 2))
        ]
        write_json_lines(folder / "episodes" / f"{name}.evaluate" / "results.jsonl", episodes)
    for arm in ARMS:
        node(f"{arm}.joint", "joint", arm)
        out = folder / "joint" / f"{arm}.joint"
        out.mkdir(parents=True)
        both = {"language": [1.0, 0.0, None], "actions": [1.0, 0.0, 1.0]}
        exams = [
            {"turn": k, "version": k + 1, "batches": k, "steps": 10 * k, "tokens": 5, "scores": both} for k in (0, 2)
        ]
        write_json_lines(out / "exams.jsonl", exams)
        parts = [part for part in ("grpo", "rpro") if not arm.endswith("_alone") or arm.startswith(part)] * 2
        labels = {"node": f"{arm}.joint", "method": arm, "round": 1}
        metrics += [labels | {"step": k, "time": 1.0 * k} | turn(k, part) for k, part in enumerate(parts, start=1)]
    event = {"turn": 2, "skill": "language", "objective": "rpro", "action": "lower", "difference": -0.3, "bound": -0.2}
    event |= {"n": 40, "since": 0, "given_back": 0.25, "text": "guard: <it> fell"}
    write_json_lines(folder / "joint" / "together.joint" / "guard.jsonl", [event])
    (folder / "stages.json").write_text(json.dumps({"store": "s", "nodes": nodes}))
    write_json_lines(folder / "metrics.jsonl", metrics)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_joint_run(tmp_path_factory.mktemp("joint") / "run")


def test_scores_have_the_interval_of_their_kind():
    assert plain(score("actions", [1.0, 0.0, 1.0, 1.0]))["value"] == 0.75
    assert plain(score("language", [1.0, None, 0.5]))["n"] == 2 and score("language", [None]) is None


def test_idle_shares_are_weighted_by_the_seconds_of_the_turns():
    lines = [turn(1, "grpo") | {"seconds/turn": 1.0, "idle/learner": 0.0}]
    lines.append(turn(2, "rpro") | {"seconds/turn": 3.0, "idle/learner": 0.4, "seconds/examine": 7.0})
    found = times(Arm("a.joint", "a", Path(), lines=lines))
    assert found["idle"]["learner"] == pytest.approx(0.3)
    assert (found["batches"], found["blocks"], found["steps"]) == (1, 1, 20.0)
    assert (found["seconds"], found["examining_seconds"]) == (4.0, 7.0)
    assert times(Arm("a.joint", "a", Path()))["idle"] == {"learner": None, "engines": None, "simulators": None}


def test_the_summary_holds_each_skill_together_against_alone_and_sequence(run):
    summary = measure(load_run(run))
    joint = summary["joint"]
    assert joint["arms"] == list(ARMS)
    over_alone = find(joint["interference"], arm="together", over="rpro_alone")["actions"]
    assert over_alone["difference"] == pytest.approx(-0.1, abs=0.03) and over_alone["n"] == N
    over_base = find(joint["interference"], arm="together", over="base")["language"]
    assert over_base["value"] == pytest.approx(0.1, abs=0.03) and over_base["low"] <= over_base["value"]
    assert joint["cosines"]["together"][0] == {"group": "vision", "n": 2, "mean": pytest.approx(0.1), "negative": 0}
    assert joint["drift"]["together"]["vlm"] == pytest.approx(0.04) and "sequence" in joint["drift"]
    assert [event["action"] for event in joint["guard"]["together"]] == ["lower"]
    text = " ".join(joint_verdict(joint, summary["estimates"]))
    assert (
        "together over its own objective alone" in text
        and "The guard acted 1 time." in text
        and "One training seed" in text
    )


def test_the_page_shows_interference_guard_and_times_and_escapes_what_it_quotes(run):
    page = page_of(run)
    assert 'id="joint"' in page and "over GRPO alone" in page and "Time and drift" in page
    assert "guard: &lt;it&gt; fell" in page and "<it>" not in page
    assert page.index('id="joint"') < page.index('id="results"')
    for names in re.findall("<a href=[^>]*>(.*?)</a>", page.split("nav>")[1]), re.findall("<h2>(.*?)</h2>", page):
        assert len(names) > 5 and len(set(names)) == len(names)


def test_intervals_of_the_verdict_have_real_minus_signs():
    assert (
        typeset("better: -0.100 [-0.200, -0.025], p = 0.2.")
        == "better: \u22120.100 [\u22120.200, \u22120.025], p\u00a0=\u00a00.2."
    )


def test_a_run_that_has_just_begun_has_a_page(tmp_path):
    folder = write_joint_run(tmp_path / "run")
    for name in ("joint/together.joint/exams.jsonl", "joint/together.joint/guard.jsonl", "metrics.jsonl"):
        (folder / name).unlink()
    for path in (folder / "episodes").rglob("results.jsonl"):
        path.unlink()
    summary, page = write_report(folder)
    assert summary["joint"]["times"][0]["batches"] == 0 and page.is_file()


def test_a_damaged_file_of_an_arm_is_named(tmp_path):
    folder = write_joint_run(tmp_path / "run")
    (folder / "joint" / "sequence.joint" / "exams.jsonl").write_text('{"turn": 1, "scores": {"language": []}}\n')
    run = load_run(folder)
    assert [arm.name for arm in run.joint] == ["together", "grpo_alone", "rpro_alone"]
    assert any("sequence.joint" in problem and "no scores" in problem for problem in run.problems)


def test_an_arm_without_files_has_nothing(tmp_path):
    assert read_arm("a.joint", "a", tmp_path, []) == Arm("a.joint", "a", tmp_path)
