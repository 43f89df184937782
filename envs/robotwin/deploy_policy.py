"""A policy of the lab in RoboTwin's own evaluation, or on a robot: this file alone, copied there.

It asks `python -m rl_lab.serve CKPT` on this machine for chunks of actions. Needs numpy, the standard library of Python
3.10 or newer, and nothing of the lab. docs/robotwin.md says where to copy it and what to type.

* classic `script/eval_policy.py`: policy/rl_lab_policy.py, with `get_model`, `eval` and `reset_model`.
* XPolicyLab's policy server (RoboTwin since July 2026): XPolicyLab/policy/rl_lab/model.py, with `Model`. There the
  policy sees an observation only when it is asked for actions, so `get_action` gives one action at a time.
* a robot: `control`, a loop at a fixed rate in which the next chunk is predicted while the last one runs.

Frames are those of the lab's `envs/robotwin/protocol.py`, which is not at hand here: magic, uint32 length of a JSON
header, uint64 length of the arrays behind it. What is asked and answered stands in `rl_lab/workers/serving.py`.
"""

import json
import os
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

VERSION = 1
MAGIC, FRAME = b"RLRT", struct.Struct(">4sIQ")
CAMERAS = ("head_camera", "left_camera", "right_camera")
XPL_CAMERAS = ("cam_head", "cam_left_wrist", "cam_right_wrist")
ARMS = ("left", "right")
DEFAULT_PORT = 8765
MAX_ANSWER = 1 << 24
EXECUTE = 7
"""Commands of a chunk that are run before the next one is asked for, as Hy-VLA does on RoboTwin."""


class PolicyError(RuntimeError):
    """The server is not there, died, took too long, or refused the observation."""


class PolicyClient:
    """One connection to `rl_lab.serve`; opened again once where it broke, since requests stand for themselves."""

    def __init__(self, port, timeout_s):
        self.port, self.timeout_s = int(port), float(timeout_s)
        self.socket, self.number = None, 0
        self.hello = self.ask("hello", version=VERSION)

    def ask(self, method, **params):
        """The result of a request; PolicyError, in one line, if there is none."""
        for attempt in (0, 1):
            try:
                return self._ask(method, params)
            except TimeoutError as error:
                self.close()
                raise PolicyError(f"rl_lab.serve did not answer {method} within {self.timeout_s:g} s") from error
            except (OSError, EOFError, ValueError) as error:
                self.close()
                if attempt or isinstance(error, ConnectionRefusedError):
                    raise PolicyError(
                        f"no answer from rl_lab.serve on port {self.port} ({error}); is "
                        f"`python -m rl_lab.serve CKPT --port {self.port}` running on this machine?"
                    ) from error

    def _ask(self, method, params):
        if self.socket is None:
            self.socket = socket.create_connection(("127.0.0.1", self.port), self.timeout_s)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number += 1
        self.socket.sendall(encode({"id": self.number, "method": method, "params": params}))
        answer = self._read(self.socket.recv)
        if "error" in answer:  # a refusal of the connection itself has no id
            raise PolicyError(f"rl_lab.serve: {answer['error']['message']}")
        if answer.get("id") != self.number:
            raise ValueError(f"answer {answer.get('id')} to request {self.number}")
        return answer["result"]

    def _read(self, receive):
        magic, header_size, body_size = FRAME.unpack(exactly(receive, FRAME.size))
        if magic != MAGIC or header_size + body_size > MAX_ANSWER:
            raise ValueError(f"port {self.port} is no rl_lab.serve")
        header = json.loads(exactly(receive, header_size))
        return unpack(header, exactly(receive, body_size))

    def close(self):
        """Close the socket; the next request opens another."""
        if self.socket is not None:
            self.socket.close()
            self.socket = None


def exactly(receive, size):
    """The next `size` bytes; EOFError if the stream ends before."""
    data = bytearray()
    while len(data) < size:
        part = receive(min(size - len(data), 1 << 20))
        if not part:
            raise EOFError("the connection ended")
        data += part
    return bytes(data)


