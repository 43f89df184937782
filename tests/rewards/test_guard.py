"""A reward call that fails masks its sample and is counted; one that hangs ends."""

import math
import os
import pickle
import signal
import time

import pytest

from rewards import isolation
from rewards.config import SandboxConfig
from rewards.isolation import FailedCall, IsolatedFunction, Sandbox, checked, failure_counts
from tests.rewards import functions

PATIENT = SandboxConfig(timeout_s=60.0, batch_timeout_s=120.0)
HASTY = SandboxConfig(timeout_s=1.0, batch_timeout_s=120.0)


@pytest.fixture
def guarded():
    guards = []

    def make(function, config=PATIENT):
        guards.append(Sandbox(function, "f", config))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


def run(guard, completions, **columns):
    return guard([""] * len(completions), completions, **columns)


def reasons(failures):
    return [(failure.sample, failure.reason) for failure in failures]


def test_a_call_in_this_process_gives_a_value_or_a_failure():
    assert checked(lambda: 1, 0, "p") == (1.0, None)
    assert checked(lambda: None, 0, "p") == (None, None)
    assert checked(lambda: math.nan, 3, "p") == (None, FailedCall(3, "p", "not a number", "nan is not in 0..1"))
    for value in (-0.1, 1.1, math.inf):
        assert checked(lambda value=value: value, 0, "p")[1].reason == "out of range"
    assert checked(lambda: 1 / 0, 0, "p")[1] == FailedCall(0, "p", "exception", "ZeroDivisionError: division by zero")
    assert checked(lambda: "one", 0, "p")[1].reason == "exception"


@pytest.mark.parametrize("value", ["1", b"1"])
def test_text_is_no_reward(value):
    reward, failure = checked(lambda: value, 0, "p")
    assert reward is None and failure.reason == "exception" and "not the text" in failure.detail


def test_every_kind_of_failure_costs_only_its_own_sample(guarded):
    completions = ["0.5", "raise", "nan", "1.5", "nothing", "two", "1", "exit", "0"]
    values, failures = run(guarded(functions.obedient), completions)
    assert values == [0.5, None, None, None, None, None, 1.0, None, 0.0]
    assert reasons(failures) == [
        (1, "exception"),
        (2, "not a number"),
        (3, "out of range"),
        (5, "exception"),
        (7, "exception"),
    ]
    assert failures[0].detail == "KeyError: 'no such\\nthing'"
    assert "died" in failures[-1].detail
    assert failure_counts(failures) == {"f/exception": 3, "f/not a number": 1, "f/out of range": 1}


@pytest.mark.parametrize("mischief", ["hang", "hang in C", "hang with a child"])
def test_a_function_that_hangs_is_killed_and_the_next_sample_is_scored(guarded, mischief):
    guard = guarded(functions.obedient, HASTY)
    values, failures = run(guard, ["0.5", mischief])
    assert values[1] is None
    assert (1, "time-out") in reasons(failures)
    patient = guarded(functions.obedient)
    patient._function = guard._function
    assert run(patient, ["0.5"]) == ([0.5], [])


def test_an_interrupted_call_leaves_no_reply_for_the_next_sample(guarded):
    guard = guarded(functions.obedient)
    assert run(guard, ["0.5"])[0] == [0.5]
    receive = isolation._receive
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(isolation, "_receive", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(guard, ["0.1"])
    assert isolation._receive is receive
    assert run(guard, ["0.9"])[0] == [0.9]


def test_a_batch_of_hanging_calls_ends_with_the_time_of_the_batch(guarded):
    config = SandboxConfig(timeout_s=1.0, batch_timeout_s=1.5)
    values, failures = run(guarded(functions.obedient, config), ["hang"] * 1000)
    assert values == [None] * 1000
    assert reasons(failures) == [(sample, "time-out") for sample in range(1000)]


def test_the_process_is_another_one_and_stays_for_the_next_call(guarded):
    guard = guarded(functions.obedient)
    first, second = (run(guard, ["pid"])[0][0] for _ in range(2))
    assert first == second != os.getpid() / 2**31
    with pytest.raises(ProcessLookupError):
        guard.close()
        os.kill(int(first * 2**31), 0)


def test_a_hanging_process_ends_by_itself_when_its_caller_is_gone():
    function = IsolatedFunction(functions.obedient, "f")
    function.start(time.monotonic() + 120.0)
    arguments = {"prompts": [""], "completions": ["hang in C"]}
    request = bytes(isolation._NONCE_BYTES) + pickle.dumps((0.1, arguments))
    function._socket.sendall(len(request).to_bytes(8, "big") + request)
    assert function._process.wait(timeout=120.0) == -signal.SIGALRM
    function.close()


def test_an_idle_process_ends_when_its_caller_is_gone():
    function = IsolatedFunction(functions.obedient, "f")
    function.start(time.monotonic() + 120.0)
    function._socket.close()
    assert function._process.wait(timeout=120.0) == 0


def test_large_columns_arrive_and_trainer_arguments_do_not(guarded):
    values, failures = run(
        guarded(functions.obedient), ["length"], extra=["x" * 10**7], trainer_state=lambda: None, log_metric=print
    )
    assert (values, failures) == ([0.1], [])


def test_what_cannot_be_sent_is_a_failure_of_its_sample(guarded):
    values, failures = run(guarded(functions.obedient), ["1", "1"], extra=[lambda: None, 0])
    assert values == [None, 1.0]
    assert reasons(failures) == [(0, "exception")]


def test_callables_with_settings_and_asynchronous_functions_run_too(guarded):
    assert run(guarded(functions.Scaled(0.5)), ["0.5"]) == ([0.25], [])
    assert run(guarded(functions.later), ["a", "b"]) == ([0.25, 0.25], [])


def test_a_function_that_cannot_be_imported_there_is_refused_at_once():
    with pytest.raises(ValueError, match="top of a module"):
        Sandbox(lambda **columns: [1.0], "f", PATIENT)


def test_an_import_that_fails_or_hangs_masks_the_batch(guarded):
    guard = guarded(functions.FailsOnArrival())
    for _ in range(2):
        values, failures = run(guard, ["1", "1"])
        assert values == [None, None]
        assert failures[0].detail == "RuntimeError: not today"
    quick = SandboxConfig(start_timeout_s=2.0)
    values, failures = run(guarded(functions.HangsOnArrival(), quick), ["1", "1"])
    assert reasons(failures) == [(0, "time-out"), (1, "time-out")]
