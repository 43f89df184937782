"""How fast stored traces stream through the selection of rejection-sampling fine-tuning, in how much memory and disk.

    python -m rl_lab.bench rft candidates=1000000

The traces are made up: words drawn at random, a tenth copied from the item's trace before and some looping; items are
never to always solved. The judge is a function that knows a score at once: an endpoint's own time is not
measured. The selection runs in a process of its own, so that its peak is not that of writing the traces.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from algos.rft import RFTOptions
from envs.options import PositiveInt, Rows, Tokens
from envs.spatial_qa.items import Item
from rl_lab.benchmarks.processes import figures_of, memory_mib
from rl_lab.common.errors import UserError
from rl_lab.records.rollouts import FOLDER, KEPT_FILE, RolloutRow, RolloutStore
from rl_lab.records.types import Completion, Prompt, RolloutGroup
from rl_lab.stages.rft_selection import RFT_FILE, RFTSelection

VOCABULARY = np.array([f"word{number}" for number in range(2000)])
OPTIONS = RFTOptions(min_judge_score=0.3)
SAMPLES = 8
MIB = 2**20


def run(
    candidates: PositiveInt = 1_000_000, per_step: Rows = 512, words: Tokens = 80, folder: str | None = None
) -> list[dict[str, Any]]:
    """One selection; `folder`: where the temporary one for the traces is made."""
    if candidates < per_step:
        raise UserError(f"candidates is {candidates}, fewer than the {per_step} of a step; give more, or less per_step")
    if folder is not None and not Path(folder).is_dir():
        raise UserError(f"folder {folder} is no folder; make it first")
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        run_folder = Path(scratch)
        began = time.perf_counter()
        write_traces(run_folder, candidates // per_step, per_step, words)
        written_s = time.perf_counter() - began
        found = figures_of("rl_lab.benchmarks.rft", run_folder)
        rollouts = sum(path.stat().st_size for path in (run_folder / FOLDER).iterdir())
        return [
            {
                "candidates": found["candidates"],
                "kept": found["kept"],
                "seconds": found["seconds"],
                "candidates/s": found["candidates"] / found["seconds"],
                **{f"{name} s": seconds for name, seconds in found["passes"].items()},
                "before MiB": found["before"],
                "peak MiB": found["peak"],
                "rollouts MiB": rollouts / MIB,
                "state MiB at most": found["state"] / MIB,
                "state MiB": (run_folder / RFT_FILE).stat().st_size / MIB,
                "kept MiB": (run_folder / KEPT_FILE).stat().st_size / MIB,
                "writing them s": written_s,
            }
        ]


def write_traces(run_folder: Path, num_steps: int, per_step: int, words: int) -> None:
    """Steps that differ in their items only; the rules compare traces within an item."""
    store, rng = RolloutStore(run_folder), np.random.default_rng(0)
    items = [str(place // SAMPLES) for place in range(per_step)]
    store.write(1, _groups(rng, items, words))
    table = pq.read_table(store.path(1))
    place = table.column_names.index("item")
    for step in range(2, num_steps + 1):
        names = pa.array([f"{step}-{item}" for item in items])
        numbered = table.set_column(place, "item", names)
        numbered = numbered.set_column(table.column_names.index("step"), "step", pa.array([step] * per_step))
        pq.write_table(numbered, store.path(step), compression="zstd")


def _groups(rng: np.random.Generator, items: Sequence[str], words: int) -> list[RolloutGroup]:
    groups, before = list[RolloutGroup](), dict[str, np.ndarray]()
    for item in items:
        ids = rng.integers(0, len(VOCABULARY), rng.integers(words // 2, words * 3 // 2))
        if rng.random() < 0.1:
            ids = before.get(item, ids)
        if rng.random() < 0.05:
            ids = np.resize(ids[:5], len(ids))
        if item not in before:
            question = Item(item, "perception", "none", "text", 0, "none:0", {}, f"question {item}", (), "", "")
            groups.append(RolloutGroup(question, Prompt(()), []))
        before[item] = ids
        completion = Completion(
            prompt_tokens=tuple(range(64)),
            tokens=tuple(ids.tolist()),
            logprobs=tuple((-rng.random(len(ids))).tolist()),
            weight_version=1,
            finished=bool(rng.random() > 0.05),
            text=" ".join(VOCABULARY[ids]),
            token_texts=tuple(VOCABULARY[ids].tolist()),
            reward=float(rng.random() < int(item) % 9 / 8),
        )
        groups[-1].completions.append(completion)
    return groups


def measure(run_folder: Path) -> dict[str, Any]:
    """A selection in this process: what it chose, seconds of its passes, peak memory (MiB) and state (bytes)."""
    passes: dict[str, float] = {}
    state, now = 0, ("", time.perf_counter())

    def tell(name: str, done: int, total: int) -> None:
        nonlocal state, now
        if name != now[0] and now[0]:
            passes[now[0]] = time.perf_counter() - now[1]
        if name != now[0]:
            now = (name, time.perf_counter())
            state = max(state, sum(path.stat().st_size for path in run_folder.glob(f"{RFT_FILE}*")))

    before, began = memory_mib("VmRSS"), time.perf_counter()
    summary = RFTSelection(run_folder, OPTIONS, judge).finish(tell)
    passes[now[0]] = time.perf_counter() - now[1]
    figures = {"seconds": time.perf_counter() - began, "passes": passes, "before": before, "state": state}
    return figures | {"peak": memory_mib("VmHWM"), "candidates": summary.candidates, "kept": summary.kept}


def judge(rows: Sequence[RolloutRow]) -> list[float]:
    """Scores of traces from 0 to 1 that depend on their lengths alone."""
    return [len(row["completion"]) % 11 / 10 for row in rows]


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(measure(Path(sys.argv[1]))))
