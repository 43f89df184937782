"""TensorBoard, trackio and MLflow themselves: two stages side by side, then what the run found. Skipped where they are
not installed."""

import json

import numpy as np
import pytest

from rl_lab.graph import trackers
from rl_lab.graph.trackers import Trackers, result_line
from rl_lab.stages.kinds import expand, load_config
from rl_lab.workers.films import webm
from tests.support.experiments import write_small

LINE = {"node": "sft", "method": None, "round": None, "step": 1, "time": 0.1, "loss": 1.5, "pool_flow/hard>easy": 2.0}


@pytest.fixture
def follow(tmp_path, monkeypatch, capfd):
    """A run followed by one tracker, in its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trackers, "FINISH_SECONDS", 600.0)

    def follow(name):
        pytest.importorskip(name)
        config = load_config(write_small(tmp_path), [f"trackers=[{name}]"])
        folder = tmp_path / "run"
        (folder / "videos" / "rpro.1.optimise").mkdir(parents=True)
        nodes = expand(config)
        with Trackers(config, folder, nodes) as following:
            following.log(LINE)
            following.log(LINE | {"node": "rpro.1.optimise", "method": "rpro", "round": 1, "loss": 0.5})
            following.log(LINE | {"step": 2, "loss": 1.25, "alarm": "too slow"})
            evaluation = next(node for node in nodes if node.name == "rpro.1.evaluate")
            following.log(result_line(evaluation, {"success": 0.25}))
            (folder / "summary.json").write_text('{"verdict": ["It rose."]}')
            (folder / "report.html").write_text("<p>report</p>")
            row = {"task": "t", "variant": "clean", "seed": 3, "before": "film.webm", "after": "film.webm"}
            (folder / "videos" / "rpro.1.optimise" / "index.jsonl").write_text(json.dumps(row) + "\n")
            frames = [np.full((16, 16, 3), level, np.uint8) for level in (0, 255)]
            (folder / "videos" / "rpro.1.optimise" / "film.webm").write_bytes(webm(frames, 6.25))
        out, err = capfd.readouterr()
        assert "stopped" not in err and not out, out + err
        return folder

    return follow


def test_tensorboard_has_a_folder_for_every_run(follow):
    folder = follow("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    runs = {path.name: EventAccumulator(str(path)) for path in (folder / "tensorboard").iterdir()}
    assert runs.keys() == {"sft", "rpro.1.optimise", "results"}
    for one in runs.values():
        one.Reload()
    assert [(event.step, event.value) for event in runs["sft"].Scalars("loss")] == [(1, 1.5), (2, 1.25)]
    assert [(event.step, event.value) for event in runs["results"].Scalars("success/rpro")] == [(1, 0.25)]
    (film,) = runs["results"].Images("films/rpro.1.optimise/t-clean-3-after")
    assert film.encoded_image_string.startswith(b"GIF89a")


def test_mlflow_has_runs_side_by_side(follow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    follow("mlflow")
    import mlflow

    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'rl-lab'")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {"sft", "rpro.1.optimise", "results"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["rpro.1.optimise"].data.metrics["loss"] == 0.5
    assert runs["sft"].data.metrics["pool_flow/hard_easy"] == 2.0
    assert runs["sft"].data.tags["alarm"] == "step 2: too slow"
    assert runs["sft"].data.tags["group"] == "run"
    results = runs["results"]
    assert (results.data.metrics["success/rpro"], results.data.tags["verdict"]) == (0.25, "It rose.")
    kept = {artefact.path for artefact in client.list_artifacts(results.info.run_id)}
    assert {"config.json", "films", "report.html"} <= kept


def test_trackio_has_runs_side_by_side(follow, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    follow("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    names = SQLiteStorage.get_runs("rl-lab")
    assert set(names) == {f"run/{name}" for name in ("sft", "rpro.1.optimise", "results")}
    assert [line["loss"] for line in SQLiteStorage.get_logs("rl-lab", "run/sft")] == [1.5, 1.25]
    results = SQLiteStorage.get_logs("rl-lab", "run/results")
    assert results[0]["success/rpro"] == 0.25
    assert {"report", "films/rpro.1.optimise/t-clean-3-after"} <= {key for line in results for key in line}
