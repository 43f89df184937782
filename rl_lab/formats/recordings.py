"""Demonstrations in files of RoboTwin or LeRobot, named one by one so that many processes can read and check them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from envs.types import Episode
from rl_lab.errors import UserError
from rl_lab.formats import lerobot_read, lerobot_schema, robotwin
from rl_lab.formats.checks import BrokenEpisodeError, Problem
from rl_lab.formats.episode_index import clean_files
from rl_lab.formats.lerobot_tables import read_info, read_rows
from rl_lab.formats.stored_images import StoredImages

GLANCES = 100
"""So many episodes are looked at before a run begins; all are read when it does."""
RATE_TOLERANCE = 0.01
"""Rates that differ by less than this part are the same."""


@dataclass(frozen=True)
class Recording:
    """One episode of a file, not read yet."""

    format: str
    """"robotwin" or "lerobot"."""
    path: Path
    """The HDF5 file, or the folder of the dataset."""
    episode: int
    """Index in the dataset; 0 in a file of its own."""
    save_freq: int
    split: str
    image_size: int

    def read(self) -> tuple[Episode | None, list[Problem]]:
        """The episode, with every image decoded once and left in its file; or what is wrong with it."""
        try:
            episode = self._read()
        except BrokenEpisodeError as error:
            return None, error.problems
        count = len(episode.images)
        path = str(self.path.resolve())
        images = StoredImages(self.format, path, self.episode, count, self.image_size)
        return replace(episode, images=images), []  # type: ignore[arg-type]  # stands for the array

    def problems(self) -> list[Problem]:
        """What is wrong with it as far as that is seen without decoding all its images."""
        try:
            self._read(decode=False)
        except BrokenEpisodeError as error:
            return error.problems
        return []

    def place(self) -> tuple[str, str, int] | None:
        """Task, variant and environment seed; None where its files do not tell, or cannot be read."""
        try:
            if self.format == "robotwin":
                return robotwin.episode_place(self.path)
            return lerobot_read.episode_place(self.path, self.episode)
        except (UserError, ValueError):
            return None

    def _read(self, decode: bool = True) -> Episode:
        if self.format == "robotwin":
            (file,) = robotwin.find_episodes(self.path)
            return robotwin.read_episode(file, self.image_size, self.save_freq, self.split, decode)
        return lerobot_read.read_episode(self.path, self.episode, self.image_size, decode)


def find_recordings(
    paths: Sequence[Path], *, image_size: int, save_freq: int, split: str, index: Path | None = None
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
            raise UserError(f"there is no {path}; name RoboTwin's data folder or a LeRobotDataset")
        rest = (save_freq, split, image_size)
        if (path / lerobot_schema.INFO_PATH).is_file():
            info = read_info(path)
            rates[path] = info.fps
            found += [Recording("lerobot", path, row.number, *rest) for row in read_rows(path, info)]
        else:
            rates[path] = robotwin.control_hz(save_freq)
            files = [file.path for file in robotwin.find_episodes(path)]
            kept = files if index is None else clean_files(files, index)
            found += [Recording("robotwin", file, 0, *rest) for file in kept]
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
    places = np.linspace(0, len(recordings) - 1, min(len(recordings), GLANCES)).astype(int)
    check_sound([recordings[place].problems() for place in places], skip_broken)
