"""Servers that crash, hang, exit or are orphaned: noticed, named, replaced."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from envs.robotwin.connection import Connection, RoboTwinError, ServerDiedError, ServerTimeoutError
from tests.robotwin.fake import robotwin

CALM = np.array([-0.3, 0, 0.9, 1, 0, 0, 0, 0.2, 0.3, 0, 0.9, 1, 0, 0, 0, 1.0])
FATAL = np.array([-0.3, 0, 0.9, 1, 0, 0, 0, 1.0, 0.3, 0, 0.9, 1, 0, 0, 0, 1.0])


def ends(pid, within_s=10.0):
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_a_crash_is_named_with_what_robotwin_printed_and_load_goes_on_after_it(checkout, make_env):
    env = make_env(checkout, task="crash_block", image_size=None)
    env.reset(seed=1)
    env.advance(CALM)
    pose, snapshot = env.ee_pose(), env.save()
    with pytest.raises(ServerDiedError, match=r"ended by SIGSEGV during step\.(.|\n)*about to crash"):
        env.advance(FATAL)
    with pytest.raises(ServerDiedError, match="has ended; reset starts another"):
        env.advance(CALM)
    env.load(snapshot)
    np.testing.assert_array_equal(env.ee_pose(), pose)
    assert (env.step_count, env.server.num_starts) == (1, 2)


def test_a_hang_is_ended_after_its_time_and_reset_starts_another_server(classic, make_env):
    env = make_env(classic, task="hang_block", image_size=None, timeouts={"step_timeout_s": 1.0})
    env.reset(seed=1)
    pid = env.server.connection.pid
    start = time.monotonic()
    with pytest.raises(ServerTimeoutError, match="did not answer step within 1 s"):
        env.advance(FATAL)
    assert time.monotonic() - start < 10 and ends(pid)
    env.reset(seed=1)
    env.advance(CALM)
    assert (env.step_count, env.server.num_starts) == (1, 2)


def test_a_crash_in_reset_is_survived_as_often_as_allowed(classic, make_env):
    with pytest.raises(ServerDiedError, match="exit code 3 during reset"):
        make_env(classic, task="crash_once_block", image_size=None, restarts=0).reset(seed=1)
    (classic / "crashed").unlink()
    env = make_env(classic, task="crash_once_block", image_size=None)
    env.reset(seed=1)
    assert env.server.num_starts == 2


def test_a_killed_server_is_replaced_by_reset(classic, make_env):
    env = make_env(classic, image_size=None)
    env.reset(seed=1)
    os.kill(env.server.connection.pid, signal.SIGKILL)
    with pytest.raises(ServerDiedError, match="SIGKILL"):
        env.observe(images=False)
    env.reset(seed=2)
    assert env.scene_seed == 2


def test_exit_and_a_changed_folder_in_robotwin_do_not_end_the_server(classic, make_env):
    env = make_env(classic, task="exit_block", image_size=None)
    env.reset(seed=1)
    with pytest.raises(RoboTwinError, match="SystemExit") as failed:
        env.advance(CALM)
    assert failed.value.kind == "robotwin" and "Traceback" in str(failed.value)
    env.reset(seed=2)
    assert env.server.num_starts == 1


def test_closing_ends_the_process_and_twice_is_fine(classic, make_env):
    env = make_env(classic, image_size=None)
    env.reset(seed=1)
    pid = env.server.connection.pid
    env.close()
    env.close()
    assert ends(pid)


def test_a_server_whose_owner_is_gone_ends(classic, tmp_path):
    code = (
        "import sys, os\n"
        "from envs.robotwin.connection import Connection, RoboTwin\n"
        f"print(Connection(RoboTwin(sys.executable, {str(classic)!r})).pid, flush=True)\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert ends(int(done.stdout))


def test_an_interpreter_that_is_no_server_is_named(classic, tmp_path):
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho wrong machine; exit 7\n")
    broken.chmod(0o755)
    with pytest.raises(ServerDiedError, match=r"exit code 7 during hello\.\nwrong machine"):
        Connection(robotwin(classic).__class__(str(broken), str(classic)))
