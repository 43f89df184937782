"""Episodes, preference pairs and sampled chunks on disk: one compressed array file a record, one index line each.

Files are plain arrays and JSON lines, so that a notebook reads them without the lab. Images of a recorded episode stay
in its file until some of them are asked for. A set of episodes tells what it holds: counts and lengths, and the mean
and deviation of states and of every chunk slot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from algos.chunks import Timing
from envs.types import CAMERAS, Candidates, Episode, PreferencePair, Segment
from rl_lab.common.errors import UserError
from rl_lab.common.files import read_json_lines, write_json_lines
from rl_lab.common.moments import Moments
from rl_lab.common.reading import fit
from rl_lab.records import lance_read, lerobot_read, robotwin
from rl_lab.records.checks import DAMAGE, read_arrays
from rl_lab.records.labels import ARRAYS, BEFORE, SEGMENTS, Labels, labels_of, read_labels

READERS: Mapping[str, Any] = {"robotwin": robotwin, "lerobot": lerobot_read, "umi": lance_read}
"""Modules that read episodes which others recorded, by format: `read_episode`, `read_images` and `episode_place`."""


@dataclass(frozen=True)
class StoredImages:
    """Stands for `Episode.images`, uint8 [N, V, S, S, 3]: has a length, can be indexed, and becomes an array."""

    format: str
    """Of READERS."""
    path: str
    """The HDF5 file, or the folder of the dataset."""
    episode: int
    """Index in the dataset; 0 in a file of its own."""
    count: int
    """N."""
    image_size: int
    """S; views of another shape are scaled to fit and centred on black."""
    cameras: tuple[str, ...] = CAMERAS
    """V."""

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return (self.count, len(self.cameras), self.image_size, self.image_size, 3)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """The frames of these numbers, read now; BrokenEpisodeError if they are no longer there."""
        numbers = np.atleast_1d(np.arange(self.count)[numbers])
        wanted, places = np.unique(numbers, return_inverse=True)
        read = READERS[self.format].read_images
        return read(Path(self.path), self.episode, wanted, self.image_size, self.cameras)[places]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(self.count)]

    def labels(self) -> dict[str, Any]:
        """The fields, as JSON holds them; without cameras they are RoboTwin's."""
        return {name: value for name, value in asdict(self).items() if value != CAMERAS}


INDEX_FILE = "index.jsonl"

_SEGMENT_ARRAYS, TRUTH = ("poses", "actions", "images"), "truth"
"""`truth` is missing where nobody recorded it."""

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
        named = {
            f"{side}_{name}": getattr(getattr(pair, side), name)
            for side in SEGMENTS
            for name in (*_SEGMENT_ARRAYS, TRUTH)
        }
        arrays = {name: array for name, array in named.items() if array is not None}
        arrays |= {} if pair.before is None else {BEFORE: pair.before}
        steps = [len(getattr(pair, side).actions) for side in SEGMENTS]
        return arrays, labels_of(pair) | dict(zip(_STEPS, steps, strict=True))

    _write_records(folder, "pair", map(record, pairs))


def read_pairs(folder: Path) -> list[PreferencePair]:
    """Read what `write_pairs` wrote, in order; UserError for damaged files."""

    def pair(arrays: Arrays, labels: Labels, where: str) -> PreferencePair:
        told = {name: value for name, value in labels.items() if name not in _STEPS}
        sides: dict[str, Any] = {
            side: Segment(
                **{name: arrays[f"{side}_{name}"] for name in _SEGMENT_ARRAYS}, truth=arrays.get(f"{side}_{TRUTH}")
            )
            for side in SEGMENTS
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

    def state(arrays: Arrays, labels: Labels, where: str) -> Candidates:
        found = Candidates(**read_labels(Candidates, labels, where), **arrays)
        chunk = found.actions.shape[1:]
        if found.expert.shape != chunk:
            raise ValueError(f"the expert's commands are {list(found.expert.shape)}, those of a chunk {list(chunk)}")
        return found

    return _read_records(folder, state)


def contents(episodes: Iterable[Episode]) -> dict[str, Any]:
    """Counts, lengths in steps, image sides and episodes by task."""
    steps: list[int] = []
    tasks: Counter[str] = Counter()
    sides, instructions = set(), set()
    num_frames = num_successes = 0
    for episode in episodes:
        steps.append(episode.num_steps)
        tasks[f"{episode.task}/{episode.variant}" if episode.variant else episode.task] += 1
        sides.add(int(episode.images.shape[-2]))
        instructions.add(episode.instruction)
        num_frames += len(episode.frame_steps)
        num_successes += episode.success
    lengths = {"min": min(steps), "median": float(np.median(steps)), "max": max(steps)} if steps else {}
    return {
        "episodes": len(steps),
        "successes": num_successes,
        "steps": sum(steps),
        "images_per_camera": num_frames,
        "image_side": sorted(sides),
        "steps_per_episode": lengths,
        "instructions": len(instructions),
        "tasks": dict(sorted(tasks.items())),
    }


def chunk_stats(episodes: Iterable[Episode], timing: Timing) -> dict[str, Any]:
    """Statistics under the released names, of encoded states and commands (xyz, rot6d, gripper of two arms: 20).

    qpos_* [E] of states; action_* [H, D] of chunks as they are learned, of poses relative to the state at their start;
    action_*_abs [H, D] absolute.
    No deviation is floored here.
    """
    moments = chunk_moments(episodes, timing)
    lists = {
        f"{name}_{part}{kind}": getattr(each, part).tolist()
        for (name, kind), each in zip((("qpos", ""), ("action", ""), ("action", "_abs")), moments, strict=True)
        for part in ("mean", "std")
    }
    about = {"horizon": timing.horizon, "stride": timing.stride, "first_slot": timing.first_slot}
    return about | {"states": moments[0].count} | lists


def chunk_moments(episodes: Iterable[Episode], timing: Timing) -> tuple[Moments, Moments, Moments]:
    """Of encoded states [E], of chunks as learned and of absolute ones [H, D], over all states with a frame."""
    states, relative, absolute = Moments(), Moments(), Moments()
    for episode in episodes:
        layout = episode.layout
        steps = episode.frame_steps[episode.frame_steps < len(episode.actions)]
        chunks = timing.chunks(episode.poses, episode.actions, steps)
        states.add(layout.encode(episode.poses[steps]))
        relative.add(layout.encode_chunks(chunks, episode.poses[steps]))
        absolute.add(layout.encode(chunks))
    return states, relative, absolute
