"""Turns at shared workers."""

import threading
import time

from rl_lab.workers.turns import Turns, waited_s


def test_only_who_waits_is_charged_and_one_at_a_time_has_a_turn():
    turns, here, charged = Turns(), threading.Event(), []

    def wait() -> None:
        here.set()
        with turns.taken():
            charged.append(waited_s())
        with turns.taken():
            charged.append(waited_s())

    with turns.taken():
        before = waited_s()
        other = threading.Thread(target=wait)
        other.start()
        here.wait()
        time.sleep(0.1)
        assert not charged
    other.join()
    assert waited_s() == before < 0.1 <= charged[0] <= charged[1] < charged[0] + 0.1
