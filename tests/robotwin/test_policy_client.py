"""A served policy acts in RoboTwin's own evaluation as it does here, through a client that needs numpy alone."""

import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.robotwin import protocol
from envs.rollout import Decision
from envs.stitching import fresh, stitch
from envs.types import CAMERAS
from rl_lab.config.section import MemoryConfig, ModelConfig
from rl_lab.learner.actions import starting_policy
from rl_lab.model.checkpoint import save_policy
from rl_lab.model.norm_stats import STATS_FILE, ActionStats
from rl_lab.records.action_batches import fit_processor
from rl_lab.workers.policy import LocalPolicy
from rl_lab.workers.serving import MAX_CLIENTS, PolicyServer, PolicyService
from tests.support.episodes import episode, poses
from tests.support.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
CLIENT = ROOT / "envs/robotwin/deploy_policy.py"
MODEL = ModelConfig(
    chunk_size=6, absolute_half=True, first_slot="current", memory=MemoryConfig(frames=3, interval=2, layer_stride=1)
)
STEPS, EXECUTE = 7, 3
PATH = poses(STEPS, 1)

EVALUATION = """
import sys, types
import numpy as np
path, port, execute, out, kind = sys.argv[1:]
before = set(sys.modules)
module = types.ModuleType("rl_lab_policy")
exec(compile(open(path).read(), path, "exec"), module.__dict__)
poses = np.load(out + "/poses.npy")

class Env:
    def __init__(self):
        self.actions = []
    def get_instruction(self):
        return "Hand it over."
    def get_obs(self):
        step = len(self.actions)
        views = {c: {"rgb": np.full((64, 64, 3), 9 * step + k, np.uint8)} for k, c in enumerate(module.CAMERAS)}
        ends = {}
        for arm, start in (("left", 0), ("right", 8)):
            ends[arm + "_endpose"], ends[arm + "_gripper"] = poses[step, start:start + 7], poses[step, start + 7]
        return {"observation": views, "endpose": ends, "joint_action": {}}
    def take_action(self, action, action_type):
        assert action_type == "ee"
        self.actions.append(np.asarray(action))

def xpl(observation, env):
    state = {}
    for arm in ("left", "right"):
        state[arm + "_ee_pose"] = observation["endpose"][arm + "_endpose"]
        state[arm + "_ee_joint_state"] = np.array([observation["endpose"][arm + "_gripper"]])
    views = zip(module.XPL_CAMERAS, module.CAMERAS)
    vision = {x: {"color": observation["observation"][c]["rgb"]} for x, c in views}
    return {"state": state, "vision": vision, "instruction": env.get_instruction()}

episodes = []
config = {"port": int(port), "rl_lab_port": int(port), "execute": int(execute), "task_name": "handover_block"}
model = module.get_model(config) if kind == "classic" else module.Model(config)
for _ in range(2):
    env = Env()
    if kind == "classic":
        module.reset_model(model)
    else:
        model.reset()
    while len(env.actions) < len(poses) - 1:
        observation = env.get_obs()
        if kind == "classic":
            module.eval(env, model, observation)
        else:
            model.update_obs(xpl(observation, env))
            (action,) = model.get_action()
            assert action["action_type"] == "ee"
            parts = [action[a + k] for a in ("left", "right") for k in ("_ee_pose", "_ee_joint_state")]
            env.take_action(np.concatenate(parts), "ee")
    episodes.append(env.actions)
np.save(out + "/actions.npy", np.array(episodes))
foreign = {name.split(".")[0] for name in sys.modules} - set(sys.stdlib_module_names) - {"numpy", "__main__"}
print(sorted(foreign - {name.split(".")[0] for name in before}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    start = starting_policy(MODEL, seed=0, stride=1)
    processor = fit_processor(start.policy.config, [episode(1), episode(2)], start.timing)
    save_policy(folder, start.policy, processor, start.info)
    return folder


@contextlib.contextmanager
def served(checkpoint):
    """The port of a server of this process."""
    with PolicyServer(PolicyService(checkpoint, seed=0, device="cpu"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.port
        server.shutdown()


@pytest.fixture(scope="module")
def port(checkpoint):
    """For what needs no server of its own."""
    with served(checkpoint) as port:
        yield port


def client():
    spec = importlib.util.spec_from_file_location("rl_lab_policy", CLIENT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def views(step):
    return np.stack([np.full((64, 64, 3), 9 * step + camera, np.uint8) for camera in range(3)])


def expected(checkpoint):
    """Both episodes of the evaluation, by the policy in this process."""
    policy = LocalPolicy(checkpoint, seed=0)
    episodes = []
    for number in (1, 2):
        actions = []
        for decision, step in enumerate(range(0, STEPS, EXECUTE)):
            pose = PATH[step].reshape(2, 8)
            endpose = {f"{arm}_endpose": part[:7] for arm, part in zip(("left", "right"), pose, strict=True)}
            endpose |= {f"{arm}_gripper": part[7] for arm, part in zip(("left", "right"), pose, strict=True)}
            shown = {name: {"rgb": view} for name, view in zip(CAMERAS, views(step), strict=True)}
            observation = {"observation": shown, "endpose": endpose, "instruction": "Hand it over."}
            past = np.stack([views(seen) if seen >= 0 else 0 * views(0) for seen in (step - 4, step - 2)])
            actions += list(policy.act([Decision(observation, (number, decision), past)])[0][:EXECUTE])
        episodes.append(actions[:STEPS])
    return np.array(episodes)


def only_numpy(folder):
    """A place from which an interpreter without site-packages finds numpy and nothing else."""
    package = Path(np.__file__).parent
    for source in (package, package.parent / "numpy.libs"):
        if source.exists():
            (folder / source.name).symlink_to(source)
    return {"PYTHONPATH": str(folder), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}


def evaluate(port, kind, tmp_path):
    (tmp_path / "packages").mkdir()
    np.save(tmp_path / "poses.npy", PATH)
    command = [sys.executable, "-S", "-c", EVALUATION, str(CLIENT), str(port), str(EXECUTE), str(tmp_path), kind]
    environment = only_numpy(tmp_path / "packages")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", "the client imports numpy and the standard library only"
    return np.load(tmp_path / "actions.npy")


@pytest.mark.parametrize("kind", ["classic", "xpolicylab"])
def test_both_evaluations_of_robotwin_get_the_actions_of_the_policy_here(checkpoint, port, tmp_path, kind):
    np.testing.assert_array_equal(evaluate(port, kind, tmp_path), expected(checkpoint))


class Robot:
    """It stands still, and is slow at one step."""

    commands, slow_at = 0, 8

    def observe(self):
        return views(0), PATH[0], "Hand it over."

    def advance(self, command):
        self.commands += 1
        if self.commands == self.slow_at:
            time.sleep(0.3)


def check_control(module, port, first):
    """A control loop beside the server's process."""
    policy = module.Policy(port=port, execute=EXECUTE)
    chunk = policy.chunk(policy_request(policy))
    policy.reset()
    policy.episode = 0
    log = module.control(Robot(), policy, 20, 24)
    np.testing.assert_array_equal(log.commands[:EXECUTE], chunk[:EXECUTE])
    np.testing.assert_array_equal(log.commands[0], first)
    assert len(log.commands) == 24 and log.missed >= 1
    assert log.late[0] == 0 and len(log.late) == len(log.latencies_s) >= 2 and min(log.late[1:]) >= 1
    assert policy.decisions - len(log.late) in (0, 1), "one prediction at a time"
    ended = module.control(robot := Robot(), policy, 20, 24, done=lambda: robot.commands == 4)
    assert len(ended.commands) == 4
    with pytest.raises(ValueError, match="hz is 0; expected control steps a second, above 0"):
        module.control(Robot(), policy, 0, 1)
    policy.chunk = lambda request: policy.connection.ask("act")
    with pytest.raises(RuntimeError, match="^rl_lab.serve: act has no images$"):
        module.control(Robot(), policy, 20, 1)


