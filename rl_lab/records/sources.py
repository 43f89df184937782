"""Any folder of episodes as one thing to read: RoboTwin's HDF5, LeRobotDataset v3, Lance, pairs, the lab's own files.

Recordings are named one by one, so that many processes can read and check them. RoboTwin's can be chosen by the index
that Hy-VLA's authors publish with their code (`assets/dataset_index.csv`), one row an episode: `episode_dir`
(task/config), `hdf5_name`, `is_dirty`. The released RoboTwin policy was trained
without the dirty ones: 1,860 of 27,500, episodes of unusual length (arXiv:2606.14409, appendix A).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from envs.types import Episode, Layout, Numbers, PreferencePair
from rl_lab.common.errors import UserError
from rl_lab.common.files import read_json_lines
from rl_lab.common.reading import read_text
from rl_lab.records import lance_read, lerobot_read, pairs, robotwin
from rl_lab.records.checks import (
    BrokenEpisodeError,
    OnProblem,
    Problem,
    check_rate,
    episode_problems,
    naming_episode,
    pair_problems,
    sound_episodes,
)
from rl_lab.records.episodes import INDEX_FILE, READERS, StoredImages, read_episodes, read_pairs
from rl_lab.records.lerobot_tables import BIMANUAL_EE, INFO_PATH, Asked
from rl_lab.records.lerobot_write import correction

TABLETOP_HZ = 12.5
"""Of the lab's own files that name no rate: older ones, made on the tabletop."""


@dataclass(frozen=True)
class Source:
    """Episodes that can be read one by one."""

    format: str
    """"robotwin", "lerobot", "umi", "pairs" or "lab"."""
    hz: float
    reads: list[Callable[[], Episode]]
    """Of pairs, the chosen sides."""
    pairs: Sequence[Callable[[], PreferencePair]] | None = None
    """Where the folder holds pairs."""

    def episodes(self, report: OnProblem | None = None) -> Iterator[Episode]:
        """In order; broken ones are raised, or left out where `report` is given."""
        return sound_episodes(self.reads, report)


def open_source(
    folder: Path,
    *,
    image_size: int,
    save_freq: int,
    split: str,
    hz: float | None = None,
    asked: Asked = BIMANUAL_EE,
) -> Source:
    """Find out what a folder holds; UserError if it is nothing of ours. `hz` replaces the rate of lab files; `asked`
    says what the numbers and cameras of a LeRobotDataset are, the lab's own sets say it themselves."""
    source = _source(folder, image_size, save_freq, split, hz, asked)
    if not source.reads:
        raise UserError(f"{folder} is a set ({source.format}) of no episodes")
    return source


def _source(folder: Path, image_size: int, save_freq: int, split: str, hz: float | None, asked: Asked) -> Source:
    if not folder.exists():
        raise UserError(f"{folder} does not exist")
    is_umi = bool(lance_read.find_tables(folder))
    is_lerobot = not is_umi and (folder / INFO_PATH).exists()
    is_own = not is_lerobot and any((folder / name).exists() for name in (pairs.INFO_FILE, INDEX_FILE))
    if is_own and asked != BIMANUAL_EE:
        raise UserError(f"{folder} says itself what its numbers and cameras are; leave --numbers and --cameras out")
    if not is_lerobot and (folder / pairs.INFO_FILE).exists():
        return _pairs_source("pairs", pairs.read_info(folder)[0].hz, pairs.pair_reads(folder))
    if not is_lerobot and (folder / INDEX_FILE).exists():
        return _lab_source(folder, hz)
    if is_umi or is_lerobot or folder.is_file() or robotwin.episode_paths(folder):
        found, rate = _recordings(folder, save_freq, split, image_size, asked=asked)
        return Source(found[0].format if found else "lerobot", rate, [recording.load for recording in found])
    raise UserError(
        f"{folder} holds no episodes: expected RoboTwin's episode*.hdf5, {INFO_PATH} of a "
        f"LeRobotDataset, TABLE/TABLE.lance, {pairs.INFO_FILE} of a set of pairs, or the lab's {INDEX_FILE}"
    )


def _pairs_source(kind: str, hz: float, reads: Sequence[Callable[[], PreferencePair]]) -> Source:
    return Source(kind, hz, [partial(_chosen, read) for read in reads], reads)


def _chosen(read: Callable[[], PreferencePair]) -> Episode:
    return correction(read())


