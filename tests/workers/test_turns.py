"""Turns at shared workers."""

import threading
from types import SimpleNamespace

from rl_lab.graph import executor
from rl_lab.graph.executor import Turns, waited_s


class Clock:
    """A clock that stands still, and tells when another thread has looked at it."""

    def __init__(self) -> None:
        self.now, self.seen = 0.0, threading.Event()

    def monotonic(self) -> float:
        if threading.current_thread() is not threading.main_thread():
            self.seen.set()
        return self.now


def test_only_who_waits_is_charged_and_one_at_a_time_has_a_turn(monkeypatch):
    clock, shared, charged = Clock(), Turns(), []
    monkeypatch.setattr(executor, "time", SimpleNamespace(monotonic=clock.monotonic))

    def wait() -> None:
        for _ in range(2):
            with shared.taken():
                charged.append(waited_s())

    with shared.taken():
        before = waited_s()
        other = threading.Thread(target=wait)
        other.start()
        assert clock.seen.wait(60)
        clock.now = 5.0
        assert not charged
    other.join()
    assert charged == [5.0, 5.0] and waited_s() == before
