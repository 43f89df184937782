"""The language smoke run, whole or only its reinforcement learning, and what two runs must have the same to the bit."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from rl_lab import run
from rl_lab.common.files import read_json_lines
from rl_lab.records.rollouts import RolloutStore
from rl_lab.stages.kinds import stage_functions
from rl_lab.workers.cluster import Cluster
from tests.support.pools import content
from tests.support.processes import Run, descendants

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "experiments" / "frontier_smoke.yaml"
NODE = "frontier.1.grpo"
TRAINING = ("stages=[questions, cold_start, grpo]", "wandb=disabled", "rl.steps=6")
"""What is changed of the smoke run where only its reinforcement learning matters."""
PATIENCE_S = 240
TIMES = ("time", "seconds/", "idle/")


def steps_logged(path: Path, node: str = NODE) -> int:
    """Steps of a node in a run folder's metrics, the examination before the first not counted."""
    lines = read_json_lines(path / "metrics.jsonl", missing_ok=True)
    return sum(line["node"] == node and line["step"] > 0 for line in lines)


def here(cluster: Cluster, folder: Path, *arguments: str) -> int:
    """`python -m rl_lab.run` in this process, with workers that outlive it; the exit code."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return run.main(arguments, lambda config: nullcontext(stage_functions(cluster)))
    finally:
        os.chdir(before)


def with_stages(source: Path, folder: Path) -> Path:
    """A working directory whose store has the stages before reinforcement learning, as `source` made them."""
    store = source / "runs" / ".stages"
    for stage in store.iterdir():
        if (stage / "train.arrow").is_file() or ((stage / "lab.json").is_file() and not (stage / "rollouts").is_dir()):
            shutil.copytree(stage, folder / "runs" / ".stages" / stage.name)
    return folder


class LanguageRun(Run):
    """The command in a process of its own, which may be killed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        (folder / "smoke.yaml").write_text(SMOKE.read_text())
        super().__init__(folder, *arguments)

    def steps(self) -> int:
        """Steps that are in its metrics."""
        return steps_logged(self.path)


@contextmanager
def meanwhile(action: Callable[[], None]) -> Iterator[None]:
    """Do something while the body runs; its error is raised at the end."""
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    yield
    thread.join(PATIENCE_S)
    if errors:
        raise errors[0]


def wait_until(reached: Callable[[], Any]) -> Any:
    """What `reached` gives as soon as it is true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
    return found


def worker(title: str) -> list[int]:
    """Processes of this process's Ray that do what the title says."""
    return descendants(os.getpid(), title)


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of the training node without times."""
    found = [line for line in read_json_lines(path / "metrics.jsonl") if line["node"] == NODE]
    return [{key: value for key, value in line.items() if not key.startswith(TIMES)} for line in found]


def assert_same_run(path: Path, expected: Path) -> None:
    """Weights, pool, rollouts with their log-probabilities, examinations and metrics have the same bits."""
    one, other = path / "grpo" / NODE, expected / "grpo" / NODE
    assert RolloutStore(one).read() == RolloutStore(other).read()
    assert content(one / "pool.sqlite") == content(other / "pool.sqlite")
    assert read_json_lines(one / "held_out.jsonl") == read_json_lines(other / "held_out.jsonl")
    weights, wanted = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert all(np.array_equal(weights[name], wanted[name]) for name in weights | wanted)
    assert lines(path) == lines(expected)
    assert_counted_once(one)


def assert_counted_once(folder: Path) -> None:
    """Every selected item has one group of rollouts, and the pool one observation of its rewards; nothing else does."""
    rows = RolloutStore(folder).read()
    assert rows and all(row["tokens"] and len(row["logprobs"]) == len(row["tokens"]) for row in rows)
    pool = content(folder / "pool.sqlite")
    ids = {number: item for number, item, *_ in pool["items"]}
    groups: dict[tuple[int, str, int], list[float]] = {}
    for row in rows:
        groups.setdefault((row["step"], row["item"], row["group"]), []).append(row["reward"])
    selected = sorted((step, ids[number]) for step, _, _, number, *_ in pool["selections"])
    assert sorted((step, item) for step, item, _ in groups) == selected
    observed = sorted((step, ids[number], count, mean) for number, step, _, count, _, mean, *_ in pool["observations"])
    assert observed == sorted((step, item, len(r), float(np.mean(r))) for (step, item, _), r in groups.items())
