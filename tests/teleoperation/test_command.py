"""`python -m rl_lab.correct`: its page, its episodes and its errors."""

import itertools
import json
import socket
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest

from envs.rollback import Corrector, intervened_rollout
from envs.rollout import run_lockstep
from rl_lab.common.errors import UserError
from rl_lab.correct import failed_episodes, main
from rl_lab.rollouts.collect import collection_units, round_name
from rl_lab.stages.kinds import load_config
from rl_lab.teleoperation.server import PageServer
from rl_lab.workers.policy import LocalPolicy
from rl_lab.workers.simulation import Environments
from tests.support.models import save_nano_policy


class Keys:
    """A session that only listens."""

    def __init__(self):
        self.pressed: list[str] = []
        self.over = False
        self.threads = set()

    def press(self, key):
        self.threads.add(threading.get_ident())
        self.over = key == "last"
        self.pressed.append(key)
        return self.status()

    def status(self):
        return {"over": self.over, "kept": len(self.pressed)}

    def picture(self):
        return b"PNG"


@pytest.fixture
def page():
    """A served session, and how to ask it."""
    keys = Keys()
    with PageServer(keys, 0) as server:
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()

        def ask(path, body=None, kind="application/json", **headers):
            headers |= {"Content-Type": kind} if body is not None else {}
            with urlopen(Request(server.address + path, body, headers), timeout=60) as answer:
                return answer.read()

        ask.port = server.server_address[1]
        yield keys, ask
        if not keys.over:
            assert json.loads(ask("/press", b'{"key": "last"}'))["over"], "the page hears of the end"
        thread.join(60)
        assert not thread.is_alive()
        assert keys.threads == {thread.ident}, "a simulator's graphics belong to one thread"


def test_the_page_presses_keys_and_shows_the_scene(page):
    keys, ask = page
    assert b"Corrections" in ask("/") and ask("/picture?1") == b"PNG"
    assert json.loads(ask("/press", b"{}")) == {"over": False, "kept": 0}
    assert json.loads(ask("/press", b'{"key": "w"}'))["kept"] == 1 and keys.pressed == ["w"]
    for path, body, kind in (
        ("/other", None, ""),
        ("/press", b'{"key": "w"}', "text/plain"),
        ("/press", b"[", "application/json"),
    ):
        with pytest.raises(HTTPError):
            ask(path, body, kind)
    assert keys.pressed == ["w"], "a page of another site cannot press keys"


def test_connections_that_say_nothing_hold_nobody_up(page):
    keys, ask = page
    idle = [socket.create_connection(("127.0.0.1", ask.port)) for _ in range(8)]
    idle[0].sendall(b"POST /press HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Le")
    assert json.loads(ask("/press", b'{"key": "w"}'))["kept"] == 1
    for connection in idle:
        connection.close()


def test_connections_have_a_number_and_an_end(page, monkeypatch):
    _, ask = page
    monkeypatch.setattr("rl_lab.common.listening.REQUEST_S", 4.0)
    idle = [socket.create_connection(("127.0.0.1", ask.port), 60) for _ in range(PageServer.max_clients)]
    with socket.create_connection(("127.0.0.1", ask.port), 60) as further:
        assert further.recv(100).startswith(b"HTTP/1.0 503 ")
    for connection in idle:
        assert connection.recv(1) == b"", "nobody is waited for longer than the time of a request"
        connection.close()
    assert ask("/picture") == b"PNG"


@pytest.mark.parametrize(
    "length", ["-1", "99999999999999999999", "9" * 5000, "1001", None, "", "ten", "+5", "1e1", "\u0661"]
)
def test_a_length_that_is_none_is_refused_at_once(page, length):
    keys, ask = page
    line = "" if length is None else f"Content-Length: {length}\r\n"
    head = f"POST /press HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{line}\r\n"
    with socket.create_connection(("127.0.0.1", ask.port), 60) as connection:
        connection.sendall(head.encode() + b'{"key": "w"}')
        assert connection.recv(100).startswith(b"HTTP/1.0 400 ")
    assert keys.pressed == []


def test_a_body_that_comes_too_slowly_is_refused(page, monkeypatch):
    keys, ask = page
    monkeypatch.setattr("rl_lab.common.listening.REQUEST_S", 1.0)
    with socket.create_connection(("127.0.0.1", ask.port), 60) as connection:
        head = (
            b"POST /press HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n"
        )
        connection.sendall(head + b'{"key": "w"')
        assert connection.recv(100).startswith(b"HTTP/1.0 400 ")
    assert keys.pressed == []


