"""A pool of Ray actors that share a stream of units: ordered results, one unit a worker, and nothing waits forever.

Ray places the actors and carries what they are asked and answer. Replacing them is done here and not by Ray's own
restarts, which happen unseen: a new worker that has to start an engine would be timed as if it were at work.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

MAX_ATTEMPTS = 5
"""A unit that ends every worker that gets it (out of memory, a broken driver) must not be issued forever."""
START_LIMIT_S = 600.0
"""What a new worker may take for its start, on top of the time for its first unit."""
POLL_S = 0.5

_open_pools: list[WorkerPool] = []

Call = Callable[[Any, Any], ray.ObjectRef]
"""(actor, unit) -> the actor's answer to come."""
Batch = list[Future[Any]]
"""Results to come, in the order of the units."""


class BrokenWorkerError(RuntimeError):
    """Raised by a worker that cannot go on in its process: it is replaced and the unit issued again."""


class PoolError(RuntimeError):
    """The same unit ended worker after worker."""


class _LateError(Exception):
    """A worker did not answer in time."""


@dataclass
class _Worker:
    name: str
    actor: Any
    is_new: bool = True
    """It has not answered yet, so its start counts."""
    busy_s: float = 0.0
    """Seconds that it was at work on units that are over."""
    since: float | None = None
    """When the unit began that it is at work on."""
    began: float = field(default_factory=time.monotonic)
    replaced: int = 0
    """How often it had to be started again."""

    def status(self) -> dict[str, Any]:
        """What it does and for how long (s), the share of its life without work, and how often it was replaced."""
        now, since = time.monotonic(), self.since
        busy_s = self.busy_s + (0.0 if since is None else now - since)
        doing = "waiting" if since is None else "starting" if self.is_new else "working"
        found = {"name": self.name, "doing": doing, "seconds": None if since is None else round(now - since, 1)}
        idle = min(max(1 - busy_s / max(now - self.began, 1e-9), 0.0), 1.0)
        return found | {"idle": round(idle, 3), "replaced": self.replaced}


def workers_now() -> list[dict[str, Any]]:
    """`_Worker.status` of the workers of all pools of this process."""
    return [worker for pool in list(_open_pools) for worker in pool.status()]


