"""Episodes that end differently under two policies, side by side, as animated pictures inside the page."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

from rl_lab.files import Record
from rl_lab.reports.markup import Markup, macros, parts
from rl_lab.reports.rundir import BASE, RunFolder, label, parse_node

ACTIONS = macros("actions")
VIDEO_BUDGET_BYTES = 4_500_000
"""Both sides of all embedded videos; the rest stays in the run folder."""
SIDES = ("before", "after")


def _picture(path: Path) -> str:
    return "data:image/webp;base64," + base64.b64encode(path.read_bytes()).decode()


def _policy(run: RunFolder, node: str) -> str:
    """Readable name of the policy that a node trained: method and round, or variant and training seed."""
    method, number = parse_node(node)
    if run.config.get("sweep"):
        return f"{label(method)}, training seed {number}"
    return label(BASE if method == "sft" else method, number)


def _video(run: RunFolder, folder: Path, record: Record) -> Markup:
    """One episode under both policies."""
    sides = []
    for side in SIDES:
        end = str(record.get(f"{side}_failure") or "success").replace("_", " ")
        text = f"{_policy(run, str(record.get(f'{side}_node', side)))}: {end}"
        sides.append((_picture(folder / record[side]), text))
    return ACTIONS.video(f"{record.get('task')}, {record.get('variant')}, seed {record.get('seed')}", sides)


def _playable(run: RunFolder) -> Iterator[tuple[Path, Record]]:
    """Folder and line of every recorded episode whose files are there; of the others a problem of the run."""
    for folder, index in run.videos:
        for record in index:
            files = [folder / str(record.get(side)) for side in SIDES]
            if all(file.is_file() and file.parent == folder for file in files):
                yield folder, record
            else:
                run.problems.append(f"a video listed in {folder.name} is missing")


def filmed(run: RunFolder, budget: int = VIDEO_BUDGET_BYTES) -> list[tuple[str, Markup]]:
    """Name of the folder and both films of each recorded episode, within the budget of bytes."""
    shown, used = [], 0
    for folder, record in _playable(run):
        used += sum((folder / record[side]).stat().st_size for side in SIDES)
        if used > budget:
            break
        shown.append((folder.name, _video(run, folder, record)))
    return shown


def videos(run: RunFolder) -> Markup:
    """Episodes that went from failure to success."""
    count = sum(len(index) for _, index in run.videos)
    if not count:
        return parts.missing("videos", "From failure to success", "No videos are in this run folder.")
    return ACTIONS.videos([film for _, film in filmed(run)], count)
