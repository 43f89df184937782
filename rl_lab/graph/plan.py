"""What a run is going to do and what it is going to cost, before anything is started.

Some stages wait for others and for the workers that they share, so a graph takes longer than its longest stage.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import Node
from rl_lab.graph.store import Store
from rl_lab.model.loading import checkpoint_shapes

CORES = 2
"""The estimate is for a machine with so many."""

SECONDS_PER_STAGE = 5.0
"""Processes that start, weights that are loaded."""

PARAMETERS = {"state": 0.267e6, "nano": 2.7e6, "small": 12.4e6, "mini": 50.9e6, "mot-2b": 4.5e9}
"""Of each preset. Seconds of a step with a model grow with them: a teacher of preset small took 4.3 times nano's."""

MEASURED = ("state", "nano", "small")

CPU_PARAMETERS = 100e6
"""Larger models need a GPU, and no time is estimated: a step of a batch takes minutes on two cores, a stage days."""


def plan_table(config: RunConfig, nodes: Sequence[Node], hashes: Mapping[str, str], store: Store) -> str:
    """One row a stage: name, hash, work, rough minutes, and whether a stored result is reused; then the wall time."""
    rows, costs, seen = [], {}, set()
    for node in nodes:
        digest = hashes.get(node.name, "")
        reused = bool(digest) and (digest in seen or store.has(digest))
        seen.add(digest)
        costs[node.name] = cost = 0.0 if reused else seconds(node, config)
        amount = " ".join(map(str, node.stage.units(node, node.config or config)))
        note = f"{'  reused' if reused else ''}{condition(node)}"
        time = "needs a GPU" if cost == math.inf else "not measured" if math.isnan(cost) else f"{cost / 60:7.1f} min"
        rows.append(f"  {node.name:28} {digest[:12]:12}  {amount:>14}  {time}{note}")
    unmeasured = any(map(math.isnan, costs.values()))
    costs = {name: 0.0 if math.isnan(cost) else cost for name, cost in costs.items()}
    order = by_urgency(nodes, costs, is_study=config.study is not None)
    total = wall_seconds(order, costs, min(CORES, config.workers.stages)) / 60
    if total == math.inf:
        largest = f"models of more than {CPU_PARAMETERS / 1e6:.0f} million parameters are not estimated on a CPU"
        return "\n".join([*rows, f"  needs a GPU: {largest}"])
    is_measured = config.model.preset in MEASURED and config.policy_code is None
    note = "" if is_measured else "; only state, nano and small were measured"
    note += "; stages that nobody has measured come on top" if unmeasured else ""
    return "\n".join([*rows, f"  about {total:.0f} min on two CPU cores, if nothing else runs{note}"])


def condition(node: Node) -> str:
    """Of a gate what it asks for, of what follows one when it runs; in words, empty for other nodes."""
    if node.kind == "gate":
        gate = node.params["gate"]
        otherwise = gate["otherwise"]
        rest = otherwise if isinstance(otherwise, str) else f"[{', '.join(otherwise)}]"
        return f"  passes on a rise above {gate['rise']:g} ({100 * gate['confidence']:g} % interval), else {rest}"
    if node.when is None:
        return ""
    return f"  if {node.when[0]} {'passes' if node.when[1] else 'does not pass'}"


def seconds(node: Node, config: RunConfig) -> float:
    """Rough wall time of a stage on two CPU cores; infinite for a model that needs a GPU, NaN if nobody measured it."""
    config = node.config or config
    factor = 1.0
    if node.stage.has_model and not node.stage.makes:
        size = _parameters(config.model)
        # A smaller model than nano does not make simulators faster, which then take most of the time.
        floor = 1.0 if node.stage.simulates else 0.0
        factor = math.inf if size > CPU_PARAMETERS else max(floor, size / PARAMETERS["nano"])
    return SECONDS_PER_STAGE + node.stage.work_seconds(node, config) * factor


def _parameters(model: Any) -> float:
    """Of a preset, or of a checkpoint by the headers of its files."""
    if model.path is None:
        return PARAMETERS[model.preset]
    return float(sum(math.prod(shape) for shape in checkpoint_shapes(Path(model.path)).values()))


