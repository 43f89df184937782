"""The pool of workers: order, laziness, time-outs, replacement, and batches in the background.

A new worker imports torch, which takes seconds, so tests share workers where they can.
"""

import itertools
import os
import signal
import time
from pathlib import Path

import pytest
import ray

from rl_lab.common.errors import UserError
from rl_lab.workers.pool import BrokenWorkerError, PoolError, WorkerPool

TIMEOUT_S = 4.0
"""Long beside what the units here take, also on a machine with much else to do."""


class Sleeper:
    """A worker that sleeps and squares, and misbehaves the first time it is told to."""

    def square(self, number: int, seconds: float = 0.0) -> int:
        time.sleep(seconds)
        return number**2

    def begin(self, number: int, folder: Path) -> int:
        (folder / str(number)).touch()
        time.sleep(0.05)
        return number

    def once(self, signs: Path, what: str) -> str:
        """Misbehave unless a sign says that somebody has."""
        if (signs / what).exists():
            return f"{what} {os.getpid()}"
        (signs / what).write_text(str(os.getpid()))
        return self.always(what)

    def always(self, what: str) -> str:
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif what == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif what == "hang":
            time.sleep(3600)
        elif what == "break":
            raise BrokenWorkerError("has a broken engine (out of blocks)")
        raise UserError(f"cannot {what}; say something else")


class Pools:
    """One pool for each number of workers; its warnings are kept."""

    def __init__(self):
        self._pools: dict[int, WorkerPool] = {}
        self.warnings: list[str] = []

    def __call__(self, num_workers: int) -> WorkerPool:
        """With all its workers started."""
        if num_workers not in self._pools:
            actor = ray.remote(Sleeper).options(num_cpus=0.1)
            self._pools[num_workers] = WorkerPool("sleeper", num_workers, actor.remote, timeout_s=TIMEOUT_S)
        pool = self._pools[num_workers]
        ray.get([actor.square.remote(0) for actor in pool.actors])
        list(pool.map(square, [(0, 0.2)] * num_workers))
        pool.warn = self.warnings.append
        self.warnings.clear()
        return pool

    def close(self):
        for pool in self._pools.values():
            pool.close()


@pytest.fixture(scope="module")
def pools(cluster):
    made = Pools()
    yield made
    made.close()


def square(actor, unit):
    number, *seconds = unit if isinstance(unit, tuple) else (unit,)
    return actor.square.remote(number, *seconds)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_come_in_the_order_of_the_units_whatever_order_they_end_in(pools, num_workers):
    units = [(0, 0.4), (1, 0.0), (2, 0.2), (3, 0.0)]
    pool = pools(num_workers)
    assert list(pool.map(square, units)) == [0, 1, 4, 9]
    assert list(pool.results(pool.submit(square, units))) == [0, 1, 4, 9]
    assert pools.warnings == []


def test_map_takes_a_unit_only_for_a_free_worker(pools):
    taken = []
    units = (taken.append(number) or number for number in itertools.count())
    results = pools(1).map(square, units)
    assert list(itertools.islice(results, 3)) == [0, 1, 4]
    results.close()
    assert len(taken) <= 3 + 1


def test_the_other_workers_go_on_while_one_takes_long(pools):
    pool = pools(2)
    start = time.monotonic()
    assert list(pool.map(square, [(0, 1.0)] + [(1, 0.1)] * 9)) == [0] + [1] * 9
    assert time.monotonic() - start < 1.7


def test_batches_go_on_in_the_background_in_the_order_they_were_given(pools, tmp_path):
    pool = pools(1)
    first = pool.submit(lambda actor, number: actor.begin.remote(number, tmp_path), [0, 1])
    second = pool.submit(lambda actor, number: actor.begin.remote(number, tmp_path), [2, 3])
    deadline = time.monotonic() + 60
    while not (tmp_path / "3").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    begun = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in begun] == ["0", "1", "2", "3"]
    assert list(pool.results(second)) == [2, 3]
    assert list(pool.results(first)) == [0, 1]


