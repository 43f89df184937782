"""The lab's commands, each run in a fork of one process that has imported all of them once.

`python -m tests.faults.forks` reads requests as JSON lines and answers each with what the command did. It holds no
thread, no Ray and no GL context. Work that a command would begin once its input is accepted is cut off: `ACCEPTED`.
"""

import contextlib
import gc
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).resolve().parents[2]
ACCEPTED = 77
"""Exit code where a command would begin its real work."""
LIMIT_S, MEMORY_BYTES = 60, 6 << 30
LATE = -1
"""Exit code of what did not end in time."""


@dataclass(frozen=True)
class Outcome:
    """What a command did."""

    code: int
    """LATE, or its exit code; negative for a signal."""
    out: str
    err: str
    seconds: float


class Forks:
    """The process that forks, as seen from a test."""

    def __init__(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "ROBOTWIN_"))}
        environment |= {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "ROBOTWIN_ROOT": "",
            "WANDB_MODE": "disabled",
            "HF_HUB_OFFLINE": "1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=environment,
            text=True,
        )

    def run(self, folder: Path, command: str, *arguments: str) -> Outcome:
        """A command in a working directory."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(folder), command, arguments]) + "\n")
        self._process.stdin.flush()
        return Outcome(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def serve() -> None:
    """Answer requests until there are no more."""
    commands = load_commands()
    gc.freeze()  # else every fork copies the pages of all objects that its collector looks at
    for line in sys.stdin:
        folder, command, arguments = json.loads(line)
        outcome = _forked(Path(folder), commands[command], arguments)
        print(json.dumps(asdict(outcome)), flush=True)


def _forked(folder: Path, command: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> Outcome:
    with tempfile.TemporaryFile("w+b") as out, tempfile.TemporaryFile("w+b") as err:
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _child(folder, command, arguments, out.fileno(), err.fileno())
        code = _wait(pid)
        with contextlib.suppress(ProcessLookupError):  # whatever it started and left
            os.killpg(pid, signal.SIGKILL)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return Outcome(code, *texts, time.monotonic() - began)


def _child(
    folder: Path, command: Callable[[Sequence[str]], int], arguments: Sequence[str], out: int, err: int
) -> NoReturn:
    from rl_lab.common.errors import run_command

    code = 1
    try:
        os.setsid()
        os.dup2(out, 1), os.dup2(err, 2), os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(folder)
        resource.setrlimit(resource.RLIMIT_AS, (_address_space() + MEMORY_BYTES,) * 2)
        run_command(lambda: command(arguments))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _address_space() -> int:
    """Bytes that this process has mapped."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _wait(pid: int) -> int:
    """The exit code of a child, which is killed when its time is over."""
    handle = os.pidfd_open(pid)
    has_ended = select.select([handle], [], [], LIMIT_S)[0]
    os.close(handle)
    if not has_ended:
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.waitstatus_to_exitcode(status) if has_ended else LATE


def _begin_work(*_: Any, **__: Any) -> NoReturn:
    raise SystemExit(ACCEPTED)


@contextlib.contextmanager
def _no_stages(config: Any) -> Iterator[Any]:
    _begin_work()
    yield


def load_commands() -> dict[str, Callable[[Sequence[str]], int]]:
    """The commands by name, imported, with the beginnings of their real work replaced."""
    import datasets  # noqa: F401
    import torch

    import rl_lab.model.checkpoint  # noqa: F401
    import rl_lab.reports.pages.study  # noqa: F401
    import rl_lab.rollouts.rescore_actions  # noqa: F401
    import rl_lab.workers.policy  # noqa: F401
    from rl_lab import correct, data, doctor, eval, pool, report, rescore, run, serve
    from rl_lab.stages import preflight
    from rl_lab.workers import serving
    from tests.support import experiments

    torch.set_num_threads(1)
    preflight._check_gl = lambda: None
    preflight.has_vllm = lambda: True
    doctor.CHECKS = ()
    eval.evaluate = serving.PolicyServer = correct.PageServer = _begin_work

    modules = {"eval": eval, "serve": serve, "correct": correct, "report": report, "rescore": rescore, "data": data}
    plain = {name: module.main for name, module in (modules | {"pool": pool, "doctor": doctor}).items()}
    return plain | {
        "run": lambda arguments: run.main(arguments, _no_stages),
        "resume": lambda arguments: experiments.main(*arguments),
    }


if __name__ == "__main__":
    serve()
