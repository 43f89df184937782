"""RoboTwin as the backend of runs: what is said before one starts, and whole runs on the fake with crash and hang."""

import json
import re
import shutil
import subprocess
import sys

import pytest

from envs.robotwin import layout
from rl_lab import doctor
from rl_lab.common.errors import UserError
from rl_lab.config.robotwin import backend_line, check_robotwin, examine
from rl_lab.graph.record import describe
from rl_lab.run import main
from rl_lab.stages.kinds import KINDS, load_config
from tests.robotwin.fake import CONFIG_FOLDERS, make_checkout
from tests.support.refusals import refusal

RUN = """
name: fake_robotwin
env: {backend: auto, tasks: [push_block]}
demos: {episodes: 3}
sft: {steps: 10, warmup: 2, batch_size: 8}
controls: []
collect: {pairs: 2, max_episodes: 20, rollback_steps: [8, 10], correction_limit: 60}
optimise: {steps: 4, warmup: 1, batch_size: 8}
stages: [demos, sft, evaluate, {repeat: 1, of: [collect, optimise, evaluate]}]
workers: {simulation: 2, rollout: 0}
eval: {episodes: 3, seeds: development}
wandb: disabled
"""


@pytest.fixture(autouse=True)
def forget():
    yield
    examine.cache_clear()


@pytest.fixture
def named(checkout, monkeypatch):
    """The environment names the fake."""
    monkeypatch.setenv("ROBOTWIN_ROOT", str(checkout))
    monkeypatch.setenv("ROBOTWIN_PYTHON", sys.executable)
    return checkout


@pytest.fixture
def path(tmp_path):
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def complaint(path, *overrides):
    return refusal(check_robotwin, load_config(path, overrides))


def test_a_run_that_fits_says_where_it_runs_and_what_it_found(named, path):
    config = load_config(path)
    check_robotwin(config)
    assert backend_line(config) == f"RoboTwin at {named}"
    facts = describe(config)
    assert facts["backend"] == "robotwin" and facts["robotwin"]["layout"] in CONFIG_FOLDERS
    assert facts["robotwin"]["versions"]["python"] == sys.version.split()[0]
    assert "RoboTwin" not in [row["wanted"] for row in facts["substitutions"]]
    (finding,) = doctor.check_robotwin()
    assert finding.level == "ok" and "tasks; python" in finding.what


def test_without_robotwin_it_says_so(monkeypatch, path):
    monkeypatch.setenv("ROBOTWIN_ROOT", "")
    config = load_config(path, ["env.tasks=[lift_pot]"])
    assert backend_line(config) == "the embedded tabletop (ROBOTWIN_ROOT is not set)"
    (finding,) = doctor.check_robotwin()
    assert finding.level == "note" and "tabletop" in finding.what


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["env.tasks=[push_blok]"], ("'push_blok'", "did you mean push_block?")),
        (["env.variants=[clean]"], ("'clean'", "task configs", "did you mean demo_clean?", "robotwin: {variants:")),
        (["demos.action_noise_m=0.01"], ("action_noise_m", "fixed plan")),
    ],
)
def test_what_does_not_fit_is_one_line(named, path, overrides, parts):
    text = complaint(path, *overrides)
    assert all(part in text for part in parts), text


def test_a_checkout_that_is_missing_or_unknown_is_one_line(named, path, monkeypatch):
    (named / "envs" / "_base_task.py").unlink()
    assert "unknown RoboTwin layout" in complaint(path)
    monkeypatch.setenv("ROBOTWIN_ROOT", str(named / "nowhere"))
    assert "is not a folder; clone RoboTwin there" in complaint(path)
    monkeypatch.delenv("ROBOTWIN_PYTHON")
    assert "ROBOTWIN_PYTHON not set; export" in complaint(path)


def test_a_wrong_interpreter_and_a_task_that_does_not_load_are_one_line(named, path, monkeypatch, tmp_path):
    (named / "envs" / "push_block.py").write_text("import sapien_that_is_not_installed\n")
    assert "RoboTwin cannot load push_block (demo_clean)" in complaint(path)
    assert complaint(path).count("sapien_that_is_not_installed") == 1
    assert "No module named 'sapien_that_is_not_installed'" in complaint(path)
    monkeypatch.setenv("ROBOTWIN_PYTHON", "no-such-python")
    assert "no-such-python is not an interpreter" in complaint(path)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'numpy'\"; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("ROBOTWIN_PYTHON", str(python))
    assert "exit code 1 during hello. (ModuleNotFoundError: No module named 'numpy')" in complaint(path)
    (finding,) = doctor.check_robotwin()
    assert finding.level == "bad" and "numpy" in finding.what


