"""What a hostile reward function cannot do; each test really tries it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rewards import isolation
from rewards.config import SandboxConfig
from rewards.isolation import Sandbox
from rewards.sandbox import clean_environment, landlock_abi
from tests.rewards.mischief import SECRETS, mischief

ROOT = Path(__file__).resolve().parents[2]
PATIENT = SandboxConfig(timeout_s=60.0, batch_timeout_s=120.0, memory_gib=1.0)
needs_landlock = pytest.mark.skipif(not landlock_abi(), reason="this kernel has no Landlock")


@pytest.fixture
def call():
    """Call the function once for each word; values and details of failures."""
    guards = []

    def make(*words, target="", config=PATIENT, keep=False):
        if not (keep and guards):
            guards.append(Sandbox(mischief, "mischief", config))
        values, failures = guards[-1]([""] * len(words), words, target=[str(target)] * len(words))
        return values, [failure.detail for failure in failures]

    make.guard = lambda: guards[-1]
    yield make
    for guard in guards:
        guard.close()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def gone(pid):
    """Whether a process ends within a minute."""
    deadline = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(pid)


def test_what_a_function_prints_is_no_reply_and_no_output_of_ours(call, capfd):
    assert call("print", "print") == ([0.5, 0.5], [])
    said = capfd.readouterr()
    assert said.out == "" and said.err.count('{"value": 1.0}') == said.err.count("error: not mine") == 2


def test_what_is_written_to_stray_descriptors_is_no_reply(call):
    values, failures = call("forge", "honest", "forge", "honest")
    assert values == [None, 1.0, None, 1.0]
    assert all(text.startswith("the process of reward function mischief was ended: ") for text in failures)


def test_what_is_written_after_a_call_does_not_become_the_next_reply(call):
    assert call("forge later") == ([0.5], [])
    time.sleep(1)
    values, failures = call("scratch", "honest", keep=True)
    assert values == [None, 1.0] and len(failures) == 1


def test_memory_has_a_limit(call):
    values, failures = call("allocate", "honest", target=2 << 30)
    assert (values, failures) == ([None, 1.0], ["MemoryError:"])
    assert call("allocate", target=2 << 30, config=SandboxConfig(timeout_s=60.0, memory_gib=None)) == ([0.0], [])


@pytest.mark.parametrize("word", ["setsid", "orphan"])
def test_nothing_that_a_function_starts_outlives_it(call, word):
    (value,), _ = call(word)
    pid = round(value * 2**31)
    assert is_alive(pid)
    call.guard().close()
    assert not is_alive(pid)


def test_nor_does_it_outlive_a_function_that_hangs(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    config = SandboxConfig(timeout_s=5.0, batch_timeout_s=120.0)
    pids = []
    worker = threading.Thread(target=lambda: pids.append(written(tmp_path)))
    worker.start()
    assert call("hang with an orphan", config=config)[0] == [None]
    worker.join()
    assert not is_alive(pids[0])
    assert list(tmp_path.iterdir()) == [], "nor does its folder"


def written(folder):
    """The process id that a function writes into its folder."""
    for _ in range(6000):
        found = [path.read_text() for path in folder.glob("*/pid")]
        if found and found[0]:
            return int(found[0])
        time.sleep(0.01)
    raise TimeoutError


CALLER = """
import os, signal, sys
from rewards import isolation
from rewards.config import SandboxConfig
from rewards.isolation import Sandbox
from tests.rewards.mischief import mischief
guard = Sandbox(mischief, "mischief", SandboxConfig(timeout_s=60.0))
((value,), _) = guard([""], ["orphan"], target=[""])
print(round(value * 2**31), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_function_does_not_outlive_the_half_that_watches_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # which nobody empties then
    call("honest")
    watching = call.guard()._function._process.pid
    children = Path(f"/proc/{watching}/task/{watching}/children").read_text().split()
    assert len(children) == 1 and is_alive(int(children[0]))
    os.kill(watching, signal.SIGKILL)
    assert gone(int(children[0]))


def test_it_does_not_outlive_a_caller_that_is_killed(tmp_path):
    (tmp_path / "caller.py").write_text(CALLER)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, tmp_path / "caller.py"], env=environment, stdout=subprocess.PIPE, timeout=120
    )
    assert gone(int(done.stdout))


def test_the_callers_secrets_are_not_in_the_environment(call, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("HOME", "/home/mine")
    assert call("secrets", target="/home/mine") == ([0.0], [])
    given = {name: "x" for name in (*SECRETS, "PATH", "OMP_NUM_THREADS", "RAY_ADDRESS", "HOME", "LC_ALL")}
    assert clean_environment(given).keys() == {"PATH", "OMP_NUM_THREADS", "LC_ALL"}


@needs_landlock
def test_the_callers_memory_and_environment_cannot_be_read(call):
    # Not this process: what is set after its start does not show in /proc.
    environment = os.environ | {"HF_TOKEN": "secret"}
    with subprocess.Popen([sys.executable, "-c", "input()"], env=environment, stdin=subprocess.PIPE) as other:
        values, failures = call("environment of the caller", target=other.pid)
        other.communicate()
    assert values == [None] and failures[0].startswith("PermissionError")


@pytest.mark.skipif(landlock_abi() < 6, reason="this kernel's Landlock knows no signals")
def test_the_caller_cannot_be_killed(call):
    values, failures = call("signal the caller", target=os.getpid())
    assert values == [None] and failures[0].startswith("PermissionError")


@needs_landlock
@pytest.mark.parametrize("word", ["write", "remove", "write by a child"])
def test_nothing_outside_its_folder_is_written(call, tmp_path, word):
    path = tmp_path / "mine.txt"
    path.write_text("mine")
    values, failures = call(word, target=path)
    assert values == [None] and len(failures) == 1
    assert path.read_text() == "mine"
    call("write", target=tmp_path / "new.txt")
    assert not (tmp_path / "new.txt").exists()


def test_it_has_a_folder_of_its_own_which_goes_with_it(call, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    values, failures = call("scratch")
    assert failures == [] and values[0] > 0
    (scratch,) = tmp_path.iterdir()
    assert (scratch / "mine").read_text() == "mine"
    call.guard().close()
    assert not scratch.exists()


@pytest.mark.parametrize("word", ["exit", "kill"])
def test_a_function_that_ends_its_process_is_a_failure(call, capfd, word):
    values, failures = call(word, "honest")
    assert values == [None, 1.0] and "died" in failures[0]
    said = capfd.readouterr().err
    assert ("SystemExit" in said) == (word == "exit") and "OSError" not in said


def test_a_kernel_that_cannot_deny_writes_is_said_once(call, monkeypatch, caplog):
    monkeypatch.setattr(isolation, "landlock_abi", lambda: 0)
    isolation._warn_of_writes.cache_clear()
    call("honest")
    call("honest")
    isolation._warn_of_writes.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "this kernel has no Landlock: reward functions can write wherever we can"
    ]