def warn_on_stderr(text: str) -> None:
    """Where warnings go by default."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class WorkerPool:
    """`num_workers` actors, each with a thread here that hands it one unit at a time and replaces it if need be.

    A unit is a call that gives the same answer whichever worker gets it, so results depend neither on the number of
    workers nor on their deaths. `submit` and `results` are for work that goes on while the caller does something else,
    `map` for work that the caller waits for. Units are begun in the order in which they were given, over all batches.
    """

    def __init__(
        self,
        name: str,
        num_workers: int,
        start: Callable[[], Any],
        *,
        timeout_s: float | None = None,
        start_limit_s: float = START_LIMIT_S,
    ) -> None:
        """`start()` gives the handle of a new actor. A worker that has not answered after `timeout_s` is replaced."""
        self.num_workers = num_workers
        self.warn: Callable[[str], None] = warn_on_stderr
        """Told of every replacement, in a thread of the pool."""
        self._start, self._timeout_s, self._start_limit_s = start, timeout_s, start_limit_s
        self._workers = [_Worker(f"{name}-{number}", start()) for number in range(num_workers)]
        self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
        for worker in self._workers:
            self._idle.put(worker)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix=name)
        self._open: set[Future[Any]] = set()
        self._closed = threading.Event()
        _open_pools.append(self)

    @property
    def actors(self) -> list[Any]:
        """The handles of the workers of the moment."""
        return [worker.actor for worker in self._workers]

    @property
    def busy_s(self) -> float:
        """Seconds that the workers were at work up to now, starts included, summed over them."""
        now, total = time.monotonic(), 0.0
        for worker in self._workers:
            since = worker.since
            total += worker.busy_s + (0.0 if since is None else now - since)
        return total

    def status(self) -> list[dict[str, Any]]:
        """`_Worker.status` of each worker."""
        return [worker.status() for worker in self._workers]

    def submit(self, call: Call, units: Iterable[Any]) -> Batch:
        """Queue `call(actor, unit)` for every unit, behind all that was submitted before; returns at once."""
        return [self._submit(call, unit) for unit in units]

    def results(self, batch: Batch, check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Yield a batch's results in order, each as soon as it is there.

        An error of a unit is raised in its turn; that, or leaving early, cancels what the batch has not begun.
        `check_stop` is called about twice a second and may raise to give up waiting.
        """
        try:
            for future in batch:
                while not future.done():
                    wait([future], timeout=POLL_S)
                    check_stop()
                yield future.result()
        finally:
            _cancel(batch)

    def map(self, call: Call, units: Iterable[Any], check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """Like `results` of all units, which are taken one by one, and only for a worker that is free.

        So a caller that stops early (enough pairs) has seen the same prefix with any number of workers.
        """
        remaining = iter(units)
        unseen: deque[Future[Any]] = deque()
        try:
            while True:
                running = {future for future in unseen if not future.done()}
                while len(running) < self.num_workers:
                    try:
                        unit = next(remaining)
                    except StopIteration:
                        break
                    unseen.append(self._submit(call, unit))
                    running.add(unseen[-1])
                if not unseen:
                    return
                if not unseen[0].done():
                    wait(running, timeout=POLL_S, return_when=FIRST_COMPLETED)
                    check_stop()
                while unseen and unseen[0].done():
                    yield unseen.popleft().result()
        finally:
            _cancel(unseen)

    def cancel(self) -> None:
        """Forget all units that no worker has begun; those at work are finished and their results dropped."""
        _cancel(list(self._open))

    def close(self) -> None:
        """End the threads and the actors, whatever they are doing."""
        self._closed.set()
        if self in _open_pools:
            _open_pools.remove(self)
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            ray.kill(worker.actor)

    def _submit(self, call: Call, unit: Any) -> Future[Any]:
        future = self._threads.submit(self._run, call, unit)
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        return future

    def _run(self, call: Call, unit: Any) -> Any:
        """In a thread of the pool: the answer to one unit, by as many workers as it takes."""
        worker = self._idle.get_nowait()  # there are as many threads as workers
        worker.since = began = time.monotonic()
        try:
            for _ in range(MAX_ATTEMPTS):
                try:
                    return self._ask(worker, call, unit)
                except (_LateError, BrokenWorkerError) as error:
                    trouble = str(error)
                except (RayActorError, OutOfMemoryError) as error:
                    trouble = f"died ({_reason(error)})"
                self._replace(worker)
                self.warn(f"{worker.name} {trouble}; it is replaced and its work issued again")
            raise PoolError(f"{worker.name} {trouble}; it was replaced {MAX_ATTEMPTS} times for the same work")
        finally:
            worker.busy_s += time.monotonic() - began
            worker.since = None
            self._idle.put(worker)

    def _ask(self, worker: _Worker, call: Call, unit: Any) -> Any:
        """The worker's answer, or its exception; _LateError when its time is over."""
        reference = call(worker.actor, unit)
        began, limit_s = time.monotonic(), self._limit_s(worker)
        while not ray.wait([reference], timeout=POLL_S)[0]:
            if self._closed.is_set():
                raise CancelledError
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise _LateError(f"did not {'start and ' * worker.is_new}answer within {limit_s:g} s")
        try:
            answer = ray.get(reference)
        except RayTaskError as error:
            # The worker's own exception: its message stands alone, and its class is right for `except`.
            raise error.cause from error
        worker.is_new = False
        return answer

    def _limit_s(self, worker: _Worker) -> float | None:
        return None if self._timeout_s is None else self._timeout_s + self._start_limit_s * worker.is_new

    def _replace(self, worker: _Worker) -> None:
        if self._closed.is_set():
            raise CancelledError
        ray.kill(worker.actor)
        worker.actor, worker.is_new = self._start(), True
        worker.replaced += 1


def _cancel(futures: Iterable[Future[Any]]) -> None:
    for future in futures:
        future.cancel()


def _reason(error: Exception) -> str:
    """The part of Ray's long messages that says why."""
    last = str(error).strip().splitlines()[-1].strip()
    return last.rpartition("Worker exit detail: ")[2].partition(" Some common causes")[0].rstrip(".")
