"""What the processes of a run ask of machines, as a table and against what there is."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rl_lab.common.arguments import BadArgumentError
from rl_lab.config.placement import Placement
from rl_lab.config.schema import RunConfig, WorkersConfig

Node = Mapping[str, float]
"""Resources of one machine under Ray's names, CPU and GPU."""


@dataclass(frozen=True)
class Bundle:
    """Resources that come together for each process of a kind."""

    kind: str
    count: int
    resources: dict[str, float]
    actors: str
    """What runs in it."""


ACTOR_CPUS = 0.5
"""Of what is not reserved: workers and learners take turns, so a laptop with two cores holds two of each kind."""


def joins_cluster() -> bool:
    """Whether RAY_ADDRESS names a cluster that was there before; else a run starts its own on this machine."""
    return os.environ.get("RAY_ADDRESS", "") not in ("", "local")


def declared_machines(text: str) -> list[Node]:
    """Machines that nobody has to have, for a plan: `2x8` are two with eight GPUs and any number of cores, `2x8x96` two
    with 96 cores each. BadArgumentError for other text."""
    found = re.fullmatch(r"([1-9]\d{0,3})x(\d{1,3})(?:x([1-9]\d{0,3}))?", text)
    if found is None:
        raise BadArgumentError(
            f"{text[:40]!r} is no cluster; give MACHINESxGPUS or MACHINESxGPUSxCORES, such as 2x8x96"
        )
    machines, gpus, cores = found.groups()
    return [{"CPU": float(cores or math.inf), "GPU": float(gpus)} for _ in range(int(machines))]


def bundles(placement: Placement, workers: WorkersConfig, *, shared: bool = False) -> list[Bundle]:
    """What is reserved, the largest first: where several fit, the large ones choose. With `shared` also what the kinds
    that are not named take, without their GPUs, of which they take what is left. Kinds without processes are left
    out."""
    actors = {
        "learner": (
            placement.ranks,
            "a rank of the learner, one group at a time" if placement.ranks > 1 else "learner",
        ),
        "engines": (workers.rollout, "vLLM engine"),
        "teachers": (workers.rollout, "vLLM engine of a teacher"),
        "judges": (1, "vLLM server of the judge"),
        "simulators": (workers.simulation, "simulation worker"),
    }
    found = [
        Bundle(name, actors[name][0], resources(kind.cpus, kind.gpus), actors[name][1])
        for name, kind in placement.named.items()
    ]
    if shared:
        others = [name for name in ("learner", "engines", "simulators") if name not in placement.named]
        found += [Bundle(name, actors[name][0], resources(ACTOR_CPUS, 0.0), actors[name][1]) for name in others]
    found = [bundle for bundle in found if bundle.count]
    return sorted(found, key=lambda bundle: (-bundle.resources.get("GPU", 0.0), -bundle.resources["CPU"]))


def resources(cpus: float, gpus: float) -> dict[str, float]:
    """Under Ray's names."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def in_words(amounts: Node) -> str:
    """Such as `2 CPU, 1 GPU`, or `any CPU` where cores are not counted."""
    return ", ".join(f"{amounts.get(name, 0):g} {name}" for name in ("CPU", "GPU")).replace("inf", "any")


def lacking(wanted: Sequence[Bundle], nodes: Sequence[Node], strategy: str) -> str | None:
    """One line if these bundles do not fit on the machines; each must be on one machine as a whole.

    A kind with STRICT_PACK needs one machine for all, with STRICT_SPREAD as many machines as bundles.
    """
    free = [dict(node) for node in nodes]
    for bundle in wanted:
        places = _fit(bundle, free, strategy)
        if places is None:
            total = {name: sum(one.count * one.resources.get(name, 0) for one in wanted) for name in ("CPU", "GPU")}
            there = "; ".join(in_words(node) for node in nodes) or "none"
            return (
                f"placement asks for {bundle.count} x ({in_words(bundle.resources)}) for {bundle.kind} ({strategy}), "
                f"{in_words(total)} in all, but the machines have: {there}; ask for less or give more machines"
            )
    return None


def _fit(bundle: Bundle, free: list[dict[str, float]], strategy: str) -> list[int] | None:
    """Machines for each of the bundles, taken off what is free; None if they do not fit."""
    places: list[int] = []
    for _ in range(bundle.count):
        allowed = [
            number
            for number, node in enumerate(free)
            if all(node.get(name, 0) >= amount for name, amount in bundle.resources.items())
            and not (strategy == "STRICT_SPREAD" and number in places)
            and not (strategy == "STRICT_PACK" and places and number != places[0])
        ]
        if not allowed:
            return None
        if strategy == "STRICT_PACK" and not places:  # the machine with most room, as all must go there
            allowed.sort(key=lambda number: -min(free[number].get(n, 0) / a for n, a in bundle.resources.items()))
        places.append(allowed[0])
        for name, amount in bundle.resources.items():
            free[allowed[0]][name] -= amount
    return places


def placement_table(config: RunConfig, declared: Sequence[Node] = ()) -> str:
    """One row a bundle: kind, how many, resources of each, what runs there; then what shares the rest, and how much of
    `declared` machines that takes."""
    rows = [
        f"  {bundle.kind:12} {bundle.count:3} x ({in_words(bundle.resources)})  {bundle.actors}"
        for bundle in bundles(config.placement, config.workers_needed)
    ]
    needed = {"learner": True, "engines": config.workers_needed.rollout > 0, "simulators": True}
    others = [name for name in needed if needed[name] and name not in config.placement.named]
    shared = f"  not reserved: {', '.join(others)}, on device {config.placement.device}" if others else ""
    strategy = f"placement ({config.placement.strategy})" if rows else "placement"
    return "\n".join(line for line in (strategy, *rows, shared, _taken(config, declared)) if line)


def _taken(config: RunConfig, machines: Sequence[Node]) -> str:
    if not machines:
        return ""
    gpus = sum(one.count * one.resources.get("GPU", 0) for one in bundles(config.placement, config.workers_needed))
    there = f"{len(machines)} x ({in_words(machines[0])})"
    return f"  reserved: {gpus:g} of {sum(machine['GPU'] for machine in machines):g} GPU of a cluster of {there}"