def waits_for(node: Node) -> set[str]:
    """Names of the nodes that must have ended before: its inputs, and its gate."""
    return {*node.inputs.values(), *([node.when[0]] if node.when else [])}


def by_urgency(nodes: Sequence[Node], costs: Mapping[str, float], *, is_study: bool = False) -> list[Node]:
    """In the order in which nodes start where not all of them can: first what no method has for its own, then what most
    seconds follow (the critical path). Worlds and training seeds of a study come one after the other all the same,
    so that a study which is stopped early has whole ones. A time that is not known counts as 0."""
    behind: dict[str, float] = defaultdict(float)
    for node in reversed(nodes):  # inputs come before what reads them
        cost = costs[node.name]
        behind[node.name] += cost if math.isfinite(cost) else 0.0
        for name in waits_for(node):
            behind[name] = max(behind[name], behind[node.name])

    def place(node: Node) -> str:
        return ".".join(node.name.split(".")[:2]) if is_study else ""

    order = {one: number for number, one in enumerate(dict.fromkeys(map(place, nodes)))}
    return sorted(nodes, key=lambda node: (order[place(node)], node.method is not None, -behind[node.name]))


def wall_seconds(nodes: Sequence[Node], costs: Mapping[str, float], slots: int) -> float:
    """Seconds from the first start to the last end. `slots` stages run at once, which start in the order of the nodes;
    what is not among them has ended."""
    rank = {node.name: number for number, node in enumerate(nodes)}
    needs = {node.name: waits_for(node) & rank.keys() for node in nodes}
    followers = defaultdict(list)
    for node in nodes:
        for name in needs[node.name]:
            followers[name].append(node)
    ready = [node for node in nodes if not needs[node.name]]
    running: list[tuple[float, str]] = []
    taken: dict[str, frozenset[str]] = {}
    now = 0.0
    while ready or running:
        for node in sorted(ready, key=lambda node: rank[node.name]):
            workers = node.stage.workers
            if len(running) < slots and not any(workers & others for others in taken.values()):
                ready.remove(node)
                taken[node.name] = workers
                heapq.heappush(running, (now + costs[node.name], node.name))
        now, ended = heapq.heappop(running)
        del taken[ended]
        for node in followers[ended]:
            needs[node.name].remove(ended)
            if not needs[node.name]:
                ready.append(node)
    return now


class Forecast:
    """The time that a run still takes: what was planned for its stages, at the pace that this machine has shown."""

    def __init__(self, config: RunConfig, nodes: Sequence[Node], stored: Container[str] = ()) -> None:
        """`stored`: names of nodes that are there already, or that a twin before them makes; they take no time while
        they are to come."""
        self.slots = min(CORES, config.workers.stages)
        self.costs, self.stored = {node.name: seconds(node, config) for node in nodes}, stored
        left = {name: 0.0 if name in stored else cost for name, cost in self.costs.items()}
        self.nodes = by_urgency(nodes, left, is_study=config.study is not None)

    def left(self, ended: Mapping[str, float | None], running: Mapping[str, tuple[float, float]]) -> float | None:
        """Seconds; None while nothing has shown a pace, or where a stage that is to come has no planned time.

        `ended`: seconds that each stage took, None for one that did not run. `running`: of each stage that shows how
        far it is, the seconds so far and those that it still takes at its rate.
        """
        shown = {name: took for name, took in ended.items() if took is not None} or {
            name: so_far + rest for name, (so_far, rest) in running.items()
        }
        planned = sum(self.costs[name] for name in shown)
        if not shown or not 0 < planned < math.inf:
            return None
        pace = sum(shown.values()) / planned
        pending = [node for node in self.nodes if node.name not in ended]
        costs = {
            node.name: running[node.name][1]
            if node.name in running
            else pace * self.costs[node.name] * (node.name not in self.stored)
            for node in pending
        }
        return wall_seconds(pending, costs, self.slots) if all(map(math.isfinite, costs.values())) else None
