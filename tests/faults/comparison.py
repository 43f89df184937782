"""What two runs of the same experiment must have the same to the bit: everything they leave but wall times."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from rl_lab.common.files import read_json_lines

VOLATILE = ("time", "seconds", "idle", "busy", "wall", "started", "per_second", "memory")
"""First words of the names of what is measured in seconds or bytes of the machine."""


def is_volatile(name: str) -> bool:
    """Whether a value of this name may differ between runs."""
    return name.startswith(VOLATILE) or name.endswith(("_s", "/s", "_seconds"))


def plain(value: Any) -> Any:
    """A JSON value without what may differ."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if not is_volatile(key)}
    return [plain(item) for item in value] if isinstance(value, list) else value


def _database(path: Path) -> dict[str, list[tuple]]:
    """All tables of an SQLite file."""
    with closing(sqlite3.connect(f"file:{path}?immutable=1", uri=True)) as db:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%' ORDER BY name"
        found = {}
        for (table,) in db.execute(query).fetchall():
            names = [row[1] for row in db.execute(f"PRAGMA table_info({table})") if not is_volatile(row[1])]
            found[table] = sorted(db.execute(f"SELECT {', '.join(names)} FROM {table}").fetchall(), key=repr)
        return found


def _arrays(path: Path) -> dict[str, tuple]:
    with np.load(path) as arrays:
        return {name: (arrays[name].dtype.str, arrays[name].shape, arrays[name].tobytes()) for name in arrays}


def _record(path: Path) -> Any:
    """A stage's record; the digests in it are those of files with wall times."""
    return plain({key: value for key, value in json.loads(path.read_text()).items() if key != "files"})


READERS: dict[str, Callable[[Path], Any]] = {
    "stage.json": _record,
    ".json": lambda path: plain(json.loads(path.read_text())),
    ".jsonl": lambda path: plain(read_json_lines(path)),
    ".sqlite": _database,
    ".npz": _arrays,
}
"""By name or suffix; all other files are compared byte by byte."""


def content(path: Path) -> Any:
    """What of a file must be the same."""
    read = READERS.get(path.name) or READERS.get(path.suffix)
    return path.read_bytes() if read is None else read(path)


def _files(folder: Path) -> dict[str, Path]:
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def _by_node(run: Path) -> dict[str, list[Any]]:
    """Lines of metrics of each stage, in order; stages that run side by side mix theirs by chance."""
    found = defaultdict(list)
    for line in read_json_lines(run / "metrics.jsonl"):
        found[line["node"]].append(plain(line))
    return dict(found)


def differences(one: Path, other: Path) -> Iterator[str]:
    """Names of what differs between two working directories, each with a finished run in `run` and its own store."""
    names = {row["hash"]: row["name"] for row in json.loads((one / "run" / "stages.json").read_text())["nodes"]}
    folders = [_files(home / "runs" / ".stages") for home in (one, other)]
    for name in sorted(folders[0].keys() ^ folders[1].keys()):
        yield f"{names.get(name.split('/')[0])}: only one has {name}"
    for name in sorted(folders[0].keys() & folders[1].keys()):
        if content(folders[0][name]) != content(folders[1][name]):
            yield f"{names.get(name.split('/')[0])}: {name}"
    lines = [_by_node(home / "run") for home in (one, other)]
    for node in sorted(lines[0].keys() | lines[1].keys()):
        if lines[0].get(node) != lines[1].get(node):
            yield f"metrics of {node}"
    summaries = [content(home / "run" / "summary.json") for home in (one, other)]
    if summaries[0] != summaries[1]:
        yield "summary.json"
