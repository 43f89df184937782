"""Pipelines run to their end: what gates let through, branches, skipped stages, reuse, and resume at any point."""

import json

import pytest

from rl_lab.graph.executor import StageError
from rl_lab.graph.run_folder import RunFolder
from rl_lab.stages.kinds import expand
from tests.support.experiments import executor, run, statuses
from tests.support.pipelines import FRONT, WHOLE, FakeModels, pipeline

BRANCH = f"[{FRONT}, grpo, examine, {{gate: {{otherwise: [rft, examine]}}}}, teacher, distill]"
STOP = f"[{FRONT}, grpo, examine, {{gate: {{otherwise: stop}}}}, rft, examine, teacher, distill]"


def model(folder: RunFolder, node: str) -> str:
    """Name of the training whose model a node's output holds."""
    place = "grpo" if (folder.path / "grpo" / node).is_dir() else "checkpoints"
    return json.loads((folder.path / place / node / "config.json").read_text())["name"]


def test_a_model_that_rose_goes_on_and_one_that_did_not_gives_way_to_the_one_before(tmp_path):
    models = FakeModels(grpo__1=0.2, rft__1=-0.1, grpo__2=0.0, rft__2=0.3)
    folder = run(pipeline(tmp_path, WHOLE), models, tmp_path / "run")
    assert set(statuses(folder).values()) == {"done"}
    chosen = {name: model(folder, name) for name in ("grpo.1.gate", "rft.1.gate", "grpo.2.gate", "rft.2.gate")}
    assert chosen == {
        **{"grpo.1.gate": "grpo.1", "rft.1.gate": "grpo.1", "grpo.2.gate": "grpo.1"},
        **{"rft.2.gate": "rft.2"},
    }
    decision = json.loads((folder.path / "checkpoints" / "rft.1.gate" / "gate.json").read_text())
    assert not decision["passed"] and decision["difference"] == pytest.approx(-0.1)
    assert (folder.path / "checkpoints" / "rft.1.gate" / "model.safetensors").read_text() == "grpo.1"
    assert not (folder.path / "checkpoints" / "grpo.1.gate" / "pool.sqlite").exists()


def test_a_gate_that_stops_ends_the_run_well_and_skips_what_follows(tmp_path, capsys):
    models = FakeModels(grpo=-0.1)
    folder = run(pipeline(tmp_path, STOP), models, tmp_path / "run")
    found = statuses(folder)
    assert {name for name, status in found.items() if status == "skipped"} == {
        *("rft.traces", "rft", "rft.examine", "teacher", "distill")
    }
    assert found["report"] == "done" and model(folder, "grpo.gate") == "cold_start"
    assert "rft" not in models.ran and "teacher" not in models.ran
    assert "rft" not in models.seen["report"] and "grpo.gate" in models.seen["report"]
    said = capsys.readouterr().err
    assert "grpo.gate: not passed" in said and "the run stops with the model before" in said
    assert "rft.traces: skipped, because grpo.gate was not passed" in said
    assert not (folder.path / "work").exists()


def test_a_gate_that_may_stop_lets_a_better_model_pass(tmp_path):
    folder = run(pipeline(tmp_path, STOP), FakeModels(grpo=0.1), tmp_path / "run")
    assert set(statuses(folder).values()) == {"done"}


def test_the_other_branch_runs_from_the_model_before_and_its_model_goes_on(tmp_path):
    models = FakeModels(grpo=-0.1, grpo__else__rft=0.2)
    folder = run(pipeline(tmp_path, BRANCH), models, tmp_path / "run")
    assert set(statuses(folder).values()) == {"done"}
    assert models.seen["grpo.join"] == ("failed", "failed_examined", "passed")
    assert model(folder, "grpo.join") == "grpo.else.rft"
    assert json.loads((folder.path / "grpo" / "distill" / "config.json").read_text())["skill"] == pytest.approx(0.5)


def test_where_the_gate_passes_the_other_branch_is_skipped_and_the_join_takes_the_new_model(tmp_path):
    models = FakeModels(grpo=0.1)
    folder = run(pipeline(tmp_path, BRANCH), models, tmp_path / "run")
    skipped = {name for name, status in statuses(folder).items() if status == "skipped"}
    assert skipped == {"grpo.else.rft.traces", "grpo.else.rft", "grpo.else.rft.examine"}
    assert models.seen["grpo.join"] == ("passed",) and model(folder, "grpo.join") == "grpo"
    assert json.loads((folder.path / "grpo" / "distill" / "config.json").read_text())["skill"] == pytest.approx(0.4)


