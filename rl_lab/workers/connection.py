"""Ray behind a token: a cluster of the run's own on this machine, or one that was there before, with its own token.

Ray's servers run what they are sent. So those of a run's own cluster stay on loopback, which no other machine reaches,
and ask for a random token, which other users of this machine do not have. It is in the environment, where Ray's
processes and workers inherit it, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import ray
from ray._private import ray_constants, services
from ray._raylet import AuthenticationTokenLoader, Config, GcsClient  # type: ignore[attr-defined]
from ray.exceptions import AuthenticationError, RpcError

from rl_lab.common.errors import RunError, UserError

LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 1 << 30
START_LIMIT_S = 300
"""Ray has limits of its own for each of its processes, but no limit for all of its attempts together."""
CONNECT_LIMIT_S = 5.0
_MODE, _TOKEN = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"
_TOKEN_PLACES = "RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token"
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_raylet_start_wait_time_s": "120",  # beside other work a node needs longer than Ray waits
    "AUTOSCALER_METRIC_PORT": "-1",  # none: what it tells it tells without a token
}


class _LateError(BaseException):
    """START_LIMIT_S are over; no Exception, because Ray tries again after those."""


def use_token(mode: str, token: str | None = None) -> None:
    """Set the mode, and the token if one is given, for this process and those that it starts from now on."""
    os.environ |= {_MODE: mode} | ({_TOKEN: token} if token else {})
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    Config.initialize("")  # Ray has read its environment when it was imported
    AuthenticationTokenLoader.instance().reset_cache()


def start(num_cpus: int, object_store_memory: int = OBJECT_STORE_BYTES, **options: Any) -> None:
    """Start a cluster of this process's own, with a token of its own. RunError if it does not come up.

    `options` are further ones of `ray.init`. Call it in the main thread.
    """
    use_token("token", secrets.token_hex(32))
    # As where Ray has no clusters of several machines, the node's address is loopback, and nothing listens elsewhere.
    # As an argument of ray.init a loopback address would be replaced by that of the network.
    before, ray_constants.ENABLE_RAY_CLUSTER = ray_constants.ENABLE_RAY_CLUSTER, False
    try:
        with _as_one_line("Ray does not start"):
            ray.init(
                address="local",  # else Ray joins whatever somebody has started on this machine
                num_cpus=num_cpus,
                object_store_memory=object_store_memory,
                include_dashboard=False,
                log_to_driver=False,
                **options,
            )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def join(**options: Any) -> None:
    """Connect to the cluster at RAY_ADDRESS, with its token. Call it in the main thread.

    UserError if none answers there, if there is no token for it or a wrong one, and if it asks for none, unless
    RAY_AUTH_MODE=disabled says that this is meant. RunError if it answers and the connection fails.
    """
    address = _head()
    _check_token(address)
    with _as_one_line(f"no connection to the Ray cluster at {address}"):
        ray.init(address=address, **options)


def _head() -> str:
    """Host and port of the cluster at RAY_ADDRESS, where something listens."""
    named = os.environ["RAY_ADDRESS"]
    port = named.rpartition(":")[2]
    if "://" in named or (named != "auto" and not (port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65536)):
        raise UserError(f"RAY_ADDRESS or --address is {named}; give HOST:PORT of the cluster's head node")
    try:
        address = str(services.canonicalize_bootstrap_address(named))
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_LIMIT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no Ray cluster answers at {named} ({reason}); start one there") from error
    return address


def _check_token(address: str) -> None:
    """The cluster lets this process in, and nobody without its token; this process then uses the token."""
    may_be_open = os.environ.get(_MODE, "").lower() == "disabled"
    if _lets_in(address, "disabled"):
        text = f"the Ray cluster at {address} asks for no token, so whoever reaches it runs code on its machines"
        if not may_be_open:
            raise UserError(f"{text}; start it with RAY_AUTH_MODE=token, or set RAY_AUTH_MODE=disabled to use it as is")
        print(f"warning: {text}", file=sys.stderr)
    elif not _has_token():
        raise UserError(f"the Ray cluster at {address} asks for its token; give it in {_TOKEN_PLACES}")
    elif not _lets_in(address, "token"):
        raise UserError(f"the Ray cluster at {address} refuses the token; give its own in {_TOKEN_PLACES}")


def _lets_in(address: str, mode: str) -> bool:
    use_token(mode)
    try:
        with _quiet():
            GcsClient(address=address)
    except AuthenticationError:
        return False
    except RpcError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no Ray cluster of version {ray.__version__} answers at {address} ({reason})") from error
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what Ray's library writes to stderr about a refusal that is expected."""
    kept = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _has_token() -> bool:
    try:
        return AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True)
    except AuthenticationError:  # a file that cannot be read
        return False


@contextlib.contextmanager
def _as_one_line(what: str) -> Iterator[None]:
    """Whatever Ray raises, and having to wait too long, as one line."""
    try:
        with _time_limit():
            yield
    except (Exception, _LateError) as error:  # Ray raises plain Exceptions, too
        ray.shutdown()
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        mend = "free memory and /dev/shm, use a shorter TMPDIR, or try again where the machine is busy"
        raise RunError(f"{what}: {reason}; {mend}") from error


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def expire(number: int, frame: Any) -> None:
        raise _LateError(f"not done after {START_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, START_LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
