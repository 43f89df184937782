"""Processes are really killed; the run goes on, or is resumed, and ends with the bits of the unbroken run."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

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
PATIENCE_S = 240


class Run:
    """The command in a process of its own, with its own working directory and therefore its own stage store."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
        self.path = folder / "run"
        self.log = folder / "log.txt"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-m", "rl_lab.run", *arguments]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)

    def wait_for(self, reached) -> None:
        """Until `reached()` is true; fails with the log if the run ends or time runs out first."""
        deadline = time.monotonic() + PATIENCE_S
        while not reached():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)

    def finish(self) -> None:
        code = self.process.wait(PATIENCE_S)
        assert code == 0, self.log.read_text()

    def status(self, name: str) -> str:
        path = self.path / "stages.json"
        if not path.is_file():
            return "pending"
        rows = json.loads(path.read_text())["nodes"]
        return next(row["status"] for row in rows if row["name"] == name)

    def steps_logged(self, node: str) -> int:
        path = self.path / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return sum(f'"node": "{node}"' in line for line in lines)


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


def descendants(pid: int, title: bytes) -> list[int]:
    """Processes below `pid` whose command line starts with `title`."""
    parents, found = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        number = int(path.name)
        parents[number] = int(stat.rpartition(")")[2].split()[1])
        if command.startswith(title):
            found.append(number)

    def is_below(number: int) -> bool:
        while number in parents:
            number = parents[number]
            if number == pid:
                return True
        return False

    return [number for number in found if is_below(number)]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """With another number of workers than the broken runs, so these comparisons also show that it changes nothing."""
    folder = tmp_path_factory.mktemp("unbroken")
    run = Run(folder, "tiny.yaml", "--run-dir", "run", "workers.simulation=1")
    run.finish()
    return run


@pytest.mark.slow
def test_a_killed_simulation_worker_is_replaced_and_no_pair_is_lost_or_doubled(tmp_path, unbroken):
    run = Run(tmp_path, "tiny.yaml", "--run-dir", "run")
    workers: list[int] = []

    def collecting() -> bool:
        workers[:] = descendants(run.process.pid, b"ray::Simulation.collect")
        return bool(workers)

    run.wait_for(collecting)
    os.kill(workers[0], signal.SIGKILL)
    run.finish()
    assert_same_results(run, unbroken)


@pytest.mark.slow
def test_a_run_killed_in_stage_after_stage_resumes_to_the_bits_of_the_unbroken_run(tmp_path, unbroken):
    run = Run(tmp_path, "tiny.yaml", "--run-dir", "run")
    moments = {
        "sft": lambda: run.steps_logged("sft") >= 6,
        "rpro.1.collect": lambda: descendants(run.process.pid, b"ray::Simulation.collect"),
        "rpro.1.optimise": lambda: run.steps_logged("rpro.1.optimise") >= 5,
    }
    for node, reached in moments.items():
        run.wait_for(reached)
        run.process.kill()
        run.process.wait()
        assert run.status(node) == "running"
        run = Run(tmp_path, "--resume", "run")
    run.finish()
    assert_same_results(run, unbroken)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    for node in ("sft", "rpro.1.optimise"):
        assert [line["step"] for line in lines if line["node"] == node and "loss" in line] == list(range(1, 13))
