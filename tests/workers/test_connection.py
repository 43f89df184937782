"""A cluster of the lab, as others on the machine and in its network see it: nothing answers without its token."""

import ipaddress
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from rl_lab.common.errors import RunError, UserError
from rl_lab.workers import connection
from rl_lab.workers.cluster import cluster_nodes

ROOT = Path(__file__).parents[2]
OTHER_TOKEN = "ab" * 32
OWN_CLUSTER = """
import sys
import ray
from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.workers.cluster import Cluster
cluster = Cluster(WorkersConfig(simulation=1), Placement(device="cpu"))
double = ray.remote(lambda number: 2 * number)
print(ray.get_runtime_context().gcs_address, flush=True)
for line in sys.stdin:
    print(ray.get(double.remote(int(line))), flush=True)
cluster.close()
"""
CLIENT = """
import os, sys
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
print("RAN", ray.get(ray.remote(lambda: os.getpid()).remote()))
"""
METHODS = [
    f"/ray.rpc.{name}"
    for name in (
        "NodeInfoGcsService/GetAllNodeInfo",
        "InternalKVGcsService/InternalKVKeys",
        "NodeManagerService/GetNodeStats",
        "ObjectManagerService/Pull",
        "CoreWorkerService/GetCoreWorkerStats",
    )
]
"""One of each service of Ray's servers."""


