"""The browser of preference pairs: which pairs are shown, and the data that its script draws."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from PIL import Image

from rl_lab.common.reading import DAMAGE
from rl_lab.reports.numbers import spread
from rl_lab.reports.pages.markup import Markup, macros, parts, webp
from rl_lab.reports.run import LoadedRun, Pair, PairSet, label

PAIRS_A_ROUND = 12
FRAMES = 20
"""Frames kept of each segment, evenly spaced."""
MAX_SIDE = 96
"""Larger camera images are scaled down to this side, pixels."""
BUDGET_BYTES = 6_000_000
"""All pairs of a page together; the rest stays in the run folder."""
META = tuple(field.name for field in fields(Pair) if field.name != "id")


@dataclass(frozen=True)
class Shown:
    """A pair chosen for the page."""

    pair_set: PairSet
    pair: Pair


def choose(pair_sets: list[PairSet], limit: int = PAIRS_A_ROUND) -> list[Shown]:
    """Up to `limit` pairs of each set, evenly spaced; the sets take turns, so that a budget is shared fairly."""
    columns = [[Shown(chosen, chosen.index[i]) for i in spread(len(chosen.index), limit)] for chosen in pair_sets]
    turns = range(max(map(len, columns), default=0))
    return [column[turn] for turn in turns for column in columns if turn < len(column)]


def distinct_sets(pair_sets: list[PairSet]) -> dict[str, tuple[PairSet, list[PairSet]]]:
    """Sets by node, each with those that share its stage: methods that start from one policy collect only once."""
    found: dict[str, tuple[PairSet, list[PairSet]]] = {}
    by_hash: dict[str, str] = {}
    for pair_set in pair_sets:
        first = by_hash.setdefault(pair_set.digest or pair_set.node, pair_set.node)
        if first == pair_set.node:
            found[first] = (pair_set, [])
        else:
            found[first][1].append(pair_set)
    return found


def sprite(images: np.ndarray, steps: list[int]) -> str:
    """Frames as one WebP data address: cameras side by side, steps below one another; images uint8 [T, 3, S, S, 3]."""
    frames = images[steps]
    size = frames.shape[2]
    sheet = Image.fromarray(frames.transpose(0, 2, 1, 3, 4).reshape(len(steps) * size, -1, 3))
    if size > MAX_SIDE:
        sheet = sheet.resize((sheet.width * MAX_SIDE // size, len(steps) * MAX_SIDE))
    return webp(sheet, 72)


def segment_data(poses: np.ndarray, images: np.ndarray) -> dict[str, Any]:
    """Both arms' xyz in millimetres, the gripper, and the frames with their steps; poses [T + 1, 16]."""
    arms = np.asarray(poses, dtype=np.float64).reshape(len(poses), 2, 8)
    if not np.isfinite(arms).all():
        raise ValueError("poses are not finite")
    steps = spread(len(images), FRAMES)
    return {
        "steps": len(poses) - 1,
        "arms": (1000 * arms[..., :3]).round().astype(int).transpose(1, 0, 2).tolist(),
        "gripper": arms[..., 7].round(2).T.tolist(),
        "frames": steps,
        "sprite": sprite(images, steps),
    }


def pair_data(shown: Shown) -> dict[str, Any]:
    """One pair as the script reads it; raises what is in `DAMAGE` if its file is unusable."""
    path = shown.pair_set.folder / f"{shown.pair.id}.npz"
    with np.load(path, allow_pickle=False) as arrays:
        sides = {side: segment_data(arrays[f"{side}_poses"], arrays[f"{side}_images"]) for side in ("winner", "loser")}
    known = {key: value for key in META if (value := getattr(shown.pair, key)) is not None}
    meta = {key.replace("_", " "): str(value) for key, value in known.items()}
    return {"id": shown.pair.id, "node": shown.pair_set.node, "meta": meta, **sides}


def load_pairs(run: LoadedRun, budget: int = BUDGET_BYTES) -> list[dict[str, Any]]:
    """Data of the chosen pairs within the budget of bytes; unusable files become problems of the run."""
    loaded, used = [], 0
    for shown in choose([pair_set for pair_set, _ in distinct_sets(run.pairs).values()]):
        try:
            data = pair_data(shown)
        except DAMAGE as error:
            run.problems.append(f"pair {shown.pair.id} of {shown.pair_set.node} cannot be read: {error}")
            continue
        used += sum(len(data[side]["sprite"]) + 12 * len(data[side]["arms"][0]) * 3 for side in ("winner", "loser"))
        if used > budget:
            break
        loaded.append(data)
    return loaded


def _counts(pair_set: PairSet) -> dict[str, Any]:
    """Counts of a collection, nested ones as `outer/inner`."""
    flat: dict[str, Any] = {}
    for key, value in pair_set.counts.items():
        if key == "agreement":  # of ranked chunks; see `action_rewards`
            continue
        flat |= {f"{key}/{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def collection_table(run: LoadedRun) -> Markup:
    """What each collection spent, found and dropped."""
    counts = [_counts(pair_set) for pair_set in run.pairs]
    names = list(dict.fromkeys(name for row in counts for name in row))
    head = ["Collection", *(name.replace("_", " ").replace("/", ": ") for name in names)]
    rows = [[p.label, *(row.get(n, 0) for n in names)] for p, row in zip(run.pairs, counts, strict=True)]
    return parts.table(head, rows, css="numbers")


def _title(pair_set: PairSet, others: list[PairSet]) -> str:
    shared = f", shared with {', '.join(label(p.method) for p in others)}" if others else ""
    return f"{pair_set.label}{shared} ({len(pair_set.index)} pairs)"


def pair_browser(run: LoadedRun) -> Markup:
    """Collection counts and the browser; its script is `page.js`."""
    if not run.pairs:
        return parts.missing("pairs", "Preference pairs", "No preference pair is in this run folder.")
    pairs, sets = load_pairs(run), distinct_sets(run.pairs)
    titles = {node: _title(*both) for node, both in sets.items()}
    groups = [{"node": n, "title": t} for n, t in titles.items() if any(p["node"] == n for p in pairs)]
    head = ["pair", *(key.replace("_", " ") for key in META)]
    return macros("actions").pairs(
        collections=collection_table(run),
        data={"groups": groups, "pairs": pairs},
        total=sum(len(pair_set.index) for pair_set, _ in sets.values()),
        a_round=PAIRS_A_ROUND,
        listing=parts.table(
            head, [[p["id"], *(p["meta"].get(key, "") for key in head[1:])] for p in pairs], css="small"
        ),
    )