def test_a_join_behind_a_gate_that_stopped_the_run_is_skipped_too(tmp_path):
    stages = (
        f"[{FRONT}, grpo, examine, {{gate: {{otherwise: stop}}}}, "
        "rft, examine, {gate: {otherwise: [grpo, examine]}}, teacher, distill]"
    )
    folder = run(pipeline(tmp_path, stages), FakeModels(grpo=-0.1), tmp_path / "run")
    found = statuses(folder)
    assert found["rft.gate"] == found["rft.join"] == found["rft.else.grpo"] == found["distill"] == "skipped"
    assert found["report"] == "done"


def test_a_gate_behind_a_join_compares_with_the_model_that_the_join_took(tmp_path):
    stages = f"[{FRONT}, {{repeat: 2, of: [grpo, examine, {{gate: {{otherwise: [rft, examine]}}}}]}}]"
    models = FakeModels(grpo__1=-0.1, grpo__1__else__rft=0.2, grpo__2=0.1)
    folder = run(pipeline(tmp_path, stages), models, tmp_path / "run")
    decision = json.loads((folder.path / "checkpoints" / "grpo.2.gate" / "gate.json").read_text())
    assert (decision["before"], decision["after"]) == (pytest.approx(0.5095), pytest.approx(0.6095))


def test_another_tail_reuses_the_front_and_its_decisions(tmp_path):
    gains = {"grpo__1": 0.2, "rft__1": -0.1}
    run(pipeline(tmp_path, WHOLE), FakeModels(**gains), tmp_path / "a")
    tail = FakeModels(**gains)
    config = pipeline(tmp_path, WHOLE, "distill.steps=77")
    folder = run(config, tail, tmp_path / "b")
    assert sorted(tail.ran) == ["distill", "distill.examine"]
    assert model(folder, "rft.1.gate") == "grpo.1"
    again = FakeModels(**gains)
    run(config, again, tmp_path / "c")
    assert again.ran == []


@pytest.mark.parametrize(("stages", "gain"), [(WHOLE, 0.1), (BRANCH, -0.1), (STOP, -0.1)])
def test_a_run_that_fails_at_any_stage_and_is_resumed_ends_like_the_unbroken_one(tmp_path, stages, gain):
    gains = {name: gain for name in ("grpo", "grpo__1", "rft__1")} | {"rft__2": 0.2}
    config = pipeline(tmp_path, stages)
    whole = run(config, FakeModels(**gains), tmp_path / "whole" / "run")
    ran = [name for name, status in statuses(whole).items() if status == "done" and name != "report"]
    folder = RunFolder.create(tmp_path / "broken", config.name)
    store = tmp_path / "store"
    for name in ran:
        if name != ran[0] and statuses(folder)[name] == "done":
            continue  # it ran beside the one that failed
        models = FakeModels(**gains)
        models.fail_at = name
        broken = executor(config, models, folder, store)
        broken.continue_from(folder.read_stages()[1])
        with pytest.raises(StageError, match=name.replace(".", r"\.")):
            broken.run()
    last = executor(config, FakeModels(**gains), folder, store)
    last.continue_from(folder.read_stages()[1])
    last.run()
    assert statuses(folder) == statuses(whole)
    files = [sorted(p.relative_to(f.path) for p in f.path.rglob("*.json")) for f in (folder, whole)]
    assert files[0] == files[1]
    for file in files[0]:
        if file.name != "stages.json":
            assert (folder.path / file).read_bytes() == (whole.path / file).read_bytes()


def test_rows_of_the_run_say_which_model_a_stage_is_of(tmp_path):
    config = pipeline(tmp_path, WHOLE)
    rows = {row["name"]: row for row in run(config, FakeModels(), tmp_path / "run").read_stages()[1]}
    assert (rows["rft.2.examine"]["method"], rows["rft.2.examine"]["round"]) == ("rft.2", 2)
    assert list(rows) == [node.name for node in expand(config)]
