"""The language smoke run, from nothing to its report: what it leaves, and its pool inspected and edited meanwhile; then
the smoke study of rewards, which shares its base."""

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import redirect_stdout
from io import StringIO
from types import SimpleNamespace

import pytest

from envs.spatial_qa.items import CATEGORIES
from rl_lab import pool
from rl_lab.common.errors import UserError
from rl_lab.common.files import read_json_lines
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.metrics import HEADER, define
from tests.serving.language_runs import NODE, ROOT, LanguageRun, assert_counted_once
from tests.support.pools import content

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

STEPS, EVERY = 5, 2
HELD_OUT = 8
G = 4


def command(*arguments) -> str:
    """What a pool command prints."""
    with redirect_stdout(StringIO()) as printed:
        assert pool.main([str(argument) for argument in arguments]) == 0
    return printed.getvalue()


def inspect(run, folder) -> dict[str, str]:
    """Every command that only reads, and what it printed."""
    row = RolloutStore(run / "grpo" / NODE).read(columns=["item", "step"])[0]
    item, step = row["item"], row["step"]
    folder.mkdir()
    return {
        "ls": command("ls", run, "--limit", 100),
        "show": command("show", run, item, "--images", folder / "images"),
        "hist": command("hist", run),
        "why": command("why", run, f"{item}@{step}"),
        "export": command("export", run, folder / "items.jsonl"),
        "diff": command("diff", run, f"{run}@0"),
        "html": command("html", run, "--out", folder / "pool.html"),
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The finished run, and what its commands said while it was running."""
    folder = tmp_path_factory.mktemp("smoke")
    run = LanguageRun(folder, "smoke.yaml")
    run.wait_for(lambda: run.steps() >= 1)
    unseen = command("ls", run.path, "--band", "unseen").splitlines()[2:4]
    pinned, retired = (line.split()[0] for line in unseen)
    said = command("pin", run.path, pinned) + command("retire", run.path, retired)
    os.kill(run.process.pid, signal.SIGSTOP)  # so that it is not over before the commands are
    try:
        at_step, live = run.steps(), inspect(run.path, folder / "live")
        assert run.status(NODE) == "running"
    finally:
        os.kill(run.process.pid, signal.SIGCONT)
    run.finish()
    return SimpleNamespace(
        folder=folder,
        path=run.path,
        node=run.path / "grpo" / NODE,
        live=live,
        said=said,
        pinned=pinned,
        retired=retired,
        at_step=at_step,
    )


@pytest.fixture(scope="module")
def lines(done):
    found = [line for line in read_json_lines(done.path / "metrics.jsonl") if line["node"] == NODE]
    assert [line["step"] for line in found] == list(range(STEPS + 1))
    return found


def test_every_stage_leaves_its_files(done):
    for name in (
        "config.yaml",
        "environment.json",
        "report.html",
        "summary.json",
        "questions/questions/train.arrow",
        "questions/questions/cold_start.arrow",
        "questions/questions/held_out.arrow",
        "checkpoints/cold_start/model.safetensors",
        f"grpo/{NODE}/model.safetensors",
        f"grpo/{NODE}/pool.sqlite",
        f"grpo/{NODE}/checkpoints/step-2/pool.sqlite",
        f"grpo/{NODE}/checkpoints/step-4/pool.sqlite",
        *(f"grpo/{NODE}/rollouts/step-{step:08d}.parquet" for step in range(1, STEPS + 1)),
    ):
        assert (done.path / name).stat().st_size > 0, name
    nodes = json.loads((done.path / "stages.json").read_text())["nodes"]
    assert {node["name"]: node["status"] for node in nodes} == dict.fromkeys(
        ("questions", "cold_start", "base.examine", NODE, "frontier.1.examine", "report"), "done"
    )
    assert not (done.path / "work").exists()


def test_every_value_of_every_step_is_defined(lines):
    names = {name for line in lines for name in line} - set(HEADER)
    assert not [name for name in names if define(name) is None]
    assert all(line["method"] == "frontier" for line in lines)


def test_examinations_have_every_question_with_its_controls(done):
    for node in ("base.examine", "frontier.1.examine"):
        rows = read_json_lines(done.path / "examinations" / node / "results.jsonl")
        assert len(rows) == HELD_OUT and {row["category"] for row in rows} <= set(CATEGORIES)
        for row in rows:
            assert [len(row[name]) for name in ("rewards", "tokens", "finished", "answers", "blank", "low")] == [
                2,
                2,
                2,
                2,
                1,
                1,
            ]
            rewards = [*row["rewards"], *row["blank"], *row["low"], row["constant"]]
            assert all(0 <= reward <= 1 for reward in rewards)
    rows = read_json_lines(done.node / "held_out.jsonl")
    assert [row["step"] for row in rows] == [0, 3] and rows[0]["tokens"] == 0
    assert all(len(row["rewards"]) == HELD_OUT for row in rows)


def test_pool_and_rollouts_say_the_same(done, lines):
    assert_counted_once(done.path / "grpo" / NODE)
    rows = RolloutStore(done.node).read()
    for line in lines[1:]:
        step = [row for row in rows if row["step"] == line["step"]]
        assert line["rollouts/groups"] == len(step) / G
        assert line["rollouts/tokens"] == sum(len(row["tokens"]) for row in step)
        assert line["reward/mean"] == pytest.approx(sum(row["reward"] for row in step) / len(step))
    assert lines[-1]["rollouts/tokens_total"] == sum(len(row["tokens"]) for row in rows)
    bands = [lines[-1][f"pool/{band}"] for band in ("unseen", "hard", "frontier", "easy", "flat")]
    assert sum(bands) == len(content(done.node / "pool.sqlite")["items"]) - 1  # the retired one is in no band


def test_weight_versions_follow_one_another_and_rollouts_are_by_the_newest(done, lines):
    rows = RolloutStore(done.node).read(columns=["step", "weight_version"])
    for before, line in zip(lines, lines[1:], strict=False):
        assert line["weight_version"] == before["weight_version"] + ("loss" in line)
        versions = {row["weight_version"] for row in rows if row["step"] == line["step"]}
        assert versions == {before["weight_version"]} and line["rollouts/staleness"] == 0
    saved = json.loads((done.node / "lab.json").read_text())["weight_version"]
    assert saved == lines[-1]["weight_version"] > lines[0]["weight_version"]


def test_trainer_and_engine_agree_on_every_token(lines):
    learned = [line for line in lines if "loss" in line]
    assert learned and all(line["mismatch/max"] < 1e-4 for line in learned)


def test_edits_take_effect_at_the_next_selection_of_the_running_job(done):
    assert done.said.count("takes effect at the run's next selection") == 2
    tables = content(done.node / "pool.sqlite")
    ids = {number: item for number, item, *_ in tables["items"]}
    first = {action: step for _, action, _, _, step in tables["edits"]}
    assert first.keys() == {"pin", "retire"} and set(first.values()) <= {2, 3, 4}  # both were given after step 1
    taken = [(step, ids[number], reason) for step, round_, _, number, reason, _ in tables["selections"] if not round_]
    pins = [step for step, item, reason in taken if (item, reason) == (done.pinned, "pinned")]
    assert pins == list(range(first["pin"], STEPS + 1))
    assert not [step for step, item, _ in taken if item == done.retired and step >= first["retire"]]
    assert "pinned" in command("why", done.path, f"{done.pinned}@{first['pin']}")


def test_commands_on_the_live_run_show_what_it_did_so_far(done):
    step = int(re.search(r"step (\d+),", done.live["ls"])[1])
    assert done.at_step <= step <= done.at_step + 1
    assert done.pinned in done.live["ls"]
    for name, text in done.live.items():
        assert text.strip(), name
    assert (done.folder / "live" / "pool.html").stat().st_size > 10_000
    assert len((done.folder / "live" / "items.jsonl").read_text().splitlines()) == 48


def test_commands_work_on_the_finished_run_which_takes_no_more_edits(done):
    found = inspect(done.path, done.folder / "finished")
    assert f"step {STEPS}," in found["ls"] and found["diff"] != done.live["diff"]
    assert command("diff", f"{done.path}@2", f"{done.path}@4").strip()
    assert f"step {EVERY}," in command("ls", f"{done.path}@{EVERY}")
    with pytest.raises(UserError, match="is over"):
        command("pin", done.path, done.pinned)
    shell = [sys.executable, "-m", "rl_lab.pool", "ls", done.path, "--limit", "1"]
    printed = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[2].split()[0] in found["ls"]


def test_a_study_of_rewards_shares_the_base_and_reaches_its_verdict(done):
    command = [sys.executable, "-m", "rl_lab.run", str(ROOT / "experiments" / "reward_ablation_smoke.yaml")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [*command, "--run-dir", "study"], cwd=done.folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert told.returncode == 0, told.stderr
    nodes = json.loads((done.folder / "study" / "stages.json").read_text())["nodes"]
    assert [node["name"] for node in nodes if node["reused"]] == [
        f"given.1.{name}" for name in ("questions", "cold_start", "base.examine")
    ]
    found = json.loads((done.folder / "study" / "study.json").read_text())
    (short,) = found["rows"][0]["methods"]
    assert found["control"] == "verifier" and short["n"] == HELD_OUT
    assert found["verdict"][0].startswith("Not told apart from verifier: 1 of 1") and found["verdict"][0] in told.stdout
    assert set(found["details"][0]["curves"]) == {"verifier", "short"}
    assert "While training" in (done.folder / "study" / "study.html").read_text()
