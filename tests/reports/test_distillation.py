"""What the report says about distillation, from run folders with invented numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml

from rl_lab.reports.estimates import plain
from rl_lab.reports.examinations import Examination
from rl_lab.reports.pages.distillation import distillation_summary, quotient, stage_seconds, student_of
from rl_lab.reports.pages.run import build_page
from rl_lab.reports.run import StageRow, load_run
from rl_lab.reports.summary import measure
from tests.support.run_folders import write_jsonl

NODES = ("questions", "cold_start", "base.examine", "teacher", "teacher.examine", "distill", "distill.examine")
NODES += ("imitate.traces", "imitate", "imitate.examine")
KINDS = {"teacher": "cold_start", "imitate.traces": "traces"}
ITEMS = 60


def results(level: float, seed: int) -> list[dict]:
    """An examination whose items have rewards around a level, each with its own difficulty."""
    hardness = np.random.default_rng(0).normal(0, 0.1, ITEMS)
    noise = np.random.default_rng(seed).normal(0, 0.02, ITEMS)
    rewards = np.clip(level + hardness + noise, 0, 1).tolist()
    return [
        {"item": f"item-{i}", "category": "perception", "rewards": [value], "blank": [0.2], "constant": 0.2}
        for i, value in enumerate(rewards)
    ]


def curve(levels: list[float], tokens: int) -> list[dict]:
    """Short examinations, so many tokens apart."""
    rows = [results(level, 0) for level in levels]
    return [
        {"step": i, "tokens": i * tokens, "rewards": [row["rewards"][0] for row in found]}
        for i, found in enumerate(rows)
    ]


@pytest.fixture
def make(tmp_path):
    """A run folder of a student at 0.4."""

    def write(teacher=0.6, distilled=0.58, imitating=0.5, slow=False):
        path = tmp_path / f"run-{teacher}-{slow}"
        path.mkdir()
        (path / "config.yaml").write_text(yaml.safe_dump({"name": "distillation", "seed": 0}))
        levels = {"base": 0.4, "teacher": teacher, "distill": distilled, "imitate": imitating}
        for seed, (name, level) in enumerate(levels.items()):
            write_jsonl(path / "examinations" / f"{name}.examine" / "results.jsonl", results(level, seed))
        write_jsonl(path / "grpo" / "distill" / "held_out.jsonl", curve([0.4, 0.5, distilled], 1000))
        late = [0.4, 0.45, imitating] if slow else [0.4, 0.45, 0.5, 0.55, 0.57]
        write_jsonl(path / "checkpoints" / "imitate" / "held_out.jsonl", curve(late, 1000))
        stages = [
            {"name": name, "kind": KINDS.get(name, name.split(".")[-1]), "round": None, "seconds": 10.0 + i}
            | {"method": None if i < 3 else name.split(".")[0], "hash": "0", "status": "done", "reused": False}
            for i, name in enumerate(NODES)
        ]
        (path / "stages.json").write_text(json.dumps({"store": "stages", "nodes": stages}))
        return load_run(path)

    return write


def test_gap_and_recovered_share_are_paired_on_items(make):
    row = plain(distillation_summary(make()))
    assert row["gap"]["value"] == pytest.approx(0.2, abs=0.01) and row["gap"]["low"] > 0.18
    assert row["recovered"]["distill"]["value"] == pytest.approx(0.9, abs=0.05)
    assert row["recovered"]["imitate"]["value"] == pytest.approx(0.5, abs=0.05)
    low, high = (row["recovered"]["distill"][end] for end in ("low", "high"))
    assert 0.8 < low < 0.9 < high < 1.0
    assert row["distill_over_imitate"]["low"] > 0.05


def test_the_student_is_the_model_that_the_gate_let_through(make):
    run = make()
    rejected = Examination("rft.1.examine", "rft.1", 1, [])
    own = {"method": "rft.1", "status": "done"}
    gate = StageRow("rft.1.gate", "gate", **own, inputs={"policy_before": "cold_start", "policy_after": "rft.1"})
    fed = {"distill": {"inputs": {"policy": "rft.1.gate"}}}
    run.stages = [replace(stage, **fed.get(stage.name, {})) for stage in run.stages]
    run.stages[3:3] = [StageRow("rft.1", "rft", **own), gate]
    run.examinations.insert(1, rejected)
    for passed, scheme in ((False, "base"), (True, "rft.1")):
        folder = run.path / "checkpoints" / "rft.1.gate"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "gate.json").write_text(json.dumps({"passed": passed}))
        assert student_of(run).scheme == scheme


def test_tokens_to_a_share_of_the_gap_are_read_off_the_curves(make):
    row = plain(distillation_summary(make()))
    tokens = {entry["model"]: {p["share"]: p["tokens"] for p in entry["reached"]} for entry in row["tokens"]}
    assert tokens["distill"][0.5] == pytest.approx(1000, rel=0.05)
    assert tokens["distill"][0.8] == pytest.approx(1750, rel=0.05)
    assert tokens["imitate"][0.8] == pytest.approx(3500, rel=0.1)
    assert any("% of imitate's" in sentence for sentence in row["verdict"])


def test_a_control_that_never_gets_there_is_said_not_to(make):
    row = plain(distillation_summary(make(slow=True)))
    assert row["verdict"][-1].endswith("imitate not within 2,000.")


def test_without_a_gap_of_fifteen_points_nothing_is_said_to_be_recovered(make):
    run = make(teacher=0.5, distilled=0.49)
    summary = measure(run)
    (sentence,) = summary["distillation"]["verdict"]
    assert sentence.startswith("There is no gap to recover: the teacher is ahead of the student by")
    assert "Of the gap" in build_page(run, summary) and "Tokens to 80" not in build_page(run, summary)


def test_the_teachers_stages_are_timed_apart(make):
    seconds = stage_seconds(make())
    assert seconds == {"questions": 10.0, "student": 11 + 12 + 15 + 16, "teacher": 13 + 14, "imitate": 17 + 18 + 19}


def test_the_page_shows_models_and_curves(make):
    run = make()
    page = build_page(run, measure(run))
    for text in ("student, distilled", "student, imitating (control)", "Held-out reward over tokens", "Tokens to 80 %"):
        assert text in page


def test_a_quotient_that_resamples_divide_by_nothing_has_no_end():
    above, below = np.array([[0.1], [0.2]]), np.array([[0.0], [1.0]])
    row = plain(quotient(above, below))
    assert row["value"] == pytest.approx(0.3) and row["high"] is None
    assert plain(quotient(above, np.zeros((2, 1))))["value"] is None


def test_a_run_without_a_teacher_has_no_such_section(make, tmp_path):
    run = make()
    run.examinations = [e for e in run.examinations if e.scheme != "teacher"]
    assert distillation_summary(run) is None
