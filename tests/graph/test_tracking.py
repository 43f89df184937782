import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rl_lab.config.schema import RunConfig
from rl_lab.graph import record as tracking
from rl_lab.graph.record import Tracker
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import EXPERIMENTS, write_small

LINE = {"node": "sft", "method": None, "round": None, "step": 1, "time": 0.1, "loss": 1.5, "alarm": None}


class FakeRun:
    """What the adapter uses of a wandb run."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.logged: list[dict] = []
        self.summary: dict = {}
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


@pytest.fixture
def runs(monkeypatch) -> list[FakeRun]:
    """The wandb runs that were started."""
    found: list[FakeRun] = []

    def start(config: RunConfig, folder: Path, settings: dict) -> FakeRun:
        found.append(FakeRun(settings))
        return found[-1]

    monkeypatch.setattr(tracking, "_start", start)
    return found


def test_every_stage_is_a_run_with_plain_names_over_its_steps(tmp_path, config, runs):
    with Tracker(config, tmp_path, expand(config)) as tracker:
        tracker.log(LINE)
        tracker.log(LINE | {"node": "rpro.1.optimise", "method": "rpro", "round": 1})
        tracker.log(LINE | {"step": 2})
    assert [run.settings["name"] for run in runs] == ["sft", "rpro.1.optimise"]
    assert [run.settings["job_type"] for run in runs] == ["sft", "optimise"]
    assert runs[0].defined == ["* over step"]
    assert runs[0].logged[0] == {"step": 1, "time": 0.1, "loss": 1.5}
    assert [line["step"] for line in runs[0].logged] == [1, 2]
    assert runs[1].settings["tags"] == ["experiment:small", "method:rpro", "round:1", "seed:0"]
    assert all(run.finished for run in runs)


def test_a_sweep_is_tagged_by_variant_and_replicate_and_has_its_verdicts(tmp_path, runs):
    text = yaml.safe_load((EXPERIMENTS / "frontier_smoke.yaml").read_text())
    short = {"weights": {"answer": 1.0, "format": 1.0}}
    text |= {"replicates": 2, "sweep": {"baseline": "verifier", "variants": {"verifier": {}, "form": short}}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(text))
    config = load_config(tmp_path / "sweep.yaml")
    difference = {"value": -0.1, "low": -0.2, "high": 0.0}
    rows = [
        {"variant": "verifier", "reward": {"value": 0.5}, "alarms": []},
        {"variant": "form", "reward": {"value": 0.4}, "alarms": ["format fell"]}
        | {"verdict": {"difference": difference, "standing": "worse", "scope": "items only"}},
    ]
    (tmp_path / "sweep.json").write_text(json.dumps({"baseline": "verifier", "variants": rows}))
    with Tracker(config, tmp_path, expand(config)) as tracker:
        for replicate in (1, 2):
            tracker.log(LINE | {"node": f"form.{replicate}.grpo", "method": "form", "replicate": replicate})
    *trained, verdicts = runs
    assert [run.settings["tags"] for run in trained] == [
        ["experiment:frontier_smoke", "variant:form", f"replicate:{replicate}", "seed:0"] for replicate in (1, 2)
    ]
    assert {run.settings["job_type"] for run in trained} == {"grpo"}
    assert trained[0].settings["config"]["rewards"]["weights"] == {"answer": 1.0, "format": 1.0}
    assert trained[0].settings["config"]["variant"] == "form"
    assert verdicts.settings["job_type"] == "verdicts"
    assert verdicts.summary["form/over_baseline"] == -0.1
    assert verdicts.summary["form/standing"] == "worse"
    assert (verdicts.summary["verifier/truth"], verdicts.summary["form/alarms"]) == (0.5, 1)


def test_a_tracker_that_breaks_is_named_once_and_the_run_goes_on(tmp_path, config, monkeypatch, capsys):
    def refuse(config: RunConfig, folder: Path, settings: dict) -> None:
        raise ConnectionError("no service")

    monkeypatch.setattr(tracking, "_start", refuse)
    with Tracker(config, tmp_path, expand(config)) as tracker:
        for _ in range(3):
            tracker.log(LINE)
    assert capsys.readouterr().err == "warning: wandb stopped: ConnectionError: no service\n"


def test_a_tracker_that_hangs_never_blocks_the_run(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda config, folder, settings: time.sleep(3))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.1)
    started = time.monotonic()
    with Tracker(config, tmp_path, expand(config)) as tracker:
        tracker.log(LINE)
    assert time.monotonic() - started < 1


def test_a_disabled_tracker_does_nothing(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda config, folder, settings: pytest.fail("started"))
    with Tracker(config.model_copy(update={"wandb": "disabled"}), tmp_path, []) as tracker:
        tracker.log(LINE)


def records(path: Path) -> Iterator[Any]:
    """What wandb's own file holds: a LevelDB log behind a header of 7 bytes, in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, found = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack("<xxxxHB", data[at : at + 7])
        found += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(found)
            found = b""


@pytest.mark.slow
def test_offline_runs_lie_in_the_run_folder_and_hold_group_tags_and_curves(tmp_path, config, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    with Tracker(config, tmp_path / "run", expand(config)) as tracker:
        tracker.log(LINE)
        tracker.log(LINE | {"node": "rpro.1.optimise", "method": "rpro", "round": 1, "loss": 0.5})
        tracker.log(LINE | {"step": 2})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "small.yaml"]
    found = {}
    for path in (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"):
        read = list(records(path))
        (run,) = (record.run for record in read if record.WhichOneof("record_type") == "run")
        lines = [record.history for record in read if record.WhichOneof("record_type") == "history"]
        values = [{"/".join(item.nested_key) or item.key: item.value_json for item in line.item} for line in lines]
        found[run.display_name] = run, values
    assert found.keys() == {"sft", "rpro.1.optimise"}
    run, values = found["rpro.1.optimise"]
    assert (run.project, run.run_group, run.job_type) == ("rl-lab", "run", "optimise")
    assert list(run.tags) == ["experiment:small", "method:rpro", "round:1", "seed:0"]
    assert [line["loss"] for line in values] == ["0.5"]
    assert [line["step"] for line in found["sft"][1]] == ["1", "2"]
