"""One item of the pool in full, and items as files: what `show` and `export` give."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from algos.curriculum_items import BANDS, Array
from rl_lab.arguments import check_output
from rl_lab.errors import UserError
from rl_lab.json_lines import write_json_lines
from rl_lab.pool.tables import HEAD, item_cells
from rl_lab.pool.view import REASONS, PoolView, Row
from rl_lab.pool.why import beta_text
from rl_lab.reports.rollout_data import selection_text
from rl_lab.reports.terminal import columns

MOVES = ("step", "version", "rollouts", "failed", "mean", "spread", "signal", "posterior after it", "frontier", "band")
FIELDS = ("rate", "age", "band_probability", "last_mean", "last_spread", "version", "groups", "rollouts", "failures")
EXPORTED = ("id", "category", "task", "reward_type", "band", *FIELDS, "selections", "pinned", "retired", "pending")
BATCH = 10_000


def image_paths(view: PoolView, number: int, folder: Path) -> list[Path]:
    """Files with an item's pictures; those kept in the pool are written into `folder`. UserError if that fails."""
    paths, name = [], re.sub(r"[^\w.-]+", "_", view.item(number)["id"])
    for place, image in enumerate(view.images(number)):
        if isinstance(image, bytes):
            path = folder / f"{name}-{place}.png"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                path.write_bytes(image)
            except OSError as error:
                raise UserError(f"cannot write {path}: {error.strerror}; give --images FOLDER") from error
            paths.append(path)
        else:
            paths.append(image)
    return paths


def show(view: PoolView, item: str, rollouts: int, folder: Path) -> str:
    """The item, its pictures, how its posterior moved and its last rollouts."""
    number = view.number(item)
    about = view.item(number)
    pictures = [f"{path}{'' if path.is_file() else ' (missing)'}" for path in image_paths(view, number, folder)]
    parts = [columns(HEAD, [item_cells(view, number)], left=5), _content(about["content"])]
    parts.append("\n".join(["images", *(f"  {path}" for path in pictures)]) if pictures else "no image")
    parts.append(_moves(view, number))
    parts.append(_selected(view, number))
    return "\n\n".join([*parts, *_rollouts(view, item, rollouts)])


def _content(content: Row) -> str:
    shown = {key: value for key, value in content.items() if key != "images"}
    return "\n".join(f"{key}: {value if isinstance(value, str) else json.dumps(value)}" for key, value in shown.items())


def _moves(view: PoolView, number: int) -> str:
    rows = view.observations(number)
    if not rows:
        return f"never observed; prior {beta_text(view, None)}"
    cells = [
        [str(row["step"]), str(row["version"]), str(row["rollouts"]), str(row["failures"]), f"{row['mean']:.2f}"]
        + [f"{row['spread']:.2f}", "yes" if row["signal"] else "no", beta_text(view, row)]
        + [f"{row['band_probability']:.2f}", f"{BANDS[row['band_before']]} -> {BANDS[row['band']]}"]
        for row in rows[-20:]
    ]
    hidden = f"\n({len(rows) - 20} earlier groups are left out)" * (len(rows) > 20)
    return columns(MOVES, cells, left=0) + hidden


def _selected(view: PoolView, number: int) -> str:
    rows = view.selections(number)
    lines = [f"  {count} x {REASONS[reason]}" for reason, count in Counter(row["reason"] for row in rows).items()]
    steps = ", ".join(str(row["step"]) for row in rows[-12:])
    head = f"selected {len(rows)} times{f', last at steps {steps}' * bool(rows)}"
    edits = [f"  {edit['action']}: {_applied(edit['applied_step'])}" for edit in view.edits(number)]
    return "\n".join([head, *lines, *(["edits", *edits] if edits else [])])


def _applied(step: int | None) -> str:
    return "waits for the next selection" if step is None else f"step {step}"


def _rollouts(view: PoolView, item: str, last: int) -> Iterator[str]:
    found, problems = view.rollouts.newest([item], last)
    yield from problems
    if not found[item]:
        yield "no rollout of it is under rollouts/"
    for row in found[item]:
        rewards = ", ".join(f"{name} {_number(value)}" for name, value in row["rewards"].items()) or "no reward"
        fate = "".join(f"; {text}" for text in [selection_text(row)] if text)
        yield f"step {row['step']}, weight version {row['weight_version']}: {rewards}{fate}\n{row['completion']}"


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.3g}"


def exported(view: PoolView, numbers: Array) -> Iterator[Row]:
    """One flat row an item under EXPORTED, and its content."""
    for number in numbers.tolist():
        item, state = view.item(number), view.state(number)
        yield {name: (item | state | {"category": item["category"]})[name] for name in EXPORTED} | {
            "content": item["content"]
        }


def export(view: PoolView, numbers: Array, path: Path) -> None:
    """Write items as JSON lines or Parquet (by the suffix), whole or not at all. UserError for another suffix."""
    if path.exists() or not path.parent.is_dir():
        raise UserError(f"{path} exists or its folder does not; give a new file in an existing folder")
    check_output(path, view.place.run)
    if path.suffix == ".jsonl":
        write_json_lines(path, exported(view, numbers))
    elif path.suffix == ".parquet":
        _write_parquet(view, numbers, path)
    else:
        raise UserError(f"{path} must end in .jsonl or .parquet")


def _write_parquet(view: PoolView, numbers: Array, path: Path) -> None:
    """The same rows; content as a JSON string, because its keys differ between items."""
    import pyarrow
    import pyarrow.parquet

    texts, flags = ("id", "category", "task", "reward_type", "band", "content"), ("pinned", "retired", "pending")
    floats = ("rate", "band_probability", "last_mean", "last_spread")
    kinds = {**dict.fromkeys(texts, pyarrow.string()), **dict.fromkeys(flags, pyarrow.bool_())}
    kinds |= dict.fromkeys(floats, pyarrow.float64())
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.int64())) for name in (*EXPORTED, "content")])
    partial = path.with_name(f".{path.name}.partial")
    with pyarrow.parquet.ParquetWriter(partial, schema) as writer:
        for start in range(0, len(numbers), BATCH):
            rows = [
                row | {"content": json.dumps(row["content"])} for row in exported(view, numbers[start : start + BATCH])
            ]
            writer.write_table(pyarrow.Table.from_pylist(rows, schema))
    os.replace(partial, path)
