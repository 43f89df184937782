import time
from pathlib import Path

import pytest

from rl_lab.config import RunConfig, load_config
from rl_lab.runner import tracking
from rl_lab.runner.tracking import Tracker
from tests.runner.files import write_small

LINE = {"node": "sft", "method": None, "round": None, "step": 1, "time": 0.1, "loss": 1.5, "alarm": None}


class FakeRun:
    """What the adapter uses of a wandb run."""

    def __init__(self) -> None:
        self.logged: list[dict] = []
        self.defined: list[str] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self.defined.append(f"{name} over {step_metric}")

    def log(self, values: dict) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return load_config(write_small(tmp_path), ["wandb=offline"])


def test_lines_become_curves_over_the_steps_of_their_stage(tmp_path, config, monkeypatch):
    run = FakeRun()
    monkeypatch.setattr(tracking, "_start", lambda config, folder: run)
    with Tracker(config, tmp_path) as tracker:
        tracker.log(LINE)
        tracker.log(LINE | {"step": 2})
    assert run.defined == ["sft/* over sft/step"]
    assert run.logged[0] == {"sft/step": 1, "sft/time": 0.1, "sft/loss": 1.5}
    assert run.finished


def test_a_tracker_that_breaks_is_named_once_and_the_run_goes_on(tmp_path, config, monkeypatch, capsys):
    def refuse(config: RunConfig, folder: Path) -> None:
        raise ConnectionError("no service")

    monkeypatch.setattr(tracking, "_start", refuse)
    with Tracker(config, tmp_path) as tracker:
        for _ in range(3):
            tracker.log(LINE)
    assert capsys.readouterr().err == "warning: wandb stopped: ConnectionError: no service\n"


def test_a_tracker_that_hangs_never_blocks_the_run(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda config, folder: time.sleep(3))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.1)
    started = time.monotonic()
    with Tracker(config, tmp_path) as tracker:
        tracker.log(LINE)
    assert time.monotonic() - started < 1


def test_a_disabled_tracker_does_nothing(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda config, folder: pytest.fail("started"))
    with Tracker(config.model_copy(update={"wandb": "disabled"}), tmp_path) as tracker:
        tracker.log(LINE)


@pytest.mark.slow
def test_offline_tracking_writes_into_the_run_folder_only(tmp_path, config, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with Tracker(config, tmp_path / "run") as tracker:
        tracker.log(LINE)
    assert list((tmp_path / "run" / "wandb").rglob("*.wandb"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small.yaml"]