def policy_request(policy):
    policy.see(views(0))
    return policy.request(PATH[0], "Hand it over.")


@pytest.mark.parametrize("seed", range(20))
def test_the_client_stitches_as_the_lab_does(seed):
    rng = np.random.default_rng(seed)
    size, late = int(rng.integers(2, 20)), int(rng.integers(0, 12))
    for is_pose in (True, False):
        done, chunk = (poses(count, 7 * seed + count) for count in (1, size))
        if seed % 3 == 0:
            done[1] = done[0]  # it stands still
        found = client().stitch(done, chunk, late, is_pose)
        assert found == pytest.approx(stitch(done, fresh(chunk, late), poses=is_pose), abs=1e-9)


def test_the_command_serves_and_ends_and_a_client_says_when_it_is_gone(checkpoint, tmp_path):
    command = [sys.executable, "-m", "rl_lab.serve", str(checkpoint), "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as server:
        try:
            address, port = server.stdout.readline().strip().split(":")
            assert address == "127.0.0.1"
            policy = client().Policy(port=int(port), execute=EXECUTE)
            first = policy.action(views(0), PATH[0], "Hand it over.")
            assert first.shape == (16,) and np.isfinite(first).all()
            check_control(client(), int(port), first)
            server.terminate()
            assert server.wait(300) == 0
            policy.queue = []
            with pytest.raises(RuntimeError, match=r"no answer .* is `python -m rl_lab.serve CKPT --port \d+` running"):
                policy.action(views(1), PATH[1], "Hand it over.")
        finally:
            server.kill()


def test_a_server_that_hangs_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RuntimeError, match="within 0.3 s"):
        client().Policy(port=silent.getsockname()[1], timeout_s=0.3)


