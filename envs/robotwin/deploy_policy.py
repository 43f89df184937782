"""A policy of the lab in RoboTwin's own evaluation: this file alone, copied into RoboTwin's checkout.

It asks `python -m rl_lab.serve CKPT` on this machine for chunks of actions. Needs numpy, the standard library of Python
3.10 or newer, and nothing of the lab. docs/robotwin.md says where to copy it and what to type.

* classic `script/eval_policy.py`: policy/rl_lab_policy.py, with `get_model`, `eval` and `reset_model`.
* XPolicyLab's policy server (RoboTwin since July 2026): XPolicyLab/policy/rl_lab/model.py, with `Model`. There the
  policy sees an observation only when it is asked for actions, so `get_action` gives one action at a time.

Frames are those of the lab's `envs/robotwin/protocol.py`, which is not at hand here: magic, uint32 length of a JSON
header, uint64 length of the arrays behind it. What is asked and answered stands in `rl_lab/workers/serving.py`.
"""

import json
import os
import socket
import struct

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
        self.seen[self.step] = views
        oldest = self.step - (self.frames - 1) * self.interval
        self.seen = {step: kept for step, kept in self.seen.items() if step >= oldest}
        if not self.queue:
            steps = range(oldest, self.step + 1, self.interval)
            past = [self.seen[step] if step >= 0 else np.zeros_like(views) for step in steps]
            result = self.connection.ask(
                "act",
                images=np.stack(past, axis=1),
                pose=np.asarray(pose, dtype=np.float64),
                instruction=str(instruction),
                key=[self.seed * 100000 + self.episode, self.decisions],
            )
            self.queue = list(result["chunk"][: self.execute])
            self.decisions += 1
        self.step += 1
        return self.queue.pop(0)


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