@pytest.mark.parametrize(
    "body", [b"3", b"null", b'"key"', b"[" * 1000, b"\xff", b"[]", b'{"key": 5}', b'{"key": ["w"]}']
)
def test_what_names_no_key_is_refused(page, body):
    with pytest.raises(HTTPError, match="400"):
        page[1]("/press", body)
    assert page[0].pressed == []


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:8766"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "localhost:8766", "Origin": "http://localhost:9999"},
    ],
)
def test_pages_of_other_sites_see_nothing_and_press_nothing(page, headers):
    keys, ask = page
    for path, body in (("/", None), ("/picture", None), ("/press", b'{"key": "w"}')):
        with pytest.raises(HTTPError, match="403"):
            ask(path, body, **headers)
    assert keys.pressed == []


def test_the_page_is_also_found_as_localhost_and_through_a_tunnel(page):
    _, ask = page
    for host in ("localhost:9000", "LOCALHOST", "127.0.0.1:9000"):
        assert json.loads(ask("/press", b"{}", Host=host, Origin=f"http://{host}"))["kept"] == 0


def test_what_the_session_raises_ends_the_command_and_reaches_the_page():
    class Broken(Keys):
        def press(self, key):
            raise RuntimeError("the simulator died")

    def ask(address, heard):
        try:
            urlopen(Request(address + "/press", b'{"key": "w"}', {"Content-Type": "application/json"}), timeout=60)
        except HTTPError as error:
            heard.append((error.code, error.read()))

    heard = []
    with PageServer(Broken(), 0) as server:
        asking = threading.Thread(target=ask, args=(server.address, heard))
        asking.start()
        with pytest.raises(RuntimeError, match="the simulator died"):
            server.run()
        asking.join(60)
    assert heard == [(500, b"RuntimeError: the simulator died\n")]


EXPERIMENT = """
name: corrections
seed: 0
env: {backend: tabletop, tasks: [handover_block]}
stages: [demos, sft, {repeat: 1, of: [collect, optimise, evaluate]}]
collect: {pairs: 5, max_episodes: 10}
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A policy with random weights, which always fails, and an experiment."""
    folder = tmp_path_factory.mktemp("correct")
    save_nano_policy(folder / "policy")
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    return folder


def test_its_failures_are_those_of_the_round_bit_for_bit(given):
    config = load_config(given / "experiment.yaml", [])
    first = list(itertools.islice(failed_episodes(given / "policy", config, set()), 3))
    ((_, (unit,)),) = collection_units(config, round_name(1), config.seed)
    policy = LocalPolicy(given / "policy", seed=config.seed)
    seen = {}

    def stand_still(env, seed, before):
        seen[seed] = env.save()
        yield from ()

    watching = Corrector("watching", stand_still)
    envs = Environments().of(unit.env, len(unit.seeds))
    draw = np.random.default_rng(0)
    run_lockstep(
        [
            intervened_rollout(env, seed, corrector=watching, config=config.collect, generator=draw)
            for env, seed in zip(envs, unit.seeds, strict=True)
        ],
        policy.act,
    )
    assert [failed.seed for failed in first] == list(unit.seeds[:3])
    for failed in first:
        assert seen[failed.seed] in failed.trace.snapshots
    done = {failed.episode for failed in first[:2]}
    (third,) = itertools.islice(failed_episodes(given / "policy", config, done), 1)
    assert third.seed == unit.seeds[2], "what is corrected is not asked for again"


def test_bad_input_is_one_line(given, tmp_path):
    experiment, policy = str(given / "experiment.yaml"), str(given / "policy")
    with pytest.raises(UserError, match=r"CKPT: .* is no checkpoint folder: config.json is missing"):
        main([str(tmp_path), experiment, "--out", str(tmp_path / "c.jsonl")])
    with pytest.raises(UserError, match="cannot write .*policy/lab.json: .*policy is read by the same command"):
        main([policy, experiment, "--out", f"{policy}/lab.json"])
    with pytest.raises(UserError, match="experiment.yaml has no rounds in which failures are corrected; give one"):
        main([policy, experiment, "stages=[demos, sft]", "--out", str(tmp_path / "c.jsonl")])
    with pytest.raises(UserError, match="its folder does not exist; give a file in an existing folder"):
        main([policy, experiment, "--out", str(tmp_path / "no" / "c.jsonl")])
    with pytest.raises(UserError, match="port 99999 cannot be used: .*; give another --port, or 0"):
        main([policy, experiment, "--out", str(tmp_path / "c.jsonl"), "--port", "99999"])