ASSETS = {
    "assets/embodiments/aloha-agilex": [],
    "assets/background_texture": ["env.variants=[demo_randomized]"],
    "assets/objects": ["env.tasks=[bell_block]"],
}


@pytest.mark.parametrize("folder", ASSETS)
def test_assets_that_were_not_downloaded_are_one_line_before_a_run(named, path, monkeypatch, folder):
    (named / "envs/bell_block.py").write_text((named / "envs/push_block.py").read_text().replace("push", "bell"))
    with (named / "envs/bell_block.py").open("a") as file:
        file.write("    modelname, other = '050_bell', \"048_stapler\"\n")
    (named / "assets/objects/048_stapler").mkdir()
    check_robotwin(load_config(path, ASSETS[folder]))
    shutil.rmtree(named / folder)
    examine.cache_clear()
    script = {"classic": "script", "2026-07": "scripts"}[layout.detect(str(named)).name]
    line = f"{named} lacks {folder} of RoboTwin's assets; fetch them with: bash {script}/_download_assets.sh (there)"
    assert line in complaint(path, *ASSETS[folder])
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError, match=r"lacks assets/\w+"):
        main([str(path), *ASSETS[folder], "--dry-run"])
    shutil.rmtree(named / "assets")
    findings = doctor.check_robotwin()
    assert next(findings).level == "ok"
    (finding,) = findings
    assert finding.what.endswith(
        "lacks assets/background_texture, assets/embodiments, assets/objects of RoboTwin's assets"
    )
    assert finding.level == "bad" and finding.mend.startswith("fetch them with: bash script")


def test_a_run_on_questions_says_that_no_simulator_of_episodes_runs(named, tmp_path):
    (tmp_path / "questions.yaml").write_text("name: q\nstages: [questions, cold_start]\nwandb: disabled\n")
    config = load_config(tmp_path / "questions.yaml")
    assert config.env.backend == "robotwin" and describe(config)["backend"] == "none"


def test_another_checkout_gives_other_stages(named, path):
    config = load_config(path)
    before = {kind: KINDS[kind].params(config) for kind in ("demos", "evaluate", "sft")}
    with (named / "envs" / "push_block.py").open("a") as file:
        file.write("# changed\n")
    after = {kind: KINDS[kind].params(config) for kind in before}
    assert [kind for kind in before if before[kind] != after[kind]] == ["demos", "evaluate"]


def test_a_run_that_cannot_start_leaves_nothing(named, path, monkeypatch):
    monkeypatch.chdir(path.parent)
    with pytest.raises(UserError, match="'fold'"):
        main([str(path), "env.tasks=[fold]", "--run-dir", "out"])
    assert sorted(item.name for item in path.parent.iterdir()) == ["RoboTwin", "run.yaml"]


def test_a_dry_run_names_the_simulator(named, path, monkeypatch, capsys):
    monkeypatch.chdir(path.parent)
    assert main([str(path), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert f"simulator: RoboTwin at {named}" in said.err
    rows = {line.split()[0]: line for line in (said.out + said.err).splitlines() if line.startswith("  ")}
    assert all(rows[name].endswith("not measured") for name in ("demos", "base.evaluate", "rpro.1.collect"))
    assert "min" in rows["sft"] and "nobody has measured" in rows["about"]


@pytest.mark.slow
@pytest.mark.parametrize("layout", CONFIG_FOLDERS)
def test_a_whole_run_survives_a_crash_and_a_hang(layout, path, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOTWIN_ROOT", str(make_checkout(tmp_path / "RoboTwin", layout)))
    monkeypatch.setenv("ROBOTWIN_PYTHON", sys.executable)
    settings = ["env.tasks=[trouble_block]", "workers.robotwin_step_timeout_s=10"]
    command = [sys.executable, "-m", "rl_lab.run", str(path), *settings, "--run-dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert f"simulator: RoboTwin at {tmp_path}" in done.stderr
    for trouble in ("SIGSEGV", "within 10 s"):
        assert re.search(f"simulation-. lost its simulator .*{trouble}.*issued again", done.stderr), done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out/pairs/rpro.1.collect/index.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(row["seed"] < 100_000 for row in rows)
    for node in ("base.evaluate", "rpro.1.evaluate"):
        lines = (tmp_path / f"out/episodes/{node}/results.jsonl").read_text().splitlines()
        assert [json.loads(line)["seed"] for line in lines] == [150_000, 150_001, 150_002]
    assert "robotwin" in json.loads((tmp_path / "out/environment.json").read_text())
    assert (tmp_path / "out/report.html").is_file()
