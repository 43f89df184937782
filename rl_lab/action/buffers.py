"""Episodes, preference pairs and sampled chunks on disk: one compressed array file a record, one index line each.

Files are plain arrays and JSON lines, so that a notebook reads them without the lab.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from envs.types import Candidates, Episode, PreferencePair, Segment
from rl_lab.formats.stored_images import StoredImages
from rl_lab.json_lines import read_json_lines, write_json_lines

INDEX_FILE = "index.jsonl"
_SEGMENTS = ("winner", "loser")
_SEGMENT_ARRAYS = ("poses", "actions", "images")
_BEFORE = "before"
"""Array of the frames before a pair or a state; missing where the policy has no memory."""
_STORED = "images"
"""Label of an episode whose images lie elsewhere."""
_EPISODE_ARRAYS = ("poses", "actions", "frame_steps", "images", "truth")
_CANDIDATE_ARRAYS = ("poses", "actions", "images", "after", "expert", "progress", "success", _BEFORE)


Arrays = dict[str, Any]
"""Name -> numpy array."""
Labels = dict[str, Any]


def _write_records(folder: Path, kind: str, records: Iterable[tuple[Arrays, Labels]]) -> None:
    """Write `<kind>-0000.npz`, ... and the index with the labels of each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (arrays, labels) in enumerate(records):
        name = f"{kind}-{number:04d}"
        np.savez_compressed(folder / f"{name}.npz", **arrays)
        rows.append({"id": name, **labels})
    write_json_lines(folder / INDEX_FILE, rows)


def _read_records(folder: Path) -> Iterator[tuple[Arrays, Labels]]:
    """Arrays and labels of each record, in order."""
    for labels in read_json_lines(folder / INDEX_FILE):
        with np.load(folder / f"{labels.pop('id')}.npz", allow_pickle=False) as arrays:
            yield dict(arrays), labels


def pair_arrays(pair: PreferencePair) -> Arrays:
    """Both segments as named arrays: winner_poses, winner_actions, winner_images, loser_poses, ...; and `before`, if
    there is any."""
    own = {f"{side}_{name}": getattr(getattr(pair, side), name) for side in _SEGMENTS for name in _SEGMENT_ARRAYS}
    return own if pair.before is None else own | {_BEFORE: pair.before}


def pair_labels(pair: PreferencePair) -> Labels:
    """Everything about a pair that is not an array."""
    arrays = (*_SEGMENTS, _BEFORE)
    return {item.name: getattr(pair, item.name) for item in fields(pair) if item.name not in arrays}


def write_pairs(folder: Path, pairs: Iterable[PreferencePair]) -> None:
    """Write `pair-0000.npz`, ... and the index (with the number of steps of both sides)."""

    def record(pair: PreferencePair) -> tuple[Arrays, Labels]:
        steps = {f"{side}_steps": len(getattr(pair, side).actions) for side in _SEGMENTS}
        return pair_arrays(pair), pair_labels(pair) | steps

    _write_records(folder, "pair", map(record, pairs))


def read_pairs(folder: Path) -> list[PreferencePair]:
    """Read what `write_pairs` wrote, in order."""
    label_names = {item.name for item in fields(PreferencePair)} - {*_SEGMENTS, _BEFORE}

    def pair(arrays: Arrays, labels: Labels) -> PreferencePair:
        values: dict[str, Any] = {name: labels[name] for name in label_names}
        for side in _SEGMENTS:
            values[side] = Segment(**{name: arrays[f"{side}_{name}"] for name in _SEGMENT_ARRAYS})
        return PreferencePair(**values, before=arrays.get(_BEFORE))

    return [pair(*record) for record in _read_records(folder)]


def episode_labels(episode: Episode) -> Labels:
    """Everything about an episode that is not an array."""
    return {item.name: getattr(episode, item.name) for item in fields(episode) if item.name not in _EPISODE_ARRAYS}


def write_episodes(folder: Path, episodes: Iterable[Episode]) -> None:
    """Write `episode-0000.npz`, ... and the index, which says where images are that stay in files of their own."""

    def record(episode: Episode) -> tuple[Arrays, Labels]:
        arrays = {name: getattr(episode, name) for name in _EPISODE_ARRAYS}
        labels = episode_labels(episode)
        if isinstance(episode.images, StoredImages):
            labels[_STORED] = arrays.pop("images").labels()
        return {name: array for name, array in arrays.items() if array is not None}, labels

    _write_records(folder, "episode", map(record, episodes))


def read_episodes(folder: Path) -> list[Episode]:
    """Read what `write_episodes` wrote, in order. `images` may be `StoredImages`, read when they are asked for."""

    def episode(arrays: Arrays, labels: Labels) -> Episode:
        stored = labels.pop(_STORED, None)
        if stored is not None:
            arrays["images"] = StoredImages(**stored)
        return Episode(**labels, **arrays)

    return [episode(*record) for record in _read_records(folder)]


def write_candidates(folder: Path, states: Iterable[Candidates]) -> None:
    """Write `state-0000.npz`, ... and the index: the chunks sampled in each state."""
    names = [item.name for item in fields(Candidates) if item.name not in _CANDIDATE_ARRAYS]

    def record(state: Candidates) -> tuple[Arrays, Labels]:
        arrays = {name: value for name in _CANDIDATE_ARRAYS if (value := getattr(state, name)) is not None}
        return arrays, {name: getattr(state, name) for name in names}

    _write_records(folder, "state", map(record, states))


def read_candidates(folder: Path) -> list[Candidates]:
    """Read what `write_candidates` wrote, in order."""
    return [Candidates(**labels, **arrays) for arrays, labels in _read_records(folder)]