def _lab_source(folder: Path, hz: float | None) -> Source:
    """Demonstrations or pairs of the lab; all are held in memory."""
    ids = [str(row.get("id", "")) for row in read_json_lines(folder / INDEX_FILE)]
    if ids and ids[0].startswith("pair-"):
        found = read_pairs(folder)
        named = [partial(_checked, pair_problems, *pair) for pair in zip(ids, found, strict=True)]
        return _pairs_source("lab", hz or _stored_rate(folder, (pair.control_hz for pair in found)), named)
    episodes = read_episodes(folder)
    rate = hz or _stored_rate(folder, (episode.extra.get("control_hz") for episode in episodes))
    return Source("lab", rate, [partial(_checked, episode_problems, *pair) for pair in zip(ids, episodes, strict=True)])


def _stored_rate(folder: Path, named: Iterable[Any]) -> float:
    """The first rate that records of the lab name; the tabletop's where none does."""
    stored = next((rate for rate in named if rate is not None), TABLETOP_HZ)
    if not isinstance(stored, int | float):
        raise UserError(f"{folder / INDEX_FILE}: control_hz is {stored!r}, no number; name the rate with --hz")
    return check_rate(f"{folder / INDEX_FILE}: control_hz", stored)


Recorded = TypeVar("Recorded", Episode, PreferencePair)


def _checked(problems_of: Callable[[str, Recorded], list[Problem]], name: str, recorded: Recorded) -> Recorded:
    with naming_episode(name):
        problems = problems_of(name, recorded)
    if problems:
        raise BrokenEpisodeError(problems)
    return recorded


Key = tuple[str, str, int]
"""Task, config and number of an episode, which its path ends with whatever the file's name is padded to."""


def episode_key(path: Path) -> Key | None:
    """Key of TASK/CONFIG/data/episode_N.hdf5; None for a path that does not end so."""
    number = re.fullmatch(r"episode_?(\d+)", path.stem)
    if number is None or len(path.parts) < 4:
        return None
    return path.parts[-4], path.parts[-3], int(number[1])


def read_index(path: Path) -> dict[Key, bool]:
    """Whether each episode of an index is dirty. UserError, naming the line, for a file that is no such index."""
    rows = csv.DictReader(read_text(path).splitlines())
    missing = {"episode_dir", "hdf5_name", "is_dirty"} - set(rows.fieldnames or ())
    if missing:
        raise UserError(f"{path} is no index of episodes: it lacks the columns {', '.join(sorted(missing))}")
    found: dict[Key, bool] = {}
    for row in rows:
        key = episode_key(Path(str(row["episode_dir"])) / str(row["hdf5_name"]))
        if key is None or row["is_dirty"] not in ("0", "1"):
            raise UserError(
                f"{path}, line {rows.line_num}: expected episode_dir TASK/CONFIG, hdf5_name data/episode_N.hdf5 and "
                "is_dirty 0 or 1"
            )
        found[key] = row["is_dirty"] == "1"
    return found


def clean_files(files: list[Path], index: Path) -> list[Path]:
    """The files whose episodes are not dirty. UserError for one that the index does not know."""
    dirty = read_index(index)
    keys = [episode_key(file) for file in files]
    unknown = next((file for file, key in zip(files, keys, strict=True) if key not in dirty), None)
    if unknown is not None:
        raise UserError(
            f"{unknown} is not in the index {index}; name RoboTwin's own folders TASK/CONFIG, or leave the index out"
        )
    return [file for file, key in zip(files, keys, strict=True) if key is not None and not dirty[key]]


GLANCES = 100
"""So many episodes are looked at before a run begins; all are read when it does."""

RATE_TOLERANCE = 0.01
"""Rates that differ by less than this part are the same."""


@dataclass(frozen=True)
class Recording:
    """One episode of a file, not read yet."""

    format: str
    """Of `rl_lab.records.episodes.READERS`."""
    path: Path
    """The HDF5 file, or the folder of the dataset or table."""
    episode: int
    """Index in the dataset; 0 in a file of its own."""
    save_freq: int
    split: str
    image_size: int
    asked: Asked = BIMANUAL_EE

    def load(self, decode: bool = True) -> Episode:
        """The episode; without `decode` not all of its images. BrokenEpisodeError with what is wrong with it."""
        read = READERS[self.format].read_episode
        more = {"asked": self.asked} if self.format == "lerobot" else {}
        return read(self.path, self.episode, self.image_size, self.save_freq, self.split, decode, **more)

    def read(self) -> tuple[Episode | None, list[Problem]]:
        """The episode, with every image decoded once and left in its file; or what is wrong with it."""
        try:
            episode = self.load()
        except BrokenEpisodeError as error:
            return None, error.problems
        count = len(episode.images)
        path = str(self.path.resolve())
        images = StoredImages(self.format, path, self.episode, count, self.image_size, episode.layout.cameras)
        return replace(episode, images=images), []  # type: ignore[arg-type]  # stands for the array

    def problems(self) -> list[Problem]:
        """What is wrong with it as far as that is seen without decoding all its images."""
        try:
            self.load(decode=False)
        except BrokenEpisodeError as error:
            return error.problems
        return []

    def has_truth(self) -> bool:
        """Whether simulator truth was recorded with it; True where it is broken, which is another problem."""
        try:
            return self.load(decode=False).truth is not None
        except BrokenEpisodeError:
            return True

    def layout(self) -> Layout | None:
        """Of its states, commands and cameras; None where it is broken, which is another problem."""
        try:
            return self.load(decode=False).layout
        except BrokenEpisodeError:
            return None

    def place(self) -> tuple[str, str, int] | None:
        """Task, variant and environment seed; None where its files do not tell, or cannot be read."""
        try:
            more = {"asked": self.asked} if self.format == "lerobot" else {}
            return READERS[self.format].episode_place(self.path, self.episode, **more)
        except (UserError, ValueError):
            return None