class Own:
    """A cluster in a process of its own, as `rl_lab.run` starts it."""

    def __init__(self, process: subprocess.Popen):
        self.process = process
        self.address = process.stdout.readline().strip()
        assert self.run(4) == 8  # workers are up, and listen
        members = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        self.command_lines = [" ".join(one.cmdline()) for one in members]
        (self.token,) = {one.environ().get("RAY_AUTH_TOKEN") for one in members[1:]} - {None}
        found = [one.laddr for member in members for one in member.net_connections("tcp") if one.status == "LISTEN"]
        self.listening = [(ipaddress.ip_address(host.removeprefix("::ffff:")), port) for host, port in found]

    def run(self, number: int) -> int:
        print(number, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def own():
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", OWN_CLUSTER],
        env=variables | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"},  # of other clusters, so not honoured
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    yield Own(process)
    process.stdin.close()
    process.wait(120)


def client(address: str, token: str | None) -> subprocess.CompletedProcess:
    """Somebody who wants to run a task."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else {"RAY_AUTH_MODE": "disabled"}
    return subprocess.run(
        [sys.executable, "-c", CLIENT, address],
        # The last one, because Ray takes 127.0.0.1 for the network's address otherwise.
        env=variables | {"RAY_NUM_REDIS_GET_RETRIES": "1", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_everything_listens_on_loopback_and_no_address_of_the_network_answers(own):
    assert len(own.listening) >= 5, "the head, the node's two servers, a worker and the driver"
    assert all(address.is_loopback for address, _ in own.listening), own.listening
    beyond = [one.address for found in psutil.net_if_addrs().values() for one in found if one.family == socket.AF_INET]
    for address in beyond:
        for _, port in own.listening if not ipaddress.ip_address(address).is_loopback else ():
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=10)


def test_the_token_is_in_no_command_line_and_no_log(own):
    assert len(own.token) == 64 and not any(own.token in line for line in own.command_lines)
    session = max(Path("/tmp/ray").glob("session_2*"), key=lambda path: own.address in _texts(path / "logs"))
    assert own.address in _texts(session / "logs")
    assert own.token not in _texts(session)


def _texts(folder: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("token", [None, OTHER_TOKEN], ids=["no token", "another token"])
def test_a_client_without_the_token_runs_nothing_while_the_runs_own_tasks_do(own, token):
    done = client(own.address, token)
    assert done.returncode != 0 and "RAN" not in done.stdout
    assert "Unauthenticated" in done.stderr or "InvalidAuthToken" in done.stderr
    assert own.run(21) == 42


def test_a_client_with_the_token_runs_a_task(own):
    assert "RAN" in client(own.address, own.token).stdout, "else the refusals above would prove nothing"


def test_every_server_refuses_who_has_no_token_or_another_one(own):
    grpc = pytest.importorskip("grpc", reason="grpcio comes with vLLM only")
    answers = {token: _answers(grpc, own.listening, token) for token in (None, OTHER_TOKEN, own.token)}
    for token in (None, OTHER_TOKEN):
        assert set(answers[token].values()) <= {"UNAUTHENTICATED", "UNAVAILABLE"}, answers[token]
    assert list(answers[own.token].values()).count("UNAUTHENTICATED") == 0
    assert list(answers[None].values()).count("UNAUTHENTICATED") >= 4, "head, the node's two servers and the driver"
    others = [place for place, code in answers[None].items() if code == "UNAVAILABLE"]
    assert [found for found in map(_http_status, others) if found] == ["401"], "the agent of environments speaks HTTP"


def _http_status(place):
    """None where nobody listens any more: a worker that had nothing to do has ended."""
    try:
        with socket.create_connection((str(place[0]), place[1]), timeout=30) as http:
            http.sendall(b"POST /get_or_create_runtime_env HTTP/1.0\r\nContent-Length: 0\r\n\r\n")
            return http.recv(100).split()[1].decode()
    except ConnectionRefusedError:
        return None


def _answers(grpc, listening, token):
    """Of every server, the status of the method that it knows."""
    metadata = [("authorization", f"Bearer {token}")] if token else []
    found = {}
    for address, port in listening:
        with grpc.insecure_channel(f"{address}:{port}") as channel:
            codes = {_code(grpc, channel, method, metadata) for method in METHODS} - {"UNIMPLEMENTED"}
        (found[address, port],) = codes
    return found


def _code(grpc, channel, method, metadata):
    try:
        channel.unary_unary(method)(b"", metadata=metadata, timeout=30)
    except grpc.RpcError as error:
        return error.code().name
    return "OK"


@pytest.fixture
def existing(request, monkeypatch):
    """A cluster that was there before; its address. The parameter is its mode."""
    connection.use_token(request.param, "cd" * 32)
    made = RayCluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    monkeypatch.setenv("HOME", "/nonexistent")
    yield made.address
    made.shutdown()


@pytest.mark.parametrize("existing", ["token"], indirect=True)
def test_an_existing_cluster_takes_its_own_token_only(existing, monkeypatch, tmp_path, capfd):
    with pytest.raises(UserError, match=f"cluster at {existing} asks for its token; give it in RAY_AUTH_TOKEN, the"):
        cluster_nodes()
    monkeypatch.setenv("RAY_AUTH_TOKEN", OTHER_TOKEN)
    with pytest.raises(UserError, match=f"cluster at {existing} refuses the token; give its own") as error:
        cluster_nodes()
    assert OTHER_TOKEN not in str(error.value)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    (tmp_path / "token").write_text("cd" * 32)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert [node["CPU"] for node in cluster_nodes()] == [1.0]
    assert "Unauthenticated" not in capfd.readouterr().err


@pytest.mark.parametrize("existing", ["disabled"], indirect=True)
def test_an_existing_cluster_without_a_token_is_refused_unless_that_is_meant(existing, monkeypatch, capfd):
    with pytest.raises(UserError, match=r"asks for no token, so whoever .* start it with RAY_AUTH_MODE=token, or set"):
        cluster_nodes()
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert [node["CPU"] for node in cluster_nodes()] == [1.0]
    assert "warning: the Ray cluster at" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray cluster answers at 127.0.0.1:9"),
        ("nonsense", "give HOST:PORT of the cluster's head node"),
        ("ray://127.0.0.1:10001", "give HOST:PORT of the cluster's head node"),
        ("127.0.0.1:99999", "give HOST:PORT of the cluster's head node"),
    ],
)
def test_an_address_where_no_cluster_is_is_one_line(monkeypatch, address, message):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=message):
        cluster_nodes()


def test_a_ray_that_fails_or_hangs_is_one_line(monkeypatch):
    def fail(**options):
        raise Exception("The current node timed out\nduring startup")

    def hang(**options):
        while True:
            try:
                time.sleep(60)
            except Exception:  # as Ray does
                continue

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(RunError, match="^Ray does not start: The current node timed out; free memory"):
        connection.start(1)
    monkeypatch.setattr(ray, "init", hang)
    monkeypatch.setattr(connection, "START_LIMIT_S", 0.2)
    with pytest.raises(RunError, match="^Ray does not start: not done after 0.2 s; free memory"):
        connection.start(1)