def test_units_that_nobody_has_begun_can_be_forgotten(pools, tmp_path):
    pool = pools(1)
    batch = pool.submit(lambda actor, number: actor.begin.remote(number, tmp_path), range(50))
    results = pool.results(batch)
    next(results)
    pool.cancel()
    assert list(pool.results(pool.submit(square, [3]))) == [9]
    assert len(list(tmp_path.iterdir())) < 10


def test_waiting_can_be_given_up(pools):
    def stop():
        raise KeyboardInterrupt

    pool = pools(1)
    with pytest.raises(KeyboardInterrupt):
        list(pool.map(square, [(1, 2.0)], stop))
    with pytest.raises(KeyboardInterrupt):
        list(pool.results(pool.submit(square, [(1, 0.0)]), stop))


@pytest.mark.parametrize("what", ["die", "stop", "hang", "break"])
def test_a_worker_in_trouble_is_replaced_and_its_work_issued_again(pools, tmp_path, what):
    pool = pools(2)
    units = [("once", what), ("square", 5), ("square", 6)]

    def call(actor, unit):
        name, argument = unit
        return actor.once.remote(tmp_path, argument) if name == "once" else actor.square.remote(argument)

    first, *others = pool.map(call, units)
    assert first.startswith(what) and first != f"{what} {(tmp_path / what).read_text()}"
    assert others == [25, 36]
    trouble = {"die": "died (", "break": "has a broken engine (out of blocks)"}
    (warning,) = [text for text in pools.warnings if trouble.get(what, "did not answer within 4 s") in text]
    assert warning.startswith(("sleeper-0 ", "sleeper-1 "))
    assert warning.endswith("; it is replaced and its work issued again")


def test_a_worker_that_died_while_idle_is_replaced_at_its_next_unit(pools, tmp_path):
    pool = pools(1)
    ray.kill(pool.actors[0])
    # Its successor has more time than that of a unit: it has to start.
    assert list(pool.map(square, [(2, TIMEOUT_S + 1)])) == [4]
    assert len(pools.warnings) == 1


def test_work_that_ends_every_worker_is_an_error_with_the_workers_name(pools, monkeypatch):
    monkeypatch.setattr("rl_lab.workers.pool.MAX_ATTEMPTS", 2)
    pool = pools(1)
    with pytest.raises(PoolError, match=r"sleeper-0 has a broken engine \(out of blocks\); it was replaced 2 times"):
        list(pool.map(lambda actor, unit: actor.always.remote(unit), ["break"]))
    assert len(pools.warnings) == 2
    assert list(pool.map(square, [3])) == [9]


def test_an_error_of_a_worker_arrives_as_it_was_raised_and_in_its_turn(pools):
    pool = pools(2)

    def call(actor, unit):
        return actor.always.remote(unit) if unit == "dance" else actor.square.remote(unit, 0.2)

    results = pool.map(call, [1, "dance", 2])
    assert next(results) == 1
    with pytest.raises(UserError, match="^cannot dance; say something else$"):
        next(results)
    assert list(pool.map(square, [3])) == [9]
    assert pools.warnings == []


def test_a_pool_can_be_closed_while_its_workers_hang(pools):
    pool = pools(1)
    batch = pool.submit(lambda actor, unit: actor.always.remote(unit), ["hang", "hang"])
    time.sleep(0.5)
    start = time.monotonic()
    pool.close()
    assert time.monotonic() - start < 5
    assert all(future.done() for future in batch)


def test_seconds_at_work_are_counted_while_a_unit_runs_and_after_it(pools):
    pool = pools(2)
    before = pool.busy_s
    batch = pool.submit(square, [(1, 0.4), (2, 0.4)])
    time.sleep(0.2)
    during = pool.busy_s - before
    assert list(pool.results(batch)) == [1, 4]
    after = pool.busy_s - before
    time.sleep(0.2)
    assert 0 < during < after and after >= 0.8
    assert pool.busy_s - before == pytest.approx(after), "idle workers count nothing"
