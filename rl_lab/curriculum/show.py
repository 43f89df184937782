"""What the pool commands print and export: lists of items, one in full, bands over time, differences of two pools."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from algos.curriculum.items import BANDS, FRONTIER, UNSEEN, Array
from rl_lab.common.arguments import check_output
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_json_lines
from rl_lab.common.terminal import columns
from rl_lab.curriculum.view import REASONS, PoolRow, PoolView
from rl_lab.curriculum.why import beta_text
from rl_lab.records.rollouts import reward_text, selection_text

LETTERS = dict(zip(BANDS, ".hFe-", strict=True))

BAR = 48

HEAD = ("item", "category", "task", "band", "state", "frontier", "rate", "last", "groups", "rollouts", "age")

MOVES = ("step", "version", "rollouts", "failed", "mean", "spread", "signal", "posterior after it", "frontier", "band")

FIELDS = ("rate", "age", "band_probability", "last_mean", "last_spread", "version", "groups", "rollouts", "failures")

EXPORTED = ("id", "category", "task", "reward_type", "band", *FIELDS, "selections", "pinned", "retired", "pending")

BATCH = 10_000


def state_text(state: PoolRow) -> str:
    """pinned, retired and pending as one word each."""
    return " ".join(name for name in ("pinned", "retired", "pending") if state[name])


def item_cells(view: PoolView, number: int) -> list[str]:
    """One item as a row under HEAD; frontier is a probability, age in weight versions."""
    item, state = view.item(number), view.state(number)
    last = f"{state['last_mean']:.2f}" if state["groups"] else ""
    age = "" if state["age"] is None else str(state["age"])
    counts = [f"{state['band_probability']:.2f}", f"{state['rate']:.2f}", last, str(state["groups"])]
    head = [item["id"], item["category"], item["task"], state["band"], state_text(state)]
    return [*head, *counts, str(state["rollouts"]), age]


def listing(view: PoolView, numbers: Array, limit: int) -> str:
    """The first items of a selection as a table, and how many there are."""
    rows = [item_cells(view, number) for number in numbers[:limit].tolist()]
    step, version = view.now
    when = f"step {step}, weight version {version}" if step >= 0 else "before the first selection"
    count = f"{len(rows)} of {len(numbers)} items that match, {len(view.items)} in all; {when}"
    return f"{columns(HEAD, rows, left=5)}\n\n{count}"


def history(view: PoolView, category: str | None, lines: int) -> str:
    """Bands at evenly spaced steps and now, and the flow between them."""
    code = slice(None) if category is None else slice(view.category_code(category), view.category_code(category) + 1)
    steps = view.steps()
    chosen = (
        sorted(set(np.linspace(0, len(steps) - 1, min(lines, len(steps))).round().astype(int).tolist()))
        if steps
        else []
    )
    entries = [(str(steps[i]["step"]), np.array(steps[i]["bands"])[code].sum(0)) for i in chosen]
    entries.append(("now", view.bands()[code].sum(0)))
    rows = [[name, _bar(counts), *(str(count) for count in counts.tolist())] for name, counts in entries]
    key = ", ".join(f"{LETTERS[name]} {name}" for name in BANDS if name != "unseen")
    table = columns(("step", "observed items by band", *BANDS), rows, left=2)
    return f"{table}\n\n{key}; counts at the start of the step, retired items left out\n{flow(view, category)}"


def _bar(counts: Array) -> str:
    """Observed items by band as a bar of letters, the largest remainders rounded up."""
    shown = counts.copy()
    shown[UNSEEN] = 0
    if not shown.sum():
        return ""
    quotas = BAR * shown / shown.sum()
    lengths = np.floor(quotas).astype(int)
    lengths[np.argsort(lengths - quotas, kind="stable")[: BAR - lengths.sum()]] += 1
    return "".join(LETTERS[name] * length for name, length in zip(BANDS, lengths.tolist(), strict=True))


def flow(view: PoolView, category: str | None) -> str:
    """How many groups moved an item from one band to another."""
    where, values = ("WHERE category = ?", (category,)) if category else ("", ())
    query = f"""SELECT band_before, band, COUNT(*) AS n FROM observations JOIN items USING (number) {where}
        GROUP BY band_before, band ORDER BY n DESC"""
    moves = [row for row in view.rows(query, *values) if row["band_before"] != row["band"]]
    texts = [f"{BANDS[row['band_before']]} -> {BANDS[row['band']]} {row['n']}" for row in moves]
    return f"moves over the whole run: {', '.join(texts) or 'none'}"


def difference(first: PoolView, second: PoolView, limit: int) -> str:
    """What is different in the second pool: settings, bands of shared items, and the items that moved most.

    UserError if the pools share no item.
    """
    here, there, ids = _shared(first, second)
    if not ids:
        raise UserError(f"{first.name} and {second.name} share no item; compare pools of the same items")
    counts = np.zeros((len(BANDS), len(BANDS)), np.int64)
    np.add.at(counts, (first.items.band[here], second.items.band[there]), 1)
    matrix = [[name, *(str(n) for n in row), str(row.sum())] for name, row in zip(BANDS, counts, strict=True)]
    parts = [f"A: {_title(first)}\nB: {_title(second)}", *_settings(first, second)]
    parts.append(
        f"{len(ids)} shared items, {len(first.items) - len(ids)} only in A, {len(second.items) - len(ids)} only in B"
    )
    parts.append(columns(("band in A \\ B", *BANDS, "sum"), matrix))
    both = np.flatnonzero((first.items.groups[here] > 0) & (second.items.groups[there] > 0))
    change = second.rate[there[both]] - first.rate[here[both]]
    order = np.argsort(-np.abs(change), kind="stable")[:limit]
    moved = [order_row for order_row in order.tolist() if change[order_row] != 0]
    if moved:
        rows = [_moved(first, second, here[i], there[i], ids[i]) for i in both[moved].tolist()]
        parts.append(
            columns(("moved most", "category", "band", "rate in A", "in B", "groups in A", "in B"), rows, left=3)
        )
    else:
        parts.append("No item that both have observed changed its pass rate.")
    return "\n\n".join(parts)


def _title(view: PoolView) -> str:
    step, version = view.now
    frontier = int((view.items.band == FRONTIER).sum())
    return f"{view.name}, step {step}, weight version {version}, {len(view.items)} items, {frontier} in the frontier"


def _settings(first: PoolView, second: PoolView) -> list[str]:
    a, b = ({"seed": view.meta.seed} | view.options.model_dump() for view in (first, second))
    rows = [[key, str(a.get(key)), str(b.get(key))] for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    return [columns(("setting", "A", "B"), rows, left=3)] if rows else []


def _moved(first: PoolView, second: PoolView, here: int, there: int, item: str) -> Sequence[str]:
    a, b = first.state(int(here)), second.state(int(there))
    band = a["band"] if a["band"] == b["band"] else f"{a['band']} -> {b['band']}"
    rates = [f"{a['rate']:.2f}", f"{b['rate']:.2f}", str(a["groups"]), str(b["groups"])]
    return [item, first.categories[a["category"]], band, *rates]


def _shared(first: PoolView, second: PoolView) -> tuple[Array, Array, list[str]]:
    """Numbers in both pools of the items that both have, and their ids."""
    there = {row["id"]: row["number"] for row in second.rows("SELECT id, number FROM items")}
    rows = [row for row in first.rows("SELECT id, number FROM items ORDER BY number") if row["id"] in there]
    ids = [row["id"] for row in rows]
    return np.array([row["number"] for row in rows], np.int64), np.array([there[i] for i in ids], np.int64), ids


def image_paths(view: PoolView, number: int, folder: Path) -> list[Path]:
    """Files with an item's pictures; those kept in the pool are written into `folder`. UserError if that fails."""
    paths, item = [], view.item(number)["id"]
    name = re.sub(r"[^\w.-]+", "_", item)
    if name != item:  # a file of its own for each of `a/b` and `a_b`
        name = f"{name}-{hashlib.sha256(item.encode()).hexdigest()[:8]}"
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
    content = "\n".join(f"{key}: {text}" for key, text in content_texts(about["content"]).items())
    parts = [columns(HEAD, [item_cells(view, number)], left=5), content]
    parts.append("\n".join(["images", *(f"  {path}" for path in pictures)]) if pictures else "no image")
    parts.append(_moves(view, number))
    parts.append(_selected(view, number))
    return "\n\n".join([*parts, *_rollouts(view, item, rollouts)])


def content_texts(content: PoolRow) -> dict[str, str]:
    """Each entry of an item's content as text, without its pictures."""
    shown = {key: value for key, value in content.items() if key != "images"}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in shown.items()}


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
        rewards = ", ".join(f"{name} {reward_text(value)}" for name, value in row["rewards"].items()) or "no reward"
        fate = "".join(f"; {text}" for text in [selection_text(row)] if text)
        yield f"step {row['step']}, weight version {row['weight_version']}: {rewards}{fate}\n{row['completion']}"


def exported(view: PoolView, numbers: Array) -> Iterator[PoolRow]:
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
