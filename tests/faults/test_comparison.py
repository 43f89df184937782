"""The comparison of runs tells wall times from results."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.faults.comparison import differences, is_volatile
from tests.support.experiments import main, write_small
from tests.support.processes import DRIVER, Seen, choose


@pytest.fixture
def twins(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """Two working directories with the same run of plain functions."""
    homes = tmp_path / "one", tmp_path / "other"
    for home in homes:
        home.mkdir()
        monkeypatch.chdir(home)
        assert main(str(write_small(home)), "--run-dir", "run") == 0
        (home / "run" / "summary.json").write_text(json.dumps({"success": 0.5, "seconds": str(home)}))
    return homes


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.unlink()
    path.write_text(text.replace(old, new, 1))


def test_runs_that_differ_in_wall_times_alone_are_the_same(twins):
    assert list(differences(*twins)) == []


def test_every_planted_difference_is_named(twins):
    one, other = twins
    stage = next((other / "runs" / ".stages").glob("*"))
    for path, old, new, named in (
        (stage / "result", "[", "[ ", "result"),
        (stage / "metrics.jsonl", '"loss": 1.0', '"loss": 1.1', "metrics.jsonl"),
        (stage / "stage.json", '"seed": 0', '"seed": 1', "stage.json"),
        (other / "run" / "metrics.jsonl", '"loss": 0.5', '"loss": 0.6', "metrics of"),
        (other / "run" / "summary.json", "0.5", "0.6", "summary.json"),
    ):
        rewrite(path, old, new)
        found = list(differences(one, other))
        assert len(found) == 1 and named in found[0], (path, found)
        rewrite(path, new, old)
    shutil.rmtree(stage)
    assert all("only one has" in line for line in differences(one, other))


def test_names_of_times_are_known():
    assert all(map(is_volatile, ("time", "seconds/learn", "idle/rollout", "generate_s")))
    assert not any(map(is_volatile, ("loss", "rollouts/tokens", "steps", "lr", "rewards")))


def test_each_process_of_each_kind_of_stage_gets_a_kill_point_inside_its_stage():
    seen = [
        Seen("demos", "demos", 4.0, 0, {"simulation"}),
        Seen("sft", "sft", 9.0, 30, {"learner"}, [2.0, 8.0]),
        Seen("a.1.optimise", "optimise", 5.0, 20, {"learner", "simulation"}, [1.0, 4.0]),
        Seen("b.1.optimise", "optimise", 5.0, 20, {"learner"}, [6.0, 9.0]),
        Seen("report", "report", 2.0, 0, set()),
    ]
    points = choose(seen, np.random.default_rng(0))
    places = [(point.kind, point.process) for point in points]
    assert sorted(places) == sorted(
        [("demos", DRIVER), ("demos", "simulation"), ("report", DRIVER)]
        + [(kind, process) for kind in ("sft", "optimise") for process in (DRIVER, "learner")]
    )
    assert all(0 < point.after_lines < 30 or point.after_s < 4.0 for point in points)
    assert points == choose(seen, np.random.default_rng(0)) and choose(seen, np.random.default_rng(0), ["sft"])
