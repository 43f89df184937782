"""How long the stages of a graph take together, where some wait for others and for the workers that they share."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

from rl_lab.runner.graph import Node


def wall_seconds(nodes: Sequence[Node], costs: Mapping[str, float], slots: int) -> float:
    """Seconds from the first start to the last end. `slots` stages run at once, in the order of the graph."""
    needs = {node.name: {*node.inputs.values(), *([node.when[0]] if node.when else [])} for node in nodes}
    followers = defaultdict(list)
    for node in nodes:
        for name in needs[node.name]:
            followers[name].append(node)
    ready = [node for node in nodes if not needs[node.name]]
    running: list[tuple[float, str]] = []
    taken: dict[str, frozenset[str]] = {}
    now = 0.0
    while ready or running:
        for node in list(ready):
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
