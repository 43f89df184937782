"""What a reward function's process may do to others: see docs/rewards.md, "What isolation does". Linux.

The process splits in two before the function is imported. The first half, which runs no code of the function, adopts
whatever that starts, also in a session of its own (PR_SET_CHILD_SUBREAPER), and kills it all when the second half ends
or the caller is gone. The second has a limit of memory, and writes to a folder of its own only (Landlock).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import os
import resource
import select
import signal
import socket
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping

_KEPT = {"PATH", "LANG", "LANGUAGE", "TZ", "TMPDIR", "PYTHONPATH", "PYTHONHASHSEED", "LD_LIBRARY_PATH", "VIRTUAL_ENV"}
_KEPT_PREFIXES = ("LC_", "OMP_", "MKL_", "OPENBLAS_", "CUDA_")
_WRITABLE = ("/dev/null", "/dev/nvidia*")
_POLL_MS = 1000
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38
_CAPABILITY_VERSION = 0x20080522
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_RULE_PATH_BENEATH = 1
_WRITE_FILE, _TRUNCATE = 1 << 1, 1 << 14
_CHANGE = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # removes and makes of every kind
_RIGHTS_OF_ABI = {2: 1 << 13, 3: _TRUNCATE}  # moves between folders; `truncate`
_SCOPE = 0b11  # abstract sockets and signals, from ABI 6


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Those variables that an interpreter needs to find and run code; no secrets among them."""
    return {name: value for name, value in environment.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)}


def supervise(descriptor: int, caller: int, memory: int | None, work: Callable[[socket.socket], None]) -> None:
    """Life of the process: `work` on the socket in a confined child. Ends as the child did, all its descendants dead.

    `caller` is the process at the other end, `memory` the child's limit in bytes.
    """
    _checked(_libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.dup2(2, 1)  # what the function prints is no output of the caller's
    folder = tempfile.TemporaryDirectory(prefix="reward-", ignore_cleanup_errors=True)
    with socket.socket(fileno=descriptor) as connection, folder as scratch:
        connection.set_inheritable(False)
        child = os.fork()
        if not child:
            _work(connection, scratch, memory, work)
        status = _watch(child, connection, caller)
        _kill_children()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        with contextlib.suppress(OSError):  # SIGKILL has no other action
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


def _work(connection: socket.socket, scratch: str, memory: int | None, work: Callable[[socket.socket], None]) -> None:
    """The second half, to its end or that of the first."""
    code = 1
    _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        _confine(scratch, memory)
        work(connection)
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, also an exit of the function's, must not reach the first half
        traceback.print_exc()
    finally:
        os._exit(code)


@functools.cache
def landlock_abi() -> int:
    """Version of Landlock on this kernel, 0 for none."""
    return max(_libc().syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1)), 0)


def _watch(child: int, connection: socket.socket, caller: int) -> int:
    """The status of the child when it has ended; 0 if the caller is gone before."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    poll = select.poll()
    poll.register(read, select.POLLIN)
    poll.register(connection, select.POLLRDHUP)
    while True:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == child:
                    return ended[1]
        events = dict(poll.poll(_POLL_MS))
        if read in events:
            os.read(read, 1 << 10)
        if connection.fileno() in events or os.getppid() != caller:
            return 0


def _kill_children() -> None:
    """Kill what is left. Whatever a killed one has started becomes our child."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for pid in _children():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)
            os.waitpid(-1, 0)


def _children() -> Iterator[int]:
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
            if int(file.read().rpartition(b")")[2].split()[1]) == os.getpid():
                yield int(name)


def _confine(scratch: str, memory: int | None) -> None:
    """This process and all that it starts: a limit of memory each, no privileges, no writes but to `scratch`."""
    os.environ.update(HOME=scratch, TMPDIR=scratch)
    tempfile.tempdir = scratch
    if memory is not None:
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = memory if hard == resource.RLIM_INFINITY else min(memory, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    _checked(_libc().prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    if landlock_abi():
        _deny_writes_outside(scratch)
    _checked(_libc().capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()))  # those of root


def _deny_writes_outside(scratch: str) -> None:
    """Landlock (kernel documentation, userspace-api/landlock). It also denies a look into processes outside."""
    abi = landlock_abi()
    handled = _CHANGE | sum(right for since, right in _RIGHTS_OF_ABI.items() if abi >= since)
    attributes = (ctypes.c_uint64 * 3)(handled, 0, _SCOPE)
    size = 24 if abi >= 6 else 8
    ruleset = _checked(_libc().syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(size), ctypes.c_uint32(0)))
    of_files = handled & (_WRITE_FILE | _TRUNCATE)
    rules = [(scratch, handled), *((path, of_files) for pattern in _WRITABLE for path in glob.glob(pattern))]
    for path, rights in rules:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = rights.to_bytes(8, "little") + place.to_bytes(4, "little")
        _checked(_libc().syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, ctypes.c_uint32(0)))
        os.close(place)
    _checked(_libc().syscall(_RESTRICT_SELF, ruleset, ctypes.c_uint32(0)))
    os.close(ruleset)


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "a limit of the process: " + os.strerror(ctypes.get_errno()))
    return result
