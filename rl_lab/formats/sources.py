"""Any folder of episodes as one thing to read: RoboTwin's HDF5, LeRobotDataset v3, pairs, the lab's own files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from envs.types import Episode, PreferencePair
from rl_lab.action.buffers import INDEX_FILE, read_episodes, read_pairs
from rl_lab.errors import UserError
from rl_lab.formats import lerobot_read, lerobot_schema, pairs_read, pairs_write, robotwin
from rl_lab.formats.checks import (
    BrokenEpisodeError,
    Report,
    check_rate,
    episode_problems,
    pair_problems,
    sound_episodes,
)
from rl_lab.formats.damaged import naming_episode
from rl_lab.formats.lerobot_tables import read_info
from rl_lab.formats.lerobot_write import correction
from rl_lab.json_lines import read_json_lines

TABLETOP_HZ = 12.5
"""The lab's own files name no rate; `tabletop` has one only."""


@dataclass(frozen=True)
class Source:
    """Episodes that can be read one by one."""

    format: str
    """"robotwin", "lerobot", "pairs" or "lab"."""
    hz: float
    reads: list[Callable[[], Episode]]
    """Of pairs, the chosen sides."""
    pairs: Sequence[Callable[[], PreferencePair]] | None = None
    """Where the folder holds pairs."""

    def episodes(self, report: Report | None = None) -> Iterator[Episode]:
        """In order; broken ones are raised, or left out where `report` is given."""
        return sound_episodes(self.reads, report)


def open_source(folder: Path, *, image_size: int, save_freq: int, split: str, hz: float | None = None) -> Source:
    """Find out what a folder holds; UserError if it is nothing of ours. `hz` replaces the rate of lab files."""
    source = _source(folder, image_size, save_freq, split, hz)
    if not source.reads:
        raise UserError(f"{folder} is a set ({source.format}) of no episodes")
    return source


def _source(folder: Path, image_size: int, save_freq: int, split: str, hz: float | None) -> Source:
    if not folder.exists():
        raise UserError(f"{folder} does not exist")
    if (folder / lerobot_schema.INFO_PATH).exists():
        return Source("lerobot", read_info(folder).fps, lerobot_read.episode_reads(folder, image_size))
    if (folder / pairs_write.INFO_FILE).exists():
        return _pairs_source("pairs", pairs_read.read_info(folder).hz, pairs_read.pair_reads(folder))
    if (folder / INDEX_FILE).exists():
        return _lab_source(folder, hz)
    if folder.is_file() or robotwin.episode_paths(folder):
        reads = robotwin.episode_reads(folder, image_size, save_freq, split)
        return Source("robotwin", robotwin.control_hz(save_freq), reads)
    raise UserError(
        f"{folder} holds no episodes: expected RoboTwin's episode*.hdf5, {lerobot_schema.INFO_PATH} of a "
        f"LeRobotDataset, {pairs_write.INFO_FILE} of a set of pairs, or the lab's {INDEX_FILE}"
    )


def _pairs_source(kind: str, hz: float, pairs: Sequence[Callable[[], PreferencePair]]) -> Source:
    return Source(kind, hz, [partial(_chosen, read) for read in pairs], pairs)


def _chosen(read: Callable[[], PreferencePair]) -> Episode:
    return correction(read())


def _lab_source(folder: Path, hz: float | None) -> Source:
    """Demonstrations or pairs of the lab; all are held in memory."""
    ids = [str(row.get("id", "")) for row in read_json_lines(folder / INDEX_FILE)]
    if ids and ids[0].startswith("pair-"):
        named = [partial(_checked_pair, *pair) for pair in zip(ids, read_pairs(folder), strict=True)]
        return _pairs_source("lab", hz or TABLETOP_HZ, named)
    episodes = read_episodes(folder)
    stored = next((each.extra["control_hz"] for each in episodes if "control_hz" in each.extra), TABLETOP_HZ)
    if not isinstance(stored, int | float):
        raise UserError(f"{folder / INDEX_FILE}: control_hz is {stored!r}, no number; name the rate with --hz")
    rate = hz or check_rate(f"{folder / INDEX_FILE}: control_hz", stored)
    return Source("lab", rate, [partial(_checked, *pair) for pair in zip(ids, episodes, strict=True)])


def _checked(name: str, episode: Episode) -> Episode:
    with naming_episode(name):
        problems = episode_problems(name, episode)
    if problems:
        raise BrokenEpisodeError(problems)
    return episode


def _checked_pair(name: str, pair: PreferencePair) -> PreferencePair:
    with naming_episode(name):
        problems = pair_problems(name, pair)
    if problems:
        raise BrokenEpisodeError(problems)
    return pair
