import json
import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from accelerate.tracking import WandBTracker

from rl_lab.common.errors import UserError
from rl_lab.config.schema import RunConfig
from rl_lab.graph import trackers as tracking
from rl_lab.graph.trackers import Trackers
from rl_lab.stages import preflight
from rl_lab.stages.kinds import expand, load_config
from rl_lab.workers.films import webm
from tests.support.experiments import EXPERIMENTS, write_small
from tests.support.refusals import refusal

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

    def log(self, values: dict, step: None = None) -> None:
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

    def start(service: WandBTracker) -> None:
        found.append(FakeRun(service.init_kwargs | {"project": service.run_name}))
        service.run = found[-1]

    monkeypatch.setattr(WandBTracker, "start", start)
    return found


def test_every_stage_is_a_run_with_plain_names_over_its_steps(tmp_path, config, runs):
    with Trackers(config, tmp_path, expand(config)) as tracker:
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


def test_a_study_is_tagged_by_method_and_seed_and_has_its_verdicts(tmp_path, runs):
    text = yaml.safe_load((EXPERIMENTS / "frontier_smoke.yaml").read_text())
    form = {"weights": {"answer": 1.0, "format": 1.0}}
    text["study"] = {"control": "verifier", "rewards": {"verifier": {}, "form": form}, "seeds": 2}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(text))
    config = load_config(tmp_path / "study.yaml")
    compared = {"method": "form", "mean": 0.4, "corrected_p": 0.01}
    compared |= {"difference": {"value": -0.1, "low": -0.2, "high": 0.0}}
    found = {"control": "verifier", "rows": [{"factor": None, "value": None, "methods": [compared]}]}
    found["over_all"] = [{"factor": "all worlds", "methods": [compared | {"mean": 0.3}]}]
    found["details"] = [{"alarms": {"verifier": [], "form": ["format fell"]}}]
    (tmp_path / "study.json").write_text(json.dumps(found))
    with Trackers(config, tmp_path, expand(config)) as tracker:
        for seed in (1, 2):
            tracker.log(LINE | {"node": f"given.{seed}.form.1.grpo", "method": "form"})
    *trained, verdicts = runs
    assert [run.settings["tags"] for run in trained] == [
        ["experiment:frontier_smoke", "method:form", f"seed:{seed}"] for seed in (0, 1)
    ]
    assert {run.settings["job_type"] for run in trained} == {"grpo"}
    assert trained[0].settings["config"]["rewards"]["weights"] == {"answer": 1.0, "format": 1.0}
    assert verdicts.settings["job_type"] == "verdicts"
    assert (verdicts.summary["form/over_control"], verdicts.summary["form/p"]) == (-0.1, 0.01)
    assert (verdicts.summary["form/mean"], verdicts.summary["form/alarms"]) == (0.4, 1)
    assert verdicts.summary["all worlds/form/mean"] == 0.3


def test_what_a_run_found_is_a_run_with_rates_over_the_rounds_verdict_report_and_films(tmp_path, config, runs):
    evaluations = [node for node in expand(config) if node.kind == "evaluate"]
    with Trackers(config, tmp_path, expand(config)) as trackers:
        for number, node in enumerate(evaluations):
            trackers.log(tracking.result_line(node, {"success": number / 10}))
        (tmp_path / "summary.json").write_text('{"verdict": ["It rose.", "It held."]}')
        (tmp_path / "report.html").write_text("<p>report</p>")
        films = tmp_path / "videos" / "rpro.1.optimise"
        films.mkdir(parents=True)
        for side in ("before", "after"):
            (films / f"{side}.webm").write_bytes(webm([np.zeros((16, 16, 3), np.uint8)] * 3, 6.25))
        row = {"task": "t", "variant": "clean", "seed": 3, "before": "before.webm", "after": "after.webm"}
        (films / "index.jsonl").write_text(json.dumps(row) + "\n")
    (results,) = runs
    assert (results.settings["name"], results.settings["job_type"]) == ("results", "results")
    lines = [line for line in results.logged if "step" in line]
    assert lines[:2] == [{"step": 0, "success/base": 0.0}, {"step": 1, "success/rpro": 0.1}]
    assert results.summary == {"verdict": "It rose.\nIt held."}
    shown = {name: value for line in results.logged[len(lines) :] for name, value in line.items()}
    names = [f"films/rpro.1.optimise/t-clean-3-{side}" for side in ("before", "after")]
    assert list(shown) == ["report", *names]
    assert "<p>report</p>" in shown["report"].html
    assert shown[names[0]]._path.endswith("before.webm")


def test_the_project_is_that_of_the_environment(tmp_path, config, runs, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    with Trackers(config, tmp_path, expand(config)) as trackers:
        trackers.log(LINE)
    assert runs[0].settings["project"] == "mine"


@pytest.mark.parametrize("name", ["trackio", "mlflow"])
def test_a_tracker_that_is_not_installed_is_one_line_before_the_run(tmp_path, name, monkeypatch):
    monkeypatch.setattr(preflight.importlib.util, "find_spec", lambda module: None)
    said = refusal(preflight.check_machine, load_config(write_small(tmp_path), [f"trackers=[{name}]"]))
    assert said == f"trackers: {name} is not installed; run pip install {name}, or leave it out of trackers"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trackers=[wandb,wandb]"], "repeat one; name each once"),
        (["trackers=[]", "wandb=online"], "wandb is online, but trackers leaves it out"),
        (["trackers=[tensorbord]"], "did you mean tensorboard?"),
    ],
)
def test_trackers_that_cannot_be_are_one_line(tmp_path, overrides, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_config(write_small(tmp_path), overrides)


def test_a_tracker_that_breaks_is_named_once_and_the_run_goes_on(tmp_path, config, monkeypatch, capsys):
    def refuse(name: str, config: RunConfig, folder: Path, settings: dict) -> None:
        raise ConnectionError("no service")

    monkeypatch.setattr(tracking, "_start", refuse)
    with Trackers(config, tmp_path, expand(config)) as tracker:
        for _ in range(3):
            tracker.log(LINE)
    assert capsys.readouterr().err == "warning: wandb stopped: ConnectionError: no service\n"


def test_a_tracker_that_hangs_never_blocks_the_run(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda name, config, folder, settings: time.sleep(3))
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 0.1)
    started = time.monotonic()
    with Trackers(config, tmp_path, expand(config)) as tracker:
        tracker.log(LINE)
    assert time.monotonic() - started < 1


def test_a_disabled_tracker_does_nothing(tmp_path, config, monkeypatch):
    monkeypatch.setattr(tracking, "_start", lambda name, config, folder, settings: pytest.fail("started"))
    with Trackers(config.model_copy(update={"wandb": "disabled"}), tmp_path, []) as tracker:
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
    monkeypatch.setattr(tracking, "FINISH_SECONDS", 600.0)
    (tmp_path / "run").mkdir()
    with Trackers(config, tmp_path / "run", expand(config)) as tracker:
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
