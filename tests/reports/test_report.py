"""`python -m rl_lab.report`: what it prints, writes and refuses."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial

import pytest
import yaml

from rl_lab.common.errors import UserError, run_command
from rl_lab.common.terminal import columns
from rl_lab.report import main
from rl_lab.reports.pages.against import config_differences, flatten, over_seeds, stage_differences
from rl_lab.reports.run import StageRow, load_run
from rl_lab.reports.summary import measure
from tests.support.run_folders import build_run, write_jsonl


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("seeds")
    return [build_run(folder / f"seed{seed}", n=20, seed=seed, pairs=1, videos=0) for seed in (0, 1)]


def test_report_rebuilds_both_files_and_prints_table_verdict_and_path(finished_run, tmp_path, capsys):
    run = shutil.copytree(finished_run, tmp_path / "run")
    assert main([str(run)]) == 0
    printed = capsys.readouterr().out
    assert "RPRO, round 2" in printed
    assert "95 % interval" in printed
    assert printed.splitlines()[-1] == str(run / "report.html")
    assert json.loads((run / "summary.json").read_text())["method"] == "rpro"


def test_report_against_another_seed_prints_pairs_config_stages_and_spread(two_seeds, capsys):
    run, other = two_seeds
    assert main([str(run), "--against", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "RPRO, round 2" in printed
    assert "SD (points)" in printed
    assert "rpro.1.optimise" in printed
    page = (run / "compare-seed1.html").read_text()
    assert "Paired differences" in page
    assert "Over training seeds" in page
    assert not (other / "report.html").exists()


def test_differences_of_configs_are_dotted_keys_with_both_values(two_seeds, tmp_path):
    run = load_run(two_seeds[0])
    other = load_run(shutil.copytree(two_seeds[0], tmp_path / "other"))
    other.config["objectives"]["rpro"]["beta"] = 30.0
    other.config["extra"] = {}
    assert config_differences(run, other) == [("objectives.rpro.beta", 1.0, 30.0), ("extra", None, {})]
    assert flatten({"a": {"b": {"c": 1}}, "d": [2]}) == {"a.b.c": 1, "d": [2]}


def test_stages_are_compared_by_hash(two_seeds):
    first, second = map(load_run, two_seeds)
    assert {how for _, how, _, _ in stage_differences(first, first)} == {"same result"}
    second.stages = [*second.stages[1:], StageRow("extra", seconds=1.0)]
    how = {name: how for name, how, _, _ in stage_differences(first, second)}
    assert (how["demos"], how["sft"], how["extra"]) == ("only here", "different", "only there")


def test_mean_and_deviation_over_training_seeds_by_hand(two_seeds):
    rows = over_seeds([load_run(path) for path in two_seeds])
    for row in rows:
        first, second = row["rates"]
        assert row["mean"] == pytest.approx((first + second) / 2)
        assert row["sd"] == pytest.approx(abs(first - second) / 2**0.5)


def test_only_shared_episodes_are_paired_and_their_number_is_said(two_seeds, tmp_path, capsys):
    other = shutil.copytree(two_seeds[1], tmp_path / "other")
    for results in other.glob("episodes/*/results.jsonl"):
        results.write_text("".join(results.read_text().splitlines(keepends=True)[:12]))
    run = shutil.copytree(two_seeds[0], tmp_path / "run")
    assert main([str(run), "--against", str(other)]) == 0
    assert "12 of 20" in capsys.readouterr().out


def test_other_environments_are_warned_about(two_seeds, tmp_path, capsys):
    other = shutil.copytree(two_seeds[0], tmp_path / "other")
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["env"]["backend"] = "robotwin"
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    run = shutil.copytree(two_seeds[0], tmp_path / "run")
    main([str(run), "--against", str(other)])
    assert "env.backend differ: the same seed may not be the same test" in capsys.readouterr().out


def test_other_processors_are_warned_about(two_seeds, tmp_path, capsys):
    run, other = (shutil.copytree(two_seeds[0], tmp_path / name) for name in ("run", "other"))
    for path, models in ((run, ["EPYC, AVX512, 2 cores"]), (other, ["EPYC, AVX512, 2 cores", "Xeon, AVX2, 8 cores"])):
        content = json.loads((path / "stages.json").read_text())
        for number, node in enumerate(content["nodes"]):
            node["processor"] = models[number % len(models)]
        (path / "stages.json").write_text(json.dumps(content))
    main([str(run), "--against", str(other)])
    assert "different processors (EPYC, AVX512, 2 cores; " in capsys.readouterr().out
    assert "different processors" not in " ".join(measure(load_run(run))["verdict"])
    assert "Stages ran on different processors (EPYC, AVX512, 2 cores; Xeon" in measure(load_run(other))["verdict"][0]


def test_runs_without_a_shared_seed_are_refused_and_nothing_is_written(two_seeds, tmp_path):
    other, run = (shutil.copytree(two_seeds[0], tmp_path / name) for name in ("other", "run"))
    for results in other.glob("episodes/*/results.jsonl"):
        rows = [json.loads(line) for line in results.read_text().splitlines()]
        write_jsonl(results, [{**row, "seed": row["seed"] + 500} for row in rows])
    before = sorted(run.iterdir())
    with pytest.raises(UserError, match="share no evaluated"):
        main([str(run), "--against", str(other)])
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize("arguments", [["absent"], ["."], [], ["a", "b"], ["absent", "--against"]])
def test_bad_input_ends_with_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run_command(partial(main, arguments))
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_columns_line_up():
    text = columns(["policy", "n"], [["base", "100"], ["continued SFT", "7"]])
    assert text.splitlines() == ["policy           n", "-------------  ---", "base           100", "continued SFT    7"]


def test_reports_import_no_simulator_and_no_training_code():
    """torch itself may be there: `rl_lab` loads it first where triton is installed."""
    heavy = ["mujoco", "ray", "transformers", "envs.rollout", "envs.tabletop.env", "envs.robotwin.env"]
    code = f"import sys, rl_lab.report; print([m for m in {heavy} if m in sys.modules])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr
