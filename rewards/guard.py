"""No failed reward call becomes a silent 0 or 1: it becomes None and a `Failure` with its reason.

Our own formulas need no clock: their input is cut to `MAX_ANSWER_CHARS` and `MAX_OBJECTS`, and parsing is linear.
`checked` catches their exceptions. Functions of others run through `Guard`, in a process that is killed in time.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from rewards.config import GuardConfig
from rewards.isolation import CallFailedError, IsolatedFunction, as_number

Reason = Literal["exception", "not a number", "out of range", "time-out", "abstained"]
FAILED_CALL = "reward call failed"
"""How a line about a failure begins."""
TRAINER_ARGUMENTS = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL passes beside columns; it belongs to the trainer's process and does not reach a guarded function."""


@dataclass(frozen=True)
class Failure:
    """A call that gave no reward."""

    sample: int
    """Position in the batch."""
    part: str
    """Which reward failed, e.g. `verifier`, `judge` or the name of a function."""
    reason: Reason
    detail: str
    """One line: the exception's type and text, or the value."""


def failure_counts(failures: Iterable[Failure]) -> dict[str, int]:
    """Number of failures by `part/reason`, for metrics."""
    return dict(Counter(f"{failure.part}/{failure.reason}" for failure in failures))


def checked(function: Callable[[], Any], sample: int, part: str) -> tuple[float | None, Failure | None]:
    """Value of a call in this process, or its failure. None from the function is "not applicable" and no failure."""
    try:
        value = function()
        value = as_number(value)
    except Exception as error:  # noqa: BLE001 - one sample's reward must not end the step, whatever it raises
        return None, _failed(error, sample, part)
    if value is None or 0.0 <= value <= 1.0:
        return value, None
    reason: Reason = "not a number" if math.isnan(value) else "out of range"
    return None, Failure(sample, part, reason, f"{value} is not in 0..1")


def _failed(error: Exception, sample: int, part: str) -> Failure:
    # A function that runs elsewhere sends its exception as text, with the type in it.
    detail = str(error) if isinstance(error, CallFailedError) else f"{type(error).__name__}: {error}"
    reason: Reason = "time-out" if isinstance(error, TimeoutError) else "exception"
    return Failure(sample, part, reason, " ".join(detail.split()))


class Guard:
    """A reward function with TRL's signature, called for each sample on its own under time limits.

    So one hostile completion costs one sample, not the batch; a function that compares the completions of a batch with
    each other does not fit. A call takes at most `start_timeout_s + batch_timeout_s` and then has an entry for every
    sample. Arguments must pickle; `TRAINER_ARGUMENTS` are not passed on.
    """

    def __init__(self, function: Callable[..., Any], name: str, config: GuardConfig) -> None:
        self._function = IsolatedFunction(function, name, config.memory_gib)
        self._name = name
        self._config = config

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any
    ) -> tuple[list[float | None], list[Failure]]:
        """Values, None where not applicable or failed, and the failures."""
        arguments = {"prompts": prompts, "completions": completions, **columns}
        per_sample = {key: value for key, value in arguments.items() if key not in TRAINER_ARGUMENTS}
        try:
            self._function.start(time.monotonic() + self._config.start_timeout_s)
        except (TimeoutError, CallFailedError) as error:
            return [None] * len(completions), [_failed(error, sample, self._name) for sample in range(len(completions))]
        batch_deadline = time.monotonic() + self._config.batch_timeout_s
        values, failures = [], []
        for sample in range(len(completions)):
            one = {key: [value[sample]] for key, value in per_sample.items()}
            value, failure = checked(partial(self._call, one, batch_deadline), sample, self._name)
            values.append(value)
            failures += [failure] if failure else []
        return values, failures

    def start(self) -> None:
        """Start the process, which imports the function. ValueError, with what the import raised, where it fails."""
        try:
            self._function.start(time.monotonic() + self._config.start_timeout_s)
        except (TimeoutError, CallFailedError) as error:
            said = " ".join(str(error).split()) or f"no answer in {self._config.start_timeout_s:g} s"
            raise ValueError(
                f"functions.{self._name} cannot be imported: {said}; install what it imports, or mend its file"
            ) from error

    def close(self) -> None:
        """End the process."""
        self._function.close()

    def _call(self, arguments: dict[str, Any], batch_deadline: float) -> Any:
        if time.monotonic() >= batch_deadline:
            raise TimeoutError(f"the batch's {self._config.batch_timeout_s:g} s were over before this sample")
        self._function.start(batch_deadline)
        deadline = min(time.monotonic() + self._config.timeout_s, batch_deadline)
        try:
            return self._function.call(arguments, deadline)
        except TimeoutError as error:
            raise TimeoutError(f"no value in {self._config.timeout_s:g} s; its process was killed") from error
