import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl_lab import pool, run
from rl_lab.common.errors import RunError, UserError, run_command
from rl_lab.eval import DEFAULTS
from rl_lab.stages import preflight
from rl_lab.stages.kinds import load_config
from rl_lab.workers import connection
from tests.support.experiments import EXPERIMENTS, RUNS, FakeStages, main, write_small

ROOT = Path(__file__).resolve().parents[2]
NEEDS_FILES = {
    "frontier_rl_paper": "questions.train_file: there is no",
    "flowpro_hyvla": "model.path: checkpoints/hyvla-robotwin is no checkpoint folder",
    "sft_robotwin": "demos.files: there is no data/handover_block/demo_clean",
}
"""Experiments on files that only their user has, and what is said without them."""
SLOW_RUN = """
import sys
from contextlib import nullcontext
from rl_lab.common.errors import run_command
from rl_lab.run import main
from tests.support.experiments import FakeStages
stages = FakeStages(steps=int(sys.argv.pop(1)))
run_command(lambda: main(sys.argv[1:], lambda config: nullcontext(stages.functions())))
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """An empty current directory with the small experiment in it."""
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    return tmp_path


def written(home: Path) -> list[str]:
    return sorted(path.name for path in home.iterdir() if path.name != "small.yaml")


def assert_refused(capsys, message: str, *arguments: str) -> str:
    """One line that says the message, exit code 2, nothing printed; the line."""
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main(*arguments))
    captured = capsys.readouterr()
    assert exit_.value.code == 2
    assert captured.err.count("\n") == 1 and captured.err.startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    return captured.err


def test_the_first_and_the_last_line_printed_is_the_run_folder(home, capsys):
    assert main("small.yaml") == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"runs/small-\d{8}-\d{6}", lines[0])
    assert lines[-1] == lines[0]
    folder = home / lines[0]
    assert {"config.yaml", "environment.json", "stages.json", "metrics.jsonl"} <= {p.name for p in folder.iterdir()}


def test_runs_started_in_the_same_second_get_folders_of_their_own(home, capsys, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    for _ in range(3):
        assert main("small.yaml", "stages=[demos]") == 0
    assert len(set(capsys.readouterr().out.split())) == 3


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_a_dry_run_of_every_experiment_prints_config_plan_and_cost_and_writes_nothing(home, capsys, monkeypatch, path):
    if path.stem in NEEDS_FILES:
        pytest.skip("it needs a checkpoint and questions of the user's own")
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    assert main(str(path), "--dry-run") == 0
    text = capsys.readouterr().out
    assert f"name: {path.stem}" in text
    assert re.search(r"(sft|cold_start|warm_start) +[0-9a-f]{12} +\d+ steps +[\d.]+ min", text)
    assert "min on two CPU cores" in text
    assert written(home) == []


def test_a_file_for_evaluations_is_refused_with_the_command_that_takes_it(home, capsys):
    path = EXPERIMENTS / "eval_robotwin.yaml"
    assert_refused(capsys, "stages is missing; a file without them is for python -m rl_lab.eval CKPT FILE", str(path))
    assert written(home) == []
    config = load_config(path, defaults=DEFAULTS)
    assert (config.name, config.eval.execute, config.env.tasks) == ("eval_robotwin", 7, ("handover_block",))


@pytest.mark.parametrize("name", sorted(NEEDS_FILES))
def test_an_experiment_on_files_that_are_not_there_names_the_first(home, monkeypatch, name):
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    with pytest.raises(UserError, match=NEEDS_FILES[name]):
        main(str(EXPERIMENTS / f"{name}.yaml"), "--dry-run")
    assert written(home) == []


def test_a_plan_shows_only_what_the_file_changed(home, capsys):
    assert main("small.yaml", "--plan") == 0
    text = capsys.readouterr().out
    assert "sft: {steps: 10, warmup: 2}" in text and "min on two CPU cores" in text
    assert "lr:" not in text and "questions" not in text
    assert written(home) == []


def test_a_plan_for_machines_that_are_not_there_names_them_and_writes_nothing(home, capsys):
    block = "placement={device: gpu, learner: {ranks: 8, gpus: 1}, simulators: {cpus: 4}}"
    assert main("small.yaml", "--plan", "--cluster", "2x8x32", block) == 0
    told = capsys.readouterr()
    assert "reserved: 8 of 16 GPU of a cluster of 2 x (32 CPU, 8 GPU)" in told.out and "error" not in told.err
    assert "min on two CPU cores" in told.out and written(home) == []


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ("1x4", "asks for 8 x (0.5 CPU, 1 GPU) for learner (PACK)"),
        ("3x0", "placement is gpu but the cluster has none"),
    ],
)
def test_a_plan_that_the_declared_machines_cannot_hold_ends_with_what_is_lacking(home, capsys, cluster, said):
    block = "placement={device: gpu, learner: {ranks: 8, gpus: 1}}"
    assert main("small.yaml", "--plan", "--cluster", cluster, block) == 2
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0] and "min on two CPU cores" in told.out


def test_a_password_in_the_judges_address_is_refused_and_reaches_no_output(home, capsys):
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: main("small.yaml", "rewards={judge: {model: m, base_url: 'http://me:hunter2@h/v1'}}"))
    told = capsys.readouterr()
    assert exit_.value.code == 2 and "base_url: $NAME" in told.err and "hunter2" not in told.err + told.out
    assert written(home) == []


def test_a_ray_that_does_not_start_is_one_line_and_the_run_can_be_resumed(home, capsys, monkeypatch):
    def start(*arguments, **options):
        raise RunError("Ray does not start: the node timed out")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(connection, "start", start)
    assert run.main(["small.yaml", "--run-dir", "run"]) == 1
    told = capsys.readouterr()
    errors = [line for line in told.err.splitlines() if not line.startswith(("environment:", "simulator:", "warning:"))]
    assert errors == [
        "error: Ray does not start: the node timed out",
        "continue with: python -m rl_lab.run --resume run",
    ]
    assert told.out.split() == ["run", "run"]
    assert main("--resume", "run") == 0


def test_a_dry_run_says_what_would_be_reused(home, capsys):
    main("small.yaml", "stages=[demos]")
    main("small.yaml", "--dry-run")
    reused = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("reused")]
    assert reused == ["demos"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "which experiment"),
        (("nowhere.yaml",), "no such file"),
        (("small.yaml", "sft.stepz=1"), "did you mean sft.steps"),
        (("small.yaml", "--bogus"), "--bogus"),
        (("small.yaml", "model.preset=small"), "set env.image_size=128, or model.image_size=64"),
        (("small.yaml", "model.image_size=100"), "image size 100x100 must be square and a multiple of 32"),
        (("small.yaml", "model.path=nowhere"), "no checkpoint folder"),
        (("small.yaml", "eval.execute=9"), "chunk_size is 8"),
        (("small.yaml", "collect.rollback_steps=[7, 9]"), "start at 8 or more"),
        (("small.yaml", "placement=gpu"), "torch sees none"),
        (("small.yaml", "--run-dir", "small.yaml"), "is a file; give a new folder"),
        (("small.yaml", "--run-dir", "."), "already used"),
        (("small.yaml", "--run-dir", ".", "--plan"), "already used"),
        (("small.yaml", "--run-dir", "/dev/null/run"), "writable"),
        (("small.yaml", "--run-dir", "small.yaml/run"), "writable"),
        (("small.yaml", "--run-dir", "/proc/run"), "writable"),
        (("small.yaml", "--run-dir", "new/" + "a" * 300), "is longer than 255 bytes"),
        (("small.yaml", "--run-dir", ""), "the path is empty"),
        (("small.yaml", "--run-dir", "a\nb"), "control characters"),
        (("--resume", "a" * 300), "is longer than 255 bytes"),
        (("--resume", "small.yaml"), "no run to resume"),
        (("--resume", "nowhere"), "no run to resume"),
        (("--resume", "nowhere", "--run-dir", "x"), "leave out --run-dir"),
        (("small.yaml", "--cluster", "2x8"), "--cluster is for --plan or --dry-run"),
        (("small.yaml", "--plan", "--cluster", "2x8", "--address", "auto"), "real machines, take --address"),
        (("small.yaml", "--plan", "--cluster", "8"), "--cluster: '8' is no cluster; give MACHINESxGPUS"),
        (("small.yaml", "--plan", "--cluster", "0x8"), "such as 2x8x96"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(home, capsys, arguments, message):
    if "placement=gpu" in arguments and os.path.exists("/dev/nvidia0"):
        pytest.skip("there is a GPU")
    assert_refused(capsys, message, *arguments)
    assert written(home) == []


def test_without_gl_a_run_ends_with_the_line_that_installs_it(home):
    environment = os.environ | {"MUJOCO_GL": "disabled", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "rl_lab.run", "small.yaml"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "apt-get install" in done.stderr
    assert written(home) == []


def test_a_used_run_folder_is_left_alone(home, capsys):
    assert main("small.yaml", "stages=[demos]", "--run-dir", "mine") == 0
    before = sorted(path for path in (home / "mine").rglob("*"))
    with pytest.raises(UserError, match="--resume mine"):
        main("small.yaml", "--run-dir", "mine")
    assert sorted(path for path in (home / "mine").rglob("*")) == before


def test_resuming_with_another_config_is_refused(home, capsys):
    assert main("small.yaml", "stages=[demos]", "--run-dir", "mine") == 0
    with pytest.raises(UserError, match="is not the config of"):
        main("small.yaml", "--resume", "mine")
    with pytest.raises(UserError, match="keeps its config"):
        main("seed=1", "--resume", "mine")
    assert main("small.yaml", "stages=[demos]", "--resume", "mine") == 0


def test_the_report_is_named_before_the_last_line(home, capsys):
    assert main("small.yaml", "stages=[demos]", "--run-dir", "mine") == 0
    told = capsys.readouterr()
    assert told.err.splitlines()[-1] == "report: mine/report.html" and told.out.splitlines()[-1] == "mine"


def test_a_failed_stage_is_exit_code_1_with_the_command_that_continues(home, capsys):
    stages = FakeStages()
    stages.fail_at = "sft"
    assert main("small.yaml", "--run-dir", "mine", stages=stages) == 1
    captured = capsys.readouterr()
    assert "python -m rl_lab.run --resume mine" in captured.err
    assert captured.out.splitlines()[-1] == "mine"
    assert main("--resume", "mine") == 0


def test_a_large_beta_lambda_product_is_warned_about_with_the_number(home, capsys):
    main("small.yaml", "--dry-run", "objectives={rpro: {beta: 30}}")
    assert "beta * lambda_pro = 30 exceeds" in capsys.readouterr().err
    main("small.yaml", "--dry-run", "objectives={rpro: {beta: 2}}")
    assert "beta" not in capsys.readouterr().err


def start(home: Path, steps: int, *arguments: str) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SLOW_RUN, str(steps), *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=home, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_stop_cleanly_with_the_command_that_continues(home, sent):
    process = start(home, 5000, "small.yaml", "--run-dir", "mine")
    wait_for(home / "mine" / "metrics.jsonl")
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "python -m rl_lab.run --resume mine" in err and "Traceback" not in err
    assert out.splitlines()[-1] == "mine"
    assert main("--resume", "mine") == 0


def test_a_run_killed_with_sigkill_continues_to_the_same_result(home, capsys):
    for name, kill in (("whole", False), ("killed", True)):
        process = start(home, 12, "small.yaml", f"name={name}", f"seed={int(kill)}", "--run-dir", name)
        if kill:
            wait_for(home / name / "checkpoints" / "sft")
            process.kill()
        process.communicate(timeout=60)
    assert main("--resume", "killed", stages=FakeStages(steps=12)) == 0
    results = [
        {p.relative_to(home / n): p.read_text() for p in (home / n).rglob("result")} for n in ("whole", "killed")
    ]
    assert results[0] == results[1] and len(results[0]) == 13
    metrics = [(home / name / "metrics.jsonl").read_text().count("\n") for name in ("whole", "killed")]
    assert metrics[0] == metrics[1] == 13 * 12


def test_a_run_killed_before_its_first_stage_can_be_resumed(home, capsys):
    assert main("small.yaml", "stages=[demos]", "--run-dir", "mine") == 0
    (home / "mine" / "stages.json").unlink()
    stages = FakeStages()
    assert main("--resume", "mine", stages=stages) == 0
    assert stages.ran == []


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", '{"store": 1, "nodes": []}', '{"store": "x", "nodes": [{"name": 1}]}', "[" * 9999]
)
def test_a_damaged_list_of_stages_is_one_line_with_the_way_out(home, capsys, content):
    main("small.yaml", "stages=[demos]", "--run-dir", "mine")
    (home / "mine" / "stages.json").write_text(content)
    capsys.readouterr()
    said = assert_refused(capsys, "mine/stages.json", "--resume", "mine")
    assert "or delete it: what is finished is found" in said


def test_damaged_metrics_are_refused_before_anything_is_written(home):
    main("small.yaml", "stages=[demos]", "--run-dir", "mine")
    (home / "mine" / "metrics.jsonl").write_text("nonsense\n{}\n")
    (home / "mine" / "environment.json").write_text("of the first run")
    with pytest.raises(UserError, match="mine/metrics.jsonl, line 1 is not a JSON object"):
        main("--resume", "mine")
    assert (home / "mine" / "environment.json").read_text() == "of the first run"


def test_an_edited_config_is_named_as_what_changed(home, capsys):
    main("small.yaml", "stages=[demos, sft]", "--run-dir", "mine")
    path = home / "mine" / "config.yaml"
    path.write_text(path.read_text().replace("steps: 10\n", "steps: 11\n", 1))
    stages = FakeStages()
    assert main("--resume", "mine", stages=stages) == 0 and stages.ran == ["sft"]
    assert "mine/config.yaml was edited; sft run again" in capsys.readouterr().err
    path.write_text(path.read_text() + "# a remark\n")
    main("--resume", "mine")
    assert "config.yaml was edited; no finished stage depends on that" in capsys.readouterr().err
    main("--resume", "mine")
    assert "edited" not in capsys.readouterr().err


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"kind": "demos", "seconds": "x", "files": {}}'])
def test_a_damaged_record_of_a_stored_stage_is_named_and_made_again(home, capsys, content):
    main("small.yaml", "stages=[demos]", "--run-dir", "mine")
    (record,) = home.glob("runs/.stages/*/stage.json")
    record.chmod(0o644)
    record.write_text(content)
    stages = FakeStages()
    assert main("--resume", "mine", stages=stages) == 0 and stages.ran == ["demos"]
    assert "stage.json" in capsys.readouterr().err


def test_metrics_that_name_no_node_are_made_again_from_the_store(home, capsys):
    main("small.yaml", "stages=[demos]", "--run-dir", "mine")
    path = home / "mine" / "metrics.jsonl"
    lines = path.read_text()
    path.write_text('{}\n{"node": [1]}\n')
    assert main("--resume", "mine") == 0
    assert path.read_text() == lines


@pytest.mark.parametrize(
    "name", ["run", "eval", "report", "pool", "rescore", "data", "correct", "serve", "watch", "bench", "doctor"]
)
def test_help_is_what_the_file_of_the_command_says(name, capsys):
    module = importlib.import_module(f"rl_lab.{name}")
    with pytest.raises(SystemExit, match="0"):
        module.main(["--help"])
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: python -m rl_lab.{name} ") and "options:" in shown
    assert module.__doc__.partition("\n")[2].strip() in shown and re.search(r"Exit\s+code: 0 ", shown)


def test_help_of_a_part_of_a_command_names_it(capsys):
    with pytest.raises(SystemExit, match="0"):
        pool.main(["ls", "--help"])
    assert capsys.readouterr().out.startswith("usage: python -m rl_lab.pool ls [-h]")
    with pytest.raises(UserError, match="`python -m rl_lab.pool ls --help` lists the arguments"):
        pool.main(["ls"])
