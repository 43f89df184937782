"""Preference pairs from a policy's failures: units of simulation, as many as it takes, each kept as it arrives."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray

from envs.rollback import Collection
from envs.types import PreferencePair
from rl_lab.common.files import folder_damage, write_checked_folder
from rl_lab.common.seeding import stream
from rl_lab.config.environments import environment_layout
from rl_lab.records.episodes import read_pairs, write_pairs
from rl_lab.rollouts.simulator_errors import ErrorWatch, name
from rl_lab.workers.policy import corrector_plan
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.simulation import ERRORS, EnvSpec, Unit, drawn_units, env_specs

COUNTS_FILE = "collection.json"
"""Beside the pairs: their number and what they cost."""


@dataclass(frozen=True)
class Request:
    """Which pairs are wanted."""

    name: str
    """Addresses the seeds of the episodes, with task and variant."""
    seed: int
    """The run's."""
    scratch: Path
    """Keeps the units that are done, so that none runs again after a kill."""
    check_stop: Callable[[], None]
    progress: Callable[[int, int, str], None] = lambda done, total, text: None
    """(pairs, pairs wanted, where)."""


def round_name(weight_version: int) -> str:
    """Of the request of a round that begins with these weights."""
    return f"collect/{weight_version}"


def collection_units(config: Any, name: str, seed: int) -> list[tuple[EnvSpec, list[Unit]]]:
    """Episodes that a request may use, by task and variant, in their order."""
    specs = env_specs(config, "seen")
    episodes = config.collect.max_episodes // len(specs)
    return [(spec, drawn_units("collect", spec, name, episodes, seed)) for spec in specs]


def collect_pairs(
    pool: WorkerPool, weights: ray.ObjectRef, config: Any, request: Request
) -> tuple[list[PreferencePair], Counter[str]]:
    """Pairs of a published policy by the `env` and `collect` sections, shared evenly by tasks and variants; counts.

    Fewer than wanted, even none, where `max_episodes` are not enough.
    """
    settings = config.collect
    available = collection_units(config, request.name, request.seed)
    pairs: list[PreferencePair] = []
    counts = Counter[str]()

    corrector: Any = corrector_plan(
        settings.corrector, settings.execute, environment_layout(config.env), config.policy_code
    )
    if settings.corrector.path is not None:
        corrector = ray.put(corrector)  # weights or recordings: once for all units

    def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
        return actor.collect.remote(unit, weights, settings, corrector)

    run = partial(pool.map, submit, check_stop=request.check_stop)
    for (spec, units), wanted in zip(available, _share(settings.pairs, len(available)), strict=True):
        where = f"{spec.task}/{spec.variant}"
        found: list[PreferencePair] = []
        folder = request.scratch / where.replace("/", "-")
        watch = ErrorWatch(where.replace("/", " "))
        for collection in kept(folder, units, run, _write_collection, _read_collection):
            watch.see(next((key.removeprefix(ERRORS) for key in collection.counts if key.startswith(ERRORS)), None))
            found += collection.pairs
            counts += named(collection.counts)
            done = min(settings.pairs, len(pairs) + len(found))
            request.progress(done, settings.pairs, where.replace("/", " "))
            if len(found) >= wanted:
                break
        if not found:
            watch.end()
        pairs += found[:wanted]
    return pairs, counts


def swap(pairs: list[PreferencePair], share: float, seed: int, name: str) -> tuple[list[PreferencePair], int]:
    """The pairs with winner and loser of a share of them exchanged, drawn by seed and name, and how many those are.

    Those of a smaller share are among those of a larger one. A failure ends where it shows, a correction goes on to
    success: as a failure it ends after as many steps as the one that it is compared with. Else most of its states would
    be of the rest of the task, which nobody compared, and be led back to the failure.
    """
    chosen = stream(seed, "swap", name).permutation(len(pairs))[: round(share * len(pairs))].tolist()
    swapped = {
        place: replace(
            pair,
            winner=pair.loser,
            loser=pair.winner.beginning(len(pair.loser.actions)),
            corrector=f"{pair.corrector}, swapped",
        )
        for place, pair in ((place, pairs[place]) for place in chosen)
    }
    return [swapped.get(place, pair) for place, pair in enumerate(pairs)], len(chosen)


def named(counts: Counter[str]) -> Counter[str]:
    """With errors by their kind instead of their whole lines."""
    return Counter({name(key) if key.startswith(ERRORS) else key: number for key, number in counts.items()})


def write_collection(folder: Path, pairs: list[PreferencePair], counts: Counter[str], **more: Any) -> None:
    """Pairs with `collection.json` beside them: their number, the counts, and whatever else is given."""
    write_pairs(folder, pairs)
    (folder / COUNTS_FILE).write_text(json.dumps({"pairs": len(pairs), **counts, **more}, indent=1) + "\n")


def kept(
    folder: Path,
    units: list[Unit],
    run: Callable[[list[Unit]], Iterator[Any]],
    write: Callable[..., None],
    read: Callable[[Path], Any],
) -> Iterator[Any]:
    """Results of the units in order; each is kept in `folder` as it arrives, and read instead of run after a kill.

    Those from a damaged one on are run again.
    """
    paths = [folder / f"unit-{number:04d}" for number in range(len(units))]
    first_missing = next((number for number, path in enumerate(paths) if folder_damage(path)), len(units))
    for path in paths[:first_missing]:
        yield read(path)
    for path, result in zip(paths[first_missing:], run(units[first_missing:]), strict=False):
        write_checked_folder(path, partial(write, result=result))
        yield result


def _share(total: int, parts: int) -> list[int]:
    """Split a count as evenly as it goes."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _write_collection(folder: Path, result: Collection) -> None:
    write_pairs(folder, result.pairs)
    (folder / "counts.json").write_text(json.dumps(result.counts))


def _read_collection(folder: Path) -> Collection:
    return Collection(read_pairs(folder), Counter(json.loads((folder / "counts.json").read_text())))
