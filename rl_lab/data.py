"""python -m rl_lab.data {inspect,stats,convert,validate} SOURCE ...

Looks at recorded data, checks it and converts it. SOURCE holds RoboTwin's HDF5 demonstrations (both layouts), a
LeRobotDataset v3, preference pairs in the layout of `rl_lab.records.pairs`, or the lab's own demonstrations or pairs;
which one is found out. Where pairs are read as episodes, the chosen sides are.

    inspect SOURCE               how many episodes of what, how long
    stats SOURCE --horizon 20    mean and deviation of states and of every chunk slot, as JSON
    convert SOURCE TARGET        --to lerobot (default), pairs (Parquet and video) or lab
    validate SOURCE              every problem by episode and frame; warnings of other units and orders of numbers

Of a LeRobotDataset of another robot say what its numbers are (--numbers), and which cameras are read (--cameras).
Broken episodes end the command, unless --skip-broken leaves them out and names them. Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from algos.chunks import Timing
from envs.options import MAX_PIXELS
from envs.types import BIMANUAL, Episode, Layout, Numbers, PreferencePair
from rl_lab.common.arguments import COUNT, as_path, check_output, whole_number
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.common.files import write_folder
from rl_lab.records.checks import Doubts, Problem, sound_episodes
from rl_lab.records.episodes import chunk_stats, contents, write_episodes, write_pairs
from rl_lab.records.lerobot_tables import Asked
from rl_lab.records.lerobot_write import write_lerobot
from rl_lab.records.pairs import write_pairs_layout
from rl_lab.records.robotwin import SAVE_FREQ
from rl_lab.records.sources import Source, open_source


def _episodes(source: Source, options: argparse.Namespace) -> Iterator[Episode]:
    """All episodes; with --skip-broken the sound ones, the others named on stderr."""
    count = 0
    for episode in source.episodes(_say_skipped if options.skip_broken else None):
        count += 1
        yield episode
    if not count:
        raise UserError(f"{options.source} has no sound episodes")


def _pairs(source: Source, options: argparse.Namespace) -> Iterator[PreferencePair]:
    """The same for pairs."""
    if source.pairs is None:
        raise UserError(f"{options.source} holds episodes, not pairs; convert it --to lerobot or lab")
    count = 0
    for pair in sound_episodes(source.pairs, _say_skipped if options.skip_broken else None):
        count += 1
        yield pair
    if not count:
        raise UserError(f"{options.source} has no sound pairs")


def _say_skipped(problem: Problem) -> None:
    print(f"skipped: {problem}", file=sys.stderr)


def inspect(source: Source, options: argparse.Namespace) -> None:
    """Print what there is."""
    layouts: dict[Layout, None] = {}

    def seen() -> Iterator[Episode]:
        for episode in _episodes(source, options):
            layouts[episode.layout] = None
            yield episode

    rows = {"format": source.format, "hz": round(source.hz, 4)} | contents(seen())
    if set(layouts) != {BIMANUAL}:
        rows["layout"] = "; ".join(f"{one}: {', '.join(one.cameras)}" for one in layouts)
    for name, value in rows.items():
        print(f"{name:18} {value}")


def stats(source: Source, options: argparse.Namespace) -> None:
    """Print statistics as one JSON object."""
    timing = Timing(options.horizon, options.stride, options.first_slot)

    def episodes() -> Iterator[Episode]:
        for episode in _episodes(source, options):
            if episode.layout.numbers == "raw" and timing.first_slot == "current":
                raise UserError("--first-slot current: where numbers are raw the state holds no command; use next")
            yield episode

    print(json.dumps(chunk_stats(episodes(), timing)))


def convert(source: Source, options: argparse.Namespace) -> None:
    """Write the other format, whole or not at all."""
    target = options.target
    if target.exists():
        raise UserError(f"{target} is there already; remove it or name another folder")
    check_output(target, options.source)
    if options.lossless and options.to != "pairs":
        raise UserError(f"--lossless is for --to pairs, not {options.to}; leave it out")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if options.to == "lerobot":
            write_lerobot(target, _episodes(source, options), source.hz, hold_images=options.hold_images)
        elif options.to == "pairs":
            write_pairs_layout(target, _pairs(source, options), source.hz, lossless=options.lossless)
        elif source.pairs is not None:
            write_folder(target, lambda folder: write_pairs(folder, _pairs(source, options)))
        else:
            write_folder(target, lambda folder: write_episodes(folder, _episodes(source, options)))
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror or error}") from error
    print(target)


def validate(source: Source, options: argparse.Namespace) -> None:
    """Print every problem, and what is odd about the whole; UserError if there is a problem."""
    problems: list[Problem] = []
    kind = "episodes" if source.pairs is None else "pairs"
    reads: Sequence[Callable[[], Episode | PreferencePair]] = source.pairs or source.reads
    doubts, sound = Doubts(), 0
    for record in sound_episodes(reads, problems.append):
        doubts.add(record)
        sound += 1
    for line in [*problems, *(f"warning: {doubt}" for doubt in doubts.lines())]:
        print(line)
    if sound < len(reads):
        raise UserError(f"{len(reads) - sound} of {len(reads)} {kind} of {options.source} are broken")
    print(f"{sound} {kind}, no problems")


COMMANDS: dict[str, Callable[[Source, argparse.Namespace], None]] = {
    "inspect": inspect,
    "stats": stats,
    "convert": convert,
    "validate": validate,
}


def _parser() -> CommandParser:
    parser = CommandParser(__doc__)
    commands = parser.add_subparsers(prog=parser.prog, dest="command", required=True, metavar="COMMAND")
    for name, action in COMMANDS.items():
        command = commands.add_parser(name, help=(action.__doc__ or "").split(";")[0].rstrip("."))
        command.add_argument("source", type=as_path, metavar="SOURCE")
        if name == "convert":
            command.add_argument("target", type=as_path, metavar="TARGET")
            command.add_argument("--to", choices=["lerobot", "pairs", "lab"], default="lerobot")
            command.add_argument(
                "--lossless", action="store_true", help="pairs with the very pixels; few players show it"
            )
            command.add_argument("--hold-images", action="store_true", help="show each image until the next one")
        if name == "stats":
            command.add_argument("--horizon", type=COUNT, default=20, help="slots of a chunk")
            command.add_argument("--stride", type=COUNT, default=1, help="recorded steps between slots")
            command.add_argument("--first-slot", choices=["next", "current"], default="next", help="command or pose")
        if name != "validate":
            command.add_argument("--skip-broken", action="store_true", help="leave broken episodes out and name them")
        command.add_argument(
            "--image-size", type=whole_number(1, MAX_PIXELS), default=224, help="side of RoboTwin's images once read"
        )
        command.add_argument("--save-freq", type=COUNT, default=SAVE_FREQ, help="RoboTwin's physics steps a frame")
        command.add_argument("--instructions", choices=["seen", "unseen"], default="seen", help="RoboTwin's texts")
        command.add_argument("--numbers", choices=get_args(Numbers), default="ee", help="of a LeRobotDataset")
        command.add_argument("--cameras", type=_names, default=(), help="of it, a,b,... in order; of ee ours, else all")
        command.add_argument("--hz", type=_positive_rate, help="rate of the lab's own files, 12.5 unless they name one")
    return parser


def _positive_rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate < 1e4:
        raise ValueError
    return rate


_positive_rate.__name__ = "rate"


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    options = _parser().parse_args(arguments)
    reading = {"image_size": options.image_size, "save_freq": options.save_freq, "split": options.instructions}
    asked = Asked(options.numbers, options.cameras)
    source = open_source(options.source, hz=options.hz, asked=asked, **reading)
    COMMANDS[options.command](source, options)
    return 0


if __name__ == "__main__":
    run_command(main)
