"""Episodes, preference pairs and sampled chunks on disk: one compressed array file a record, one index line each.

Files are plain arrays and JSON lines, so that a notebook reads them without the lab.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from envs.types import Candidates, Episode, PreferencePair, Segment
from rl_lab.errors import UserError
from rl_lab.formats.damaged import DAMAGE, read_arrays
from rl_lab.formats.labels import ARRAYS, BEFORE, SEGMENTS, Labels, labels_of, read_labels
from rl_lab.formats.stored_images import StoredImages
from rl_lab.json_lines import read_json_lines, write_json_lines
from rl_lab.reading import fit

INDEX_FILE = "index.jsonl"
_SEGMENT_ARRAYS = ("poses", "actions", "images")
_STORED = "images"
"""Label of an episode whose images lie elsewhere."""
_STEPS = [f"{side}_steps" for side in SEGMENTS]
"""Labels of pairs that tell what the arrays tell, for who reads the index alone."""
Arrays = dict[str, Any]
"""Name -> numpy array."""
Record = TypeVar("Record")


def _write_records(folder: Path, kind: str, records: Iterable[tuple[Arrays, Labels]]) -> None:
    """Write `<kind>-0000.npz`, ... and the index with the labels of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (arrays, labels) in enumerate(records):
        name = f"{kind}-{number:04d}"
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        rows.append({"id": name, **labels})
    write_json_lines(folder / INDEX_FILE, rows)


def _read_records(folder: Path, make: Callable[[Arrays, Labels, str], Record]) -> list[Record]:
    """What `make` makes of arrays and labels of each record and the name of its file, in order.

    UserError for files that are damaged, or hold other arrays and labels than the lab writes.
    """
    found, rows = [], read_json_lines(folder / INDEX_FILE)
    num_files = len(list(folder.glob("*.npz")))
    if num_files > len(rows):
        raise UserError(f"{folder / INDEX_FILE} lists {len(rows)} of {num_files} records; make the folder again")
    for number, labels in enumerate(rows, start=1):
        where = f"{folder / INDEX_FILE}, line {number}"
        path = folder / f"{str(labels.pop('id', None))[:100]}.npz"
        arrays = read_arrays(path)
        try:
            found.append(make(arrays, labels, where))
        except UserError:
            raise
        except DAMAGE as error:
            raise UserError(f"{path} does not hold the record of {where}: {error}; make it again") from error
    return found


def write_pairs(folder: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write `pair-0000.npz`, ... and the index (with the number of steps of both sides)."""

    def record(pair: PreferencePair) -> tuple[Arrays, Labels]:
        arrays = {f"{side}_{name}": getattr(getattr(pair, side), name) for side in SEGMENTS for name in _SEGMENT_ARRAYS}
        arrays |= {} if pair.before is None else {BEFORE: pair.before}
        steps = [len(getattr(pair, side).actions) for side in SEGMENTS]
        return arrays, labels_of(pair) | dict(zip(_STEPS, steps, strict=True))

    _write_records(folder, "pair", map(record, pairs))


def read_pairs(folder: Path) -> list[PreferencePair]:
    """Read what `write_pairs` wrote, in order; UserError for damaged files."""

    def pair(arrays: Arrays, labels: Labels, where: str) -> PreferencePair:
        told = {name: value for name, value in labels.items() if name not in _STEPS}
        sides: dict[str, Any] = {
            side: Segment(**{name: arrays[f"{side}_{name}"] for name in _SEGMENT_ARRAYS}) for side in SEGMENTS
        }
        return PreferencePair(**read_labels(PreferencePair, told, where), **sides, before=arrays.get(BEFORE))

    return _read_records(folder, pair)


def write_episodes(folder: Path, episodes: Iterable[Episode]) -> None:
    """Write `episode-0000.npz`, ... and the index, which says where images are that stay in files of their own."""

    def record(episode: Episode) -> tuple[Arrays, Labels]:
        arrays = {name: getattr(episode, name) for name in ARRAYS[Episode]}
        labels = labels_of(episode)
        if isinstance(episode.images, StoredImages):
            labels[_STORED] = arrays.pop("images").labels()
        return {name: array for name, array in arrays.items() if array is not None}, labels

    _write_records(folder, "episode", map(record, episodes))


def read_episodes(folder: Path) -> list[Episode]:
    """Read what `write_episodes` wrote, in order; UserError for damaged files. `images` may be `StoredImages`, read
    when they are asked for."""

    def episode(arrays: Arrays, labels: Labels, where: str) -> Episode:
        stored = labels.pop(_STORED, None)
        if stored is not None:
            arrays["images"] = fit(stored, StoredImages, where)
        return Episode(**read_labels(Episode, labels, where), **arrays)

    return _read_records(folder, episode)


def write_candidates(folder: Path, states: Iterable[Candidates]) -> None:
    """Write `state-0000.npz`, ... and the index: the chunks sampled in each state."""

    def record(state: Candidates) -> tuple[Arrays, Labels]:
        arrays = {name: value for name in ARRAYS[Candidates] if (value := getattr(state, name)) is not None}
        return arrays, labels_of(state)

    _write_records(folder, "state", map(record, states))


def read_candidates(folder: Path) -> list[Candidates]:
    """Read what `write_candidates` wrote, in order; UserError for damaged files."""
    return _read_records(
        folder, lambda arrays, labels, where: Candidates(**read_labels(Candidates, labels, where), **arrays)
    )
