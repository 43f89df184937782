"""Processes are really killed; the run goes on, or is resumed, and ends with the bits of the unbroken run."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from rl_lab.records.rollouts import RolloutStore
from tests.serving.language_runs import assert_counted_once
from tests.support.learners import Killed
from tests.support.processes import Run, descendants
from tests.support.stage_runs import FakeRun

CONFIG = {
    "name": "tiny",
    "seed": 5,
    "env": {"backend": "tabletop", "tasks": ["handover_block"]},
    "demos": {"episodes": 2, "action_noise_m": 0.0},
    "sft": {"steps": 12, "batch_size": 4, "warmup": 2, "ema_start": 4},
    "collect": {"pairs": 3, "max_episodes": 20},
    "optimise": {"steps": 12, "batch_size": 4, "warmup": 2},
    "stages": ["demos", "sft", {"repeat": 1, "of": ["collect", "optimise"]}],
    "controls": [],
    "checkpoint_every": 4,
    "wandb": "disabled",
}


def begin(folder: Path, *overrides: str) -> Run:
    """The command in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    return Run(folder, "tiny.yaml", *overrides)


def weights(run: Run, node: str) -> dict[str, np.ndarray]:
    return load_file(run.path / "checkpoints" / node / "model.safetensors")


def pair_arrays(run: Run) -> list[dict[str, np.ndarray]]:
    folder = run.path / "pairs" / "rpro.1.collect"
    return [dict(np.load(path)) for path in sorted(folder.glob("*.npz"))]


def assert_same_results(run: Run, expected: Run) -> None:
    for one, other in zip(pair_arrays(run), pair_arrays(expected), strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one | other)
    for node in ("sft", "rpro.1.optimise"):
        one, other = weights(run, node), weights(expected, node)
        assert all(np.array_equal(one[name], other[name]) for name in one | other), node


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """With another number of workers than the broken runs, so these comparisons also show that it changes nothing."""
    folder = tmp_path_factory.mktemp("unbroken")
    run = begin(folder, "workers.simulation=1")
    run.finish()
    return run


@pytest.mark.slow
def test_a_killed_simulation_worker_is_replaced_and_no_pair_is_lost_or_doubled(tmp_path, unbroken):
    run = begin(tmp_path)
    workers = run.wait_for(lambda: descendants(run.process.pid, "ray::Simulation.collect"))
    os.kill(workers[0], signal.SIGKILL)
    run.finish()
    assert_same_results(run, unbroken)


@pytest.mark.slow
def test_a_run_killed_in_stage_after_stage_resumes_to_the_bits_of_the_unbroken_run(tmp_path, unbroken):
    run = begin(tmp_path)
    moments = {
        "sft": lambda: run.lines("sft") >= 6,
        "rpro.1.collect": lambda: descendants(run.process.pid, "ray::Simulation.collect"),
        "rpro.1.optimise": lambda: run.lines("rpro.1.optimise") >= 5,
    }
    for node, reached in moments.items():
        run.wait_for(reached)
        run.kill_driver()
        assert run.status(node) == "running"
        run.resume()
    run.finish()
    assert_same_results(run, unbroken)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for node in ("sft", "rpro.1.optimise"):
        assert [line["step"] for line in lines if line["node"] == node and "loss" in line] == list(range(1, 13))


@pytest.mark.parametrize("staleness", [1, 2])
@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_lost_or_counted_twice(tmp_path, questions, policy, staleness, seed):
    run = FakeRun(tmp_path / "run", questions, policy, f"rl.staleness={staleness}", "rl.steps=8", "checkpoint_every=3")
    for step in np.random.default_rng(seed).integers(0, 9, 3).tolist():
        run.kill_at = step
        try:
            run.start()
        except Killed:
            assert_counted_once_so_far(run)
    run.kill_at = None
    run.start()
    assert_counted_once(run.out)
    assert [line["step"] for line in run.metrics()] == list(range(9))


def assert_counted_once_so_far(run: FakeRun) -> None:
    """No file of rollouts holds a group twice, whatever has been done by now."""
    rows = RolloutStore(run.out).read(columns=["step", "item", "group", "sample"])
    places = [(row["step"], row["group"], row["sample"]) for row in rows]
    assert len(set(places)) == len(places)
