"""A curriculum pool of a million items: opening it, selecting a batch, writing its results, and the memory it takes.

The pool is synthetic: four fifths of the items have been observed in groups of 16 at weight versions up to 300, pass
rates are Beta(0.3, 0.3). A step is `select` and `observe` of one batch, both on disk (write-ahead log, in a temporary
folder); wall time, which on a busy machine includes waiting, and CPU time of this process. Opening and memory are those
of a process of its own: growth of its peak resident memory over what importing the lab takes.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from algos.curriculum.options import CurriculumOptions, Scheme
from envs.options import PositiveInt, Rows
from rl_lab.benchmarks.processes import figures_of, memory_mib
from rl_lab.common.errors import UserError
from rl_lab.curriculum.store import POOL_FILE, PoolItem, PoolStore

CATEGORIES = ("perception", "prediction", "interaction", "planning")
GROUP = 16
VERSION = 300
PROMPT = "Which of the marked objects can the left arm reach without moving the base? Answer with one letter. /think"


def build(path: Path, items: int, batch: int, scheme: str) -> None:
    """Write the synthetic pool."""
    content = {"prompt": PROMPT, "answer": "B"}
    rows = (PoolItem(f"item-{i:07d}", CATEGORIES[i * 7 % 11 % 4], "reach", "choice", content) for i in range(items))
    store = PoolStore.create(path, CurriculumOptions(batch_size=batch, scheme=scheme), 0, CATEGORIES, rows)
    rng = np.random.default_rng(0)
    for numbers in np.array_split(rng.permutation(items)[: items * 4 // 5], max(items // 50_000, 1)):
        rewards = rng.random((len(numbers), GROUP)) < rng.beta(0.3, 0.3, len(numbers))[:, None]
        store.observe(0, numbers, rewards.astype(float), rng.integers(0, VERSION, len(numbers)))
    store.close()


def _timed(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Milliseconds of wall and CPU time, and the result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = function()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu), result


def measure(path: Path, steps: int) -> dict[str, Any]:
    """Open a pool and run steps on it: milliseconds and MiB; to be called in a fresh process."""
    before = memory_mib("VmHWM")
    open_wall, open_cpu, store = _timed(lambda: PoolStore(path))
    rng, times = np.random.default_rng(1), []
    for step in range(1, steps + 1):
        selected = _timed(partial(store.select, step, VERSION + step))
        numbers = selected[2].numbers
        rewards = (rng.random((len(numbers), GROUP)) < 0.5).astype(float)
        versions = np.full(len(numbers), VERSION + step)
        observed = _timed(partial(store.observe, step, numbers, rewards, versions))
        times.append((*selected[:2], *observed[:2]))
    peak = memory_mib("VmHWM")
    saved = _timed(lambda: store.checkpoint(path.parent / "checkpoint"))
    store.close()
    return {"open": [open_wall, open_cpu], "steps": times, "memory": [peak - before, peak], "checkpoint": saved[:2]}


def run(
    items: PositiveInt = 1_000_000,
    batch: Rows = 128,
    steps: PositiveInt = 50,
    scheme: Scheme = "frontier",
) -> list[dict[str, Any]]:
    """Build the pool, measure it in a process of its own, and return the table's rows."""
    if batch > items:
        raise UserError(f"batch is {batch}, but the pool has {items} items; give at most as many")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / POOL_FILE
        built = _timed(lambda: build(path, items, batch, scheme))
        result = figures_of("rl_lab.benchmarks.pool", path, steps)
        size = path.stat().st_size / 2**20
    times = np.array(result["steps"])
    parts = {
        "select and observe": times[:, [0, 1]] + times[:, [2, 3]],
        "select": times[:, :2],
        "observe": times[:, 2:],
    }
    rows = [
        {
            "name": name,
            "unit": "ms",
            "cpu": float(np.median(part[:, 1])),
            "cpu_95": float(np.percentile(part[:, 1], 95)),
        }
        | {"wall": float(np.median(part[:, 0])), "wall_95": float(np.percentile(part[:, 0], 95))}
        for name, part in parts.items()
    ]
    once = {"open": result["open"], "checkpoint": result["checkpoint"], "build (once)": built[:2]}
    rows += [{"name": name, "unit": "ms", "cpu": pair[1], "wall": pair[0]} for name, pair in once.items()]
    memory = {"memory of the pool": result["memory"][0], "memory of the process": result["memory"][1], "file": size}
    return [*rows, *({"name": name, "unit": "MiB", "cpu": "", "wall": value} for name, value in memory.items())]


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), int(sys.argv[2]))))
