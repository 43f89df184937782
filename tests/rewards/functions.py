"""Reward functions of a user, importable by the process that runs them. Each does what its completion says."""

import os
import signal
import subprocess
import sys
import threading
import time


def obedient(prompts, completions, **columns):
    """A value, or mischief."""
    word = completions[0]
    if word == "hang":
        while True:
            pass
    if word == "hang in C":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Lock().acquire(timeout=10**6)
        time.sleep(10**6)
    if word == "hang with a child":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        time.sleep(10**6)
    if word == "raise":
        raise KeyError("no such\nthing")
    if word == "exit":
        os._exit(3)
    if word == "nothing":
        return [None]
    if word == "two":
        return [0.5, 0.5]
    if word == "pid":
        return [os.getpid() / 2**31]
    if word == "length":
        return [len(columns["extra"][0]) / 10**8]
    return [float(word)]


async def later(prompts, completions, **columns):
    """An asynchronous function, as TRL takes it too."""
    return [0.25 for _ in completions]


class Scaled:
    """A callable with a setting."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, completions, **columns):
        return [self.factor * float(completions[0])]


class HangsOnArrival:
    """Its import in the process never ends."""

    def __call__(self, completions, **columns):
        return [1.0]

    def __setstate__(self, state):
        time.sleep(10**6)

    def __getstate__(self):
        return {"a": 1}


class FailsOnArrival(HangsOnArrival):
    """Its import in the process raises."""

    def __setstate__(self, state):
        raise RuntimeError("not today")