def test_a_broken_connection_is_opened_again(port):
    policy = client().Policy(port=port, execute=EXECUTE)
    first = policy.action(views(0), PATH[0], "Hand it over.")
    policy.connection.socket.shutdown(socket.SHUT_RDWR)
    policy.reset()
    policy.episode = 0
    np.testing.assert_array_equal(policy.action(views(0), PATH[0], "Hand it over."), first)


GOOD = {"images": np.zeros((3, 3, 64, 64, 3), np.uint8), "pose": PATH[0], "instruction": "Go.", "key": [0, 0]}
BAD = {
    "no memory": ({"images": np.zeros((3, 64, 64, 3), np.uint8)}, r"images have shape \[3, 64, 64, 3\]; expected"),
    "floats": ({"images": np.zeros((3, 3, 64, 64, 3))}, "images must be a uint8 array, not float64"),
    "qpos": ({"pose": np.zeros(14)}, "pose must be an array of 16 numbers"),
    "nan": ({"pose": np.full(16, np.nan)}, "pose is not finite"),
    "quaternion": ({"pose": 3 * PATH[0]}, "quaternion of norm 3.000"),
    "no text": ({"instruction": " "}, "instruction must be a text"),
    "surrogate": ({"instruction": "\ud800"}, "instruction must be a text that is not empty, without halves"),
    "key": ({"key": [0, 1.5]}, r"key must be \[episode, decision\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_observation_is_one_line_and_the_connection_goes_on(port, name):
    change, words = BAD[name]
    connection = client().PolicyClient(port, 60)
    with pytest.raises(RuntimeError, match=words) as caught:
        connection.ask("act", **(GOOD | change))
    assert "\n" not in str(caught.value)
    assert connection.ask("act", **GOOD)["chunk"].shape == (6, 16)


def test_images_of_a_camera_are_scaled_as_the_simulators_are(port):
    connection = client().PolicyClient(port, 60)
    wide = np.zeros((3, 3, 48, 64, 3), np.uint8) + 90
    square = np.zeros((3, 3, 64, 64, 3), np.uint8)
    square[:, :, 8:56] = 90
    asked = [connection.ask("act", **(GOOD | {"images": images}))["chunk"] for images in (wide, square)]
    np.testing.assert_array_equal(*asked)


def test_other_versions_methods_and_bytes_are_refused(port):
    connection = client().PolicyClient(port, 60)
    with pytest.raises(RuntimeError, match="the client speaks version 9, this server 1"):
        connection.ask("hello", version=9)
    with pytest.raises(RuntimeError, match="the client speaks version array[^\n]*again$"):
        connection.ask("hello", version=np.ones((3, 3)))
    with pytest.raises(RuntimeError, match="unknown method 'reset'; this server has hello, act"):
        connection.ask("reset")
    with socket.create_connection(("127.0.0.1", port), 60) as other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = protocol.read(other.recv)
        assert answer["error"]["kind"] == "protocol" and other.recv(1) == b""


def test_a_request_larger_than_an_observation_is_refused_in_one_line_and_not_buffered(port):
    largest = 3 * 3 * 1920 * 1080 * 3 + 128
    for header, body in ((1 << 16, largest + 1), (1 + (1 << 16), 0), (2, 4 << 30)):
        with socket.create_connection(("127.0.0.1", port), 60) as other:
            other.sendall(protocol.FRAME.pack(protocol.MAGIC, header, body))
            message = protocol.read(other.recv)["error"]["message"]
            assert message == f"frame of {header} + {body} bytes is over {1 << 16} + {largest}"
            assert other.recv(1) == b""
    with pytest.raises(RuntimeError, match="^rl_lab.serve: frame of [^\n]*$"):
        client().PolicyClient(port, 60).ask("act", **(GOOD | {"images": np.zeros((3, 3, 1200, 1920, 3), np.uint8)}))
    large = np.zeros((3, 3, 1080, 1920, 3), np.uint8)
    assert client().PolicyClient(port, 60).ask("act", **(GOOD | {"images": large}))["chunk"].shape == (6, 16)


def test_clients_have_a_number_and_slow_ones_an_end(checkpoint, monkeypatch):
    monkeypatch.setattr("rl_lab.workers.serving.IDLE_S", 5.0)
    monkeypatch.setattr("rl_lab.workers.serving.REQUEST_S", 5.0)
    with served(checkpoint) as port:
        others = [socket.create_connection(("127.0.0.1", port), 60) for _ in range(MAX_CLIENTS)]
        with pytest.raises(RuntimeError, match="^rl_lab.serve: this server has 16 clients already; end one"):
            client().PolicyClient(port, 60)
        others[0].sendall(protocol.MAGIC)
        for other in others:
            assert other.recv(1) == b"", "neither an idle client nor half a request is waited for"
            other.close()
        assert client().PolicyClient(port, 60).hello["commands"] == 6


@pytest.mark.parametrize("request_id", [None, "1", 1.5, {"__x": 1}, [[]]])
def test_a_request_without_a_number_is_refused(port, request_id):
    with socket.create_connection(("127.0.0.1", port), 60) as other:
        header = json.dumps({"id": request_id, "method": "hello", "params": {}}).encode()
        other.sendall(protocol.FRAME.pack(protocol.MAGIC, len(header), 0) + header)
        assert protocol.read(other.recv)["error"]["message"] == "a request's id is a whole number"


def test_the_clients_frames_are_those_of_the_protocol():
    message = {"id": 1, "params": {"a": np.arange(6.0).reshape(2, 3), "b": [1, "x", None], "c": np.zeros(2, np.uint8)}}
    read = protocol.loads(client().encode(message))
    np.testing.assert_array_equal(read["params"]["a"], message["params"]["a"])
    assert read["params"]["b"] == [1, "x", None] and read["params"]["c"].dtype == np.uint8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no checkpoint in nowhere"),
        (["{}", "--port", "99999"], "port"),
        (["{}", "--device", "tpu"], "device"),
    ],
)
def test_bad_input_of_the_command_is_one_line(checkpoint, arguments, words):
    from rl_lab.serve import main

    assert words in refusal(main, [text.format(checkpoint) for text in arguments])


def test_a_chunk_that_no_arm_may_be_sent_to_is_refused_and_not_sent(checkpoint, tmp_path):
    broken = shutil.copytree(checkpoint, tmp_path / "broken")
    stats = ActionStats.find(broken)
    replace(stats, action_mean=stats.action_mean * 1e4).save(broken / STATS_FILE)
    with served(broken) as port:
        connection = client().PolicyClient(port, 60)
        with pytest.raises(Exception, match=r"must not act: command 0 is refused: its left gripper .number 7. is "):
            connection.ask("act", **GOOD)