def encode(message):
    """A frame; arrays become [dtype, shape, offset] and lie behind the header, little-endian in C order."""
    parts, size = [], 0

    def pack(value):
        nonlocal size
        if isinstance(value, dict):
            return {key: pack(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [pack(item) for item in value]
        if isinstance(value, np.ndarray):
            array = np.ascontiguousarray(value.astype(value.dtype.newbyteorder("<"), copy=False))
            parts.append(array.tobytes())
            size += array.nbytes
            return {"__array__": [array.dtype.str, list(array.shape), size - array.nbytes]}
        return value

    header = json.dumps(pack(message)).encode()
    return b"".join([FRAME.pack(MAGIC, len(header), size), header, *parts])


def unpack(value, body):
    """The message of a header and the bytes behind it."""
    if isinstance(value, list):
        return [unpack(item, body) for item in value]
    if not isinstance(value, dict):
        return value
    if "__array__" in value:
        dtype, shape, offset = value["__array__"]
        return np.frombuffer(body, dtype, count=int(np.prod(shape)), offset=offset).reshape(shape).copy()
    return {key: unpack(item, body) for key, item in value.items()}


class Policy:
    """What the lab's policy remembers of an episode: the frames it looks back at, and the commands still to be run."""

    def __init__(self, port=DEFAULT_PORT, execute=None, seed=0, timeout_s=120.0):
        self.connection = PolicyClient(port, timeout_s)
        hello = self.connection.hello
        self.frames, self.interval = hello["memory"]["frames"], hello["memory"]["interval"]
        self.execute = int(execute or min(EXECUTE, hello["commands"]))
        if not 1 <= self.execute <= hello["commands"]:
            raise PolicyError(f"execute is {self.execute} but the policy predicts {hello['commands']} commands")
        self.seed, self.episode = int(seed), -1
        self.reset()

    def reset(self):
        """Begin an episode."""
        self.episode += 1
        self.step = self.decisions = 0
        self.seen, self.queue = {}, []

    def action(self, views, pose, instruction):
        """The next command [16]; views uint8 [3, H, W, 3] and the pose [16] after the one before."""
        self.see(views)
        if not self.queue:
            self.queue = list(self.chunk(self.request(pose, instruction))[: self.execute])
        return self.queue.pop(0)

    def see(self, views):
        """What the cameras show before the next command; kept as long as the policy looks back at it."""
        self.seen[self.step] = views
        oldest = self.step - (self.frames - 1) * self.interval
        self.seen = {step: kept for step, kept in self.seen.items() if step >= oldest}
        self.step += 1

    def request(self, pose, instruction):
        """What the policy is to be asked in the state that was seen last."""
        now = self.step - 1
        steps = range(now - (self.frames - 1) * self.interval, now + 1, self.interval)
        past = [self.seen[step] if step >= 0 else np.zeros_like(self.seen[now]) for step in steps]
        self.decisions += 1
        return {
            "images": np.stack(past, axis=1),
            "pose": np.asarray(pose, dtype=np.float64),
            "instruction": str(instruction),
            "key": [self.seed * 100000 + self.episode, self.decisions - 1],
        }

    def chunk(self, request):
        """The commands [H, A] that the policy decides on."""
        return self.connection.ask("act", **request)["chunk"]


def _pose(poses, grippers):
    return np.concatenate([np.append(pose, gripper) for pose, gripper in zip(poses, grippers)])  # noqa: B905


# Classic RoboTwin: script/eval_policy.py


def get_model(usr_args):
    """The policy; `port`, `execute`, `seed` and `timeout_s` of the yml file or the command line."""
    return Policy(**{name: usr_args[name] for name in ("port", "execute", "seed", "timeout_s") if name in usr_args})


def eval(TASK_ENV, model, observation):  # noqa: A001
    """One command: RoboTwin calls this until the episode ends."""
    endpose = observation["endpose"]
    pose = _pose([endpose[f"{arm}_endpose"] for arm in ARMS], [endpose[f"{arm}_gripper"] for arm in ARMS])
    views = np.stack([observation["observation"][camera]["rgb"][..., :3] for camera in CAMERAS])
    TASK_ENV.take_action(model.action(views, pose, TASK_ENV.get_instruction()), action_type="ee")


def reset_model(model):
    """Begin an episode."""
    model.reset()


# RoboTwin since July 2026: XPolicyLab's policy server


class Model:
    """What XPolicyLab's server loads; the port is that of `rl_lab.serve`, not of XPolicyLab."""

    def __init__(self, model_cfg):
        port = model_cfg.get("rl_lab_port") or os.environ.get("RL_LAB_PORT", DEFAULT_PORT)
        options = {
            name: model_cfg[name] for name in ("execute", "seed", "timeout_s") if model_cfg.get(name) is not None
        }
        self.policy = Policy(port, **options)
        self.observation = {}

    def update_obs(self, obs):
        """Keep the newest observation."""
        self.observation = obs

    def get_action(self):
        """A chunk of one action, so that the policy sees what follows each."""
        state, vision = self.observation["state"], self.observation["vision"]
        poses = [np.asarray(state[f"{arm}_ee_pose"], dtype=np.float64) for arm in ARMS]
        grippers = [float(np.ravel(state[f"{arm}_ee_joint_state"])[0]) for arm in ARMS]
        views = np.stack([np.asarray(vision[camera]["color"])[..., :3] for camera in XPL_CAMERAS])
        action = self.policy.action(views, _pose(poses, grippers), self.observation["instruction"])
        result = {"action_type": "ee"}
        for arm, part in zip(ARMS, action.reshape(2, 8)):  # noqa: B905
            result[f"{arm}_ee_pose"], result[f"{arm}_ee_joint_state"] = part[:7], part[7:]
        return [result]

    def reset(self, *_):
        """Begin an episode."""
        self.policy.reset()


# A robot: the next chunk is predicted while the last one runs (arXiv:2606.14409, sections 5.2-5.3)

GAMMA = SIGMA = 0.3
"""Place in a chunk to which the motion is joined, and reach of the curve's inner points: the lab's, not published."""


class ControlLog:
    """What a control loop did: commands sent, one a step; of each chunk the seconds that it took and the steps taken
    meanwhile; stalls, steps in which the last command was held because no chunk had one; missed deadlines, steps that
    began more than half a step late."""

    def __init__(self):
        self.commands, self.latencies_s, self.late = [], [], []
        self.stalls = self.missed = 0


def control(robot, policy, hz, steps, done=lambda: False):
    """Command a robot at `hz` for so many steps, or until `done`; a `ControlLog`.

    `robot.observe()` gives views uint8 [V, H, W, 3], the pose [A] and the instruction; `robot.advance(command)` sends a
    command [A] without waiting for it to be reached. `policy` is a `Policy`: after `execute` commands of a chunk it is
    asked for the next one, which is stitched on when it is there. The robot stands still until the first one is.
    ValueError for a rate that is none, PolicyError if the server fails.
    """
    if not 0 < hz < float("inf"):
        raise ValueError(f"hz is {hz}; expected control steps a second, above 0")
    poses = policy.connection.hello["layout"]["numbers"] == "ee"
    log, left, coming, asked = ControlLog(), np.zeros((0, 1)), None, 0
    commands = log.commands
    with ThreadPoolExecutor(1) as producer:
        for step in range(steps):
            views, pose, instruction = robot.observe()
            policy.see(views)
            if coming is not None and coming.done():
                left, coming = _joined(coming, step - asked, poses, log), None
            if step == 0 or (coming is None and step - asked >= policy.execute):
                request, asked = policy.request(pose, instruction), step
                coming = producer.submit(_timed, policy, request)
            if step == 0:
                left, coming = _joined(coming, 0, poses, log), None
                tick = time.perf_counter()
            log.stalls += not len(left)
            commands.append(left[0] if len(left) else commands[-1])
            left = left[1:]
            robot.advance(commands[-1])
            if done():
                break
            tick += 1 / hz
            late_s = time.perf_counter() - tick
            if late_s > 0.5 / hz:  # the loop goes on from here and does not hurry
                log.missed += 1
                tick += late_s
            time.sleep(max(0.0, -late_s))
    return log


def _timed(policy, request):
    began = time.perf_counter()
    return policy.chunk(request), time.perf_counter() - began


def _joined(coming, late, poses, log):
    """What is to be commanded from now on, now that the chunk is there, `late` steps after it was asked for."""
    chunk, latency_s = coming.result()
    log.latencies_s.append(latency_s)
    log.late.append(late)
    if late == 0 or (late <= len(chunk) and np.array_equal(chunk[late - 1], log.commands[-1])):
        return chunk[late:]
    return stitch(np.stack([log.commands[-2:][0], log.commands[-1]]), chunk, late, poses)


def stitch(done, chunk, late, poses):
    """The chunk [N, A] without the `late` commands whose time has passed, joined to the last two that were run [2, A].

    As the lab's `envs/stitching.py`: a cubic Bezier for positions, Slerp for rotations, a line for grippers, each arm
    by itself; numbers that are no poses follow one curve together.
    """
    chunk = chunk[max(0, min(late, len(chunk) - 3)) :].copy()
    if len(chunk) < 3:
        return chunk
    place = min(max(int(GAMMA * len(chunk)), 1), len(chunk) - 2)
    s = np.arange(1, place + 1)[:, None] / (place + 1)
    for start in range(0, chunk.shape[1], 8 if poses else chunk.shape[1]):
        begun, arm = done[:, start:], chunk[:, start:]
        size = 3 if poses else chunk.shape[1]
        ahead = arm[place + 1, :size] - arm[place - 1, :size]
        curve = _bezier(begun[:, :size], arm[place, :size], ahead, s)
        if poses:
            arm[:place, 3:7] = _slerp(begun[1, 3:7], arm[place, 3:7], s)
            arm[:place, 7:8] = (1 - s) * begun[1, 7] + s * arm[place, 7]
        arm[:place, :size] = curve
    return chunk


def _bezier(done, goal, ahead, s):
    """From the second of two places [2, n] to a goal, along the motions there or, where there is none, the chord."""
    start, chord = done[1], goal - done[1]

    def reach(motion):
        along = motion if np.linalg.norm(motion) > 1e-4 else chord
        return SIGMA * np.linalg.norm(chord) * along / (np.linalg.norm(along) or 1.0)

    inner = start + reach(start - done[0]), goal - reach(ahead)
    return (1 - s) ** 3 * start + 3 * (1 - s) ** 2 * s * inner[0] + 3 * (1 - s) * s**2 * inner[1] + s**3 * goal


def _slerp(begin, end, s):
    """The shorter way between two quaternions, [n, 4]."""
    cos = float(begin @ end / (np.linalg.norm(begin) * np.linalg.norm(end)))
    end = end if cos >= 0 else -end
    angle = float(np.arccos(np.minimum(abs(cos), 1.0)))
    between = (1 - s) * begin + s * end if angle < 1e-8 else np.sin((1 - s) * angle) * begin + np.sin(s * angle) * end
    return between / np.linalg.norm(between, axis=1, keepdims=True)