def _recordings(
    path: Path, save_freq: int, split: str, image_size: int, index: Path | None = None, asked: Asked = BIMANUAL_EE
) -> tuple[list[Recording], float]:
    """All episodes of Lance tables, of a LeRobotDataset or of RoboTwin's data, and their rate in hertz."""
    rest = (save_freq, split, image_size)
    if (tables := lance_read.find_tables(path)) and asked == BIMANUAL_EE:
        rates = {table: lance_read.find_episodes(table) for table in tables}
        if len({hz for _, hz in rates.values()}) > 1:
            raise UserError(f"the tables of {path} have different rates; name tables of one rate")
        named = [Recording("umi", table, number, *rest) for table, (numbers, _) in rates.items() for number in numbers]
        return named, next(iter(rates.values()))[1]
    if not tables and (path / INFO_PATH).exists():
        numbers, hz = lerobot_read.find_episodes(path, asked)
        return [Recording("lerobot", path, number, *rest, asked) for number in numbers], hz
    if asked != BIMANUAL_EE:
        whose = "of UMI recordings" if tables else "of RoboTwin"
        raise UserError(f"{path} is {whose}: two arms as poses and three cameras; leave numbers and cameras out")
    files = [file.path for file in robotwin.find_episodes(path)]
    kept = files if index is None else clean_files(files, index)
    return [Recording("robotwin", file, 0, *rest) for file in kept], robotwin.control_hz(save_freq)


def find_recordings(
    paths: Sequence[Path],
    *,
    image_size: int,
    save_freq: int,
    split: str,
    index: Path | None = None,
    numbers: Numbers = "ee",
    cameras: tuple[str, ...] = (),
) -> tuple[list[Recording], float]:
    """All episodes of files and folders, in the order given, and their rate in hertz; RoboTwin's without those that an
    `index` of their authors calls dirty.

    UserError for a path without episodes, episodes that the index does not know, and for sets of different rates: a
    chunk would mean another time in each.
    """
    found: list[Recording] = []
    rates: dict[Path, float] = {}
    for path in paths:
        if not path.exists():
            raise UserError(
                f"there is no {path}; name RoboTwin's data folder, a LeRobotDataset or a folder of Lance tables"
            )
        some, rates[path] = _recordings(path, save_freq, split, image_size, index, Asked(numbers, cameras))
        found += some
    (first, hz), *others = rates.items()
    for path, rate in others:
        if not abs(rate - hz) <= RATE_TOLERANCE * hz:
            raise UserError(
                f"{first} has {hz:.2f} frames a second but {path} has {rate:.2f}; train on sets of one rate"
            )
    return found, hz


def check_sound(found: Sequence[list[Problem]], skip_broken: bool) -> None:
    """UserError if episodes, given by the problems of each, are not to be learned from."""
    broken = [problems for problems in found if problems]
    if broken and not skip_broken:
        raise UserError(
            f"demos.files: {len(broken)} of {len(found)} episodes are broken, the first: {broken[0][0]}; mend them, or "
            "leave them out with demos.files.skip_broken=true"
        )
    if len(broken) == len(found):
        raise UserError(f"demos.files: none of {len(found)} episodes is sound, the first: {broken[0][0]}")


def glance(recordings: Sequence[Recording], skip_broken: bool) -> None:
    """`check_sound` of some recordings, spread evenly, before a run begins."""
    check_sound([recording.problems() for recording in spread(recordings)], skip_broken)


def spread(recordings: Sequence[Recording]) -> list[Recording]:
    """Those that are looked at before a run begins, spread evenly."""
    places = np.linspace(0, len(recordings) - 1, min(len(recordings), GLANCES)).astype(int)
    return [recordings[place] for place in places]
