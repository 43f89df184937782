"""A pool of simulation actors: Ray places, restarts and retries them; results come back in the order of the units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray

from rl_lab.workers.simulation import Simulation

MAX_RESTARTS = 20
"""A worker that keeps dying (out of memory, a broken driver) must not be restarted forever."""


class SimulationPool:
    """`num_workers` restartable actors that share a stream of units.

    At most one unit a worker is in flight; results are yielded in the order of the units whatever order they end in,
    so a caller that stops early (enough pairs) sees the same prefix with any number of workers.
    """

    def __init__(self, num_workers: int, *, num_cpus: float = 1.0, inference: Any = None) -> None:
        """`inference`: the `Inference` actor that all of them act with, None for a policy in each."""
        actor = ray.remote(Simulation).options(
            num_cpus=num_cpus, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS
        )
        self.actors: list[Any] = [actor.remote(inference) for _ in range(num_workers)]

    def map(
        self,
        submit: Callable[[Any, Any], ray.ObjectRef],
        units: Iterable[Any],
        check_stop: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """Yield `submit(actor, unit)`'s results in order; units are taken lazily.

        `check_stop` is called about once a second and may raise to give up waiting.
        """
        pending = enumerate(units)
        idle = list(self.actors)
        running: dict[ray.ObjectRef, tuple[int, Any]] = {}
        done: dict[int, Any] = {}
        next_result = 0
        try:
            while True:
                while idle and (item := next(pending, None)) is not None:
                    number, unit = item
                    actor = idle.pop()
                    running[submit(actor, unit)] = (number, actor)
                if not running:
                    return
                ready, _ = ray.wait(list(running), num_returns=1, timeout=1.0)
                check_stop()
                for reference in ready:
                    number, actor = running.pop(reference)
                    done[number] = ray.get(reference)
                    idle.append(actor)
                while next_result in done:
                    yield done.pop(next_result)
                    next_result += 1
        finally:
            for reference in running:
                ray.cancel(reference)

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)
