"""All checks of a device in the order of their worth, each with its time limit, within one budget.

Results are rows of a table (`rl_lab.benchmarks.gpu.table`), printed as they come and kept as JSON and Markdown. On a
CPU the same checks run on a small model, as a rehearsal: rows that need CUDA say so.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field

from envs.options import AtLeastOne
from rl_lab.benchmarks.gpu.chunks import compiled_latency, latency
from rl_lab.benchmarks.gpu.parity import parity
from rl_lab.benchmarks.gpu.process import Check, rows_of
from rl_lab.benchmarks.gpu.state import one_rank, resumed
from rl_lab.benchmarks.gpu.steps import rpro, training, waits
from rl_lab.benchmarks.gpu.table import Row, Table, head, in_words, skipped
from rl_lab.benchmarks.options import Device, check_device

Minutes = Annotated[int, Field(gt=0, le=24 * 60)]
Name = Literal["parity", "waits", "resume", "ranks", "step", "rpro", "chunk", "compile"]
EVERYTHING: tuple[Name, ...] = get_args(Name)
RESERVE_S = 20
"""Of the budget, for the start of the command and its end."""


@dataclass(frozen=True)
class Planned:
    """One process: what it checks, on what, and how long it may take."""

    name: Name
    check: Check
    words: str
    limit_s: float
    options: dict[str, Any] = field(default_factory=dict)


def planned(small: str, large: str | None) -> list[Planned]:
    """The checks of a device that runs a small model and, if there is one, a large one."""
    some = {"preset": small}
    found = [
        *(Planned("parity", parity, p, 60, {"precision": p}) for p in ("float32", "bfloat16")),
        Planned("waits", waits, small, 60, some),
        Planned("step", training, f"{small}, full", 90, {**some, "lora": False}),
        Planned("step", training, f"{small}, LoRA", 90, {**some, "lora": True}),
        Planned("chunk", latency, small, 60, some),
    ]
    if large is not None:
        found += [
            Planned("step", training, f"{large}, LoRA", 150, {"preset": large, "lora": True}),
            Planned("step", training, f"{large}, full", 150, {"preset": large, "lora": False}),
            Planned("chunk", latency, large, 90, {"preset": large}),
        ]
    found += [
        Planned("rpro", rpro, f"{small}, full", 60, {**some, "lora": False}),
        Planned("resume", resumed, f"{small}, deterministic", 60, {**some, "deterministic": True}),
        Planned("resume", resumed, small, 60, {**some, "deterministic": False}),
        Planned("ranks", one_rank, small, 60, some),
    ]
    if large is not None:
        found.append(Planned("rpro", rpro, f"{large}, LoRA", 120, {"preset": large, "lora": True}))
    found.append(Planned("compile", compiled_latency, small, 150, some))
    if large is not None:
        found.append(Planned("compile", compiled_latency, large, 180, {"preset": large}))
    return found


def measured(one: Planned, device: str, deadline: float) -> Iterator[Row]:
    """Rows of one check, named; the last says how long it took."""
    start = time.monotonic()
    limit_s = min(one.limit_s, deadline - start) if device == "cuda" else deadline - start
    if limit_s <= 0:
        yield skipped("", "the budget is spent")
        return
    yield from rows_of(one.check, {"device": device, **one.options}, limit_s)
    yield Row("time of the whole check", time.monotonic() - start, "s")


def run(
    device: Device = "cuda",
    budget: Minutes = 12,
    checks: AtLeastOne[Name] = EVERYTHING,
    folder: str = ".",
) -> list[dict[str, Any]]:
    """Rows of all checks. `budget` are minutes for everything: what does not fit says so. `folder` gets bench_gpu.json
    and bench_gpu.md, written anew after each row. UserError for a device that is not there."""
    check_device(device)
    deadline = time.monotonic() + 60 * budget - RESERVE_S
    started = datetime.now(UTC).isoformat(timespec="seconds")
    command = f"python -m rl_lab.bench gpu device={device} budget={budget} checks=[{', '.join(checks)}]"
    table = Table(Path(folder), head(device, started, command))
    small, large = ("mini", "mot-2b") if device == "cuda" else ("nano", None)
    for one in planned(small, large):
        if one.name not in checks:
            continue
        for row in measured(one, device, deadline):
            table.add(replace(row, check=f"{one.name}: {one.words}"))
            print(f"{one.name}: {one.words}: {row.what} {in_words(row.value)} {row.unit} {row.note}", file=sys.stderr)
    return [{"check": row.check, "what": row.what, "value": row.value, "unit": row.unit} for row in table.rows]
