"""Runs in RoboTwin's own interpreter: answers the lab's requests with one RoboTwin task. Started by `connection.py`:

    ROBOTWIN_PYTHON server.py FD ROOT      # FD: inherited socket, ROOT: RoboTwin checkout

Needs numpy, the standard library and what RoboTwin itself requires; Python 3.10 or newer. RoboTwin's checkout has a
package called `envs`, and so have we: nothing of ours is importable here, what is beside this file is read by
path. RoboTwin prints what it likes to stdout and stderr; messages go over their own socket. `METHODS` is the list of
requests; parameters and results are those of the methods of `Server`.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import socket
import sys
import threading
import time
import traceback
from typing import Any

import numpy as np

HERE = os.path.dirname(os.path.realpath(__file__))


def _beside(name: str) -> Any:
    """The module of a file or package beside this one, under a name that RoboTwin cannot meet."""
    folder = os.path.join(HERE, name)
    is_package = os.path.isdir(folder)
    path = os.path.join(folder, "__init__.py") if is_package else f"{folder}.py"
    parts = [folder] if is_package else None
    spec = importlib.util.spec_from_file_location(f"_rl_lab_robotwin_{name}", path, submodule_search_locations=parts)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


protocol = _beside("protocol")
layouts = _beside("layout")
scenes = _beside("scene")
boxarms = _beside("boxarms")
robots = _beside("robots")
states = _beside("state")
tasks = _beside("task")

METHODS = ("hello", "check", "reset", "step", "observe", "success", "save", "restore", "expert", "close")
SNAPSHOT = "robotwin-2"
CAMERAS = ("head_camera", "left_camera", "right_camera")
ARMS = scenes.ARMS
KEPT_SCREENINGS = 64
UNLISTED_STEP_LIMIT = 1000
"""RoboTwin's limit for a task that its table does not name."""


class RefusedError(Exception):
    """A request that fails with a kind of `protocol.ERROR_KINDS`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Server:
    """One RoboTwin task at a time."""

    def __init__(self, layout: Any) -> None:
        self.layout = layout
        self.robot: Any = None
        """RoboTwin's own, or the box robot; see `robots`."""
        self.task: Any = None
        """A `task.Task`, for one task and config; with another one its planners are ended."""
        self.key: tuple[str, str] = ("", "")
        """Which ones."""
        self.identity: dict[str, Any] = {}
        self.instruction = ""
        self.actions: list[tuple[str, list[float]]] = []
        """Actions since `reset`, for snapshots by replay."""
        self.screened: dict[tuple, dict] = {}
        """Of seeds on which the expert succeeded, by `robots.screening`: `info`, which fills the slots of the
        instruction, `path`, the states that it went through, and `plain` and `arms`, attributes that it has set."""
        self.unpacked: dict[str, Any] | None = None
        """The snapshot that was put into a running scene, until something runs from there; see `_run_from_here`."""
        self.step_limit = 0  # RoboTwin's own, which the lab keeps; corrections go on beyond it
        self.simulation: dict[str, Any] = {}  # robot, planner, renderer, physics steps of a command; see `robots`
        self.command_steps = scenes.PICTURE_STEPS
        """Physics steps of a command, and between two states of the expert: the task config's `save_freq`."""

    @property
    def env(self) -> Any:
        """RoboTwin's task object, None where no scene stands."""
        return self.task and self.task.env

    def hello(self, version: int) -> dict:
        """Import RoboTwin and say what is here."""
        if version != protocol.VERSION:
            raise RefusedError(
                "protocol", f"the lab speaks version {version}, this server {protocol.VERSION}; update both"
            )
        try:
            self.robot = robots.choose(self.layout, layouts.read_yaml, boxarms.__name__)
        except ValueError as error:
            raise RefusedError("unsupported", str(error)) from None
        package = importlib.import_module(self.layout.package)
        where = os.path.realpath(getattr(package, "__file__", None) or next(iter(package.__path__)))
        if not where.startswith(self.layout.root + os.sep):
            raise RefusedError(
                "unsupported",
                f"`import {self.layout.package}` finds {where} instead of RoboTwin's in {self.layout.root}",
            )
        return {
            "version": protocol.VERSION,
            "layout": self.layout.name,
            "root": self.layout.root,
            "tasks": self.layout.tasks(),
            "task_configs": self.layout.task_configs(),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "sapien": _sapien_version(),
                **({"robotwin": sys.modules["robotwin"].__version__} if self.layout.is_installed else {}),
            },
        }

    def check(self, task: str, config: str, command_steps: int | None = None) -> dict:
        """Import a task and look its config up, without a scene: what is missing is said before a run begins. Robot,
        planner, renderer and physics steps of a command."""
        self._check_task(task)
        importlib.import_module(f"{self.layout.package}.{task}")
        asked = {"command_steps": command_steps, "picture_px": None}
        return self.robot.describe(self._task_args({"task": task, "config": config, "robot": asked}))

    def reset(self, task: str, config: str, seed: int, instruction: str, screen: bool, robot: dict) -> dict:
        """Set the scene of a seed up. `instruction` is "seen" or "unseen"; with `screen`, RoboTwin's expert runs first,
        as its evaluation does, and a seed on which it fails is rejected; the states that it went through are
        `expert_path`. Without, instructions have no slots filled and there is no such path. A seed on which anything of
        RoboTwin raises is rejected as well. `robot`: see `robots`."""
        self._check_task(task)
        identity = {"task": task, "config": config, "seed": seed, "split": instruction, "robot": robot}
        key = robots.screening(identity)
        try:
            if screen and key not in self.screened:
                self._screen(identity, key)
            self._setup(identity)
            self._instruct(self._choose_instruction())
        except RefusedError:
            raise
        except (Exception, SystemExit) as error:
            raise RefusedError("raising_seed", f"RoboTwin raised {tasks.said(error)}") from error
        joints = [len(getattr(self.env.robot, f"get_{arm}_arm_jointState")()) for arm in ARMS]
        path = self.screened.get(key, {}).get("path", [])
        return {"qpos_dim": sum(joints), "expert_path": path, **self._beginning()}

    def step(self, action: np.ndarray, action_type: str) -> dict:
        """One `take_action`: its number of physics steps varies. `executed` is False after success, where RoboTwin does
        nothing; `skipped` names the arms that stood still because no plan was found."""
        env = self._run_from_here()
        sizes = {"ee": 16, "qpos": sum(len(getattr(env.robot, f"get_{arm}_arm_jointState")()) for arm in ARMS)}
        if action_type not in sizes:
            raise RefusedError("bad_request", f"action_type is {action_type!r}; use ee or qpos")
        action = np.asarray(action, dtype=np.float64)
        if action.shape != (sizes[action_type],) or not np.isfinite(action).all():
            raise RefusedError("bad_request", f"{action_type} takes {sizes[action_type]} finite numbers, got {action}")
        executed = not env.eval_success
        with scenes.watched(env) as seen, self.robot.command(env, self.identity["robot"]):
            env.take_action(action, action_type=action_type)
        self.actions.append((action_type, action.tolist()))
        return {
            "executed": executed,
            "physics_steps": seen["physics_steps"],
            "skipped": seen["skipped"],
            **self._counters(),
        }

    def observe(self, images: bool) -> dict:
        """`get_obs` (or its numbers alone, without rendering) and `measured`: joints and grippers as they are, where
        RoboTwin's own observation reports drive targets and the gripper command."""
        env = self._episode()
        result = {**scenes.commanded(env), "measured": scenes.measured(env.robot)}
        if images:
            stream = np.random.get_state()  # rendering with random lights draws from it
            views = env.get_obs()["observation"]
            np.random.set_state(stream)
            missing = [camera for camera in CAMERAS if "rgb" not in views.get(camera, {})]
            if missing:
                raise RefusedError("unsupported", f"config {self.identity['config']} gives no {', '.join(missing)}")
            result["observation"] = {camera: {"rgb": np.asarray(views[camera]["rgb"])[..., :3]} for camera in CAMERAS}
        return result

    def success(self) -> dict:
        """`success` is latched by every physics step of a policy; `success_now` is the present scene's."""
        return {**self._counters(), "success_now": bool(self._episode().check_success())}

    def save(self) -> dict:
        """`snapshot` bytes. The scene is restored from it at once, so that the episode goes on like every branch of it
        but for SAPIEN's solver caches; branches are alike bit for bit (see `restore`)."""
        snapshot = self._save()
        if states.restore_method(self._episode()) == "simulator":
            self._unpack(protocol.loads(snapshot))
        return {"snapshot": snapshot}

    def restore(self, snapshot: bytes) -> dict:
        """Continue from a snapshot, of any seed and task of this checkout.

        SAPIEN keeps solver caches that no snapshot holds. In a scene that is set up anew they are empty, so what runs
        from a restored state begins with that, and is the same every time; looking at the state needs none of it.
        """
        try:
            state = protocol.loads(snapshot)
        except protocol.ProtocolError as error:
            raise RefusedError("bad_request", f"this is not a {SNAPSHOT} snapshot: {error}") from None
        if state.get("format") != SNAPSHOT:
            raise RefusedError("bad_request", f"this is not a {SNAPSHOT} snapshot")
        here = {"layout": self.layout.name, "sapien": _sapien_version()}
        if state["made_by"] != here:
            raise RefusedError("bad_request", f"snapshot of {state['made_by']}, but {here} runs here; use the same")
        stands = self.env is not None and state["identity"] == self.identity and state["method"] != "replay"
        if not stands:
            self._setup(state["identity"])
        self._instruct(state["instruction"])
        if state["method"] == "replay":
            for action_type, action in state["actions"]:
                self.step(np.array(action), action_type)
        else:
            self._unpack(state)
            self.unpacked = state if stands else None
        return {"identity": dict(self.identity), **self._beginning()}

    def expert(self, record: str) -> dict:
        """Play RoboTwin's scripted expert, then put the scene back. `record` is "none", "state" or "images": frames
        every `command_steps` physics steps, and the last state.

        In mid-episode its motions, which are those of the whole task, are planned anew: for the scene as it is, and if
        that does not succeed, after opening the grippers and moving both arms back to where they began.
        """
        if record not in ("none", "state", "images"):
            raise RefusedError("bad_request", f"record is {record!r}; use none, state or images")
        before = self.save()["snapshot"]
        result: dict = {}
        for start in ("here", "home") if self._episode().take_action_cnt else ("here",):
            try:
                result = self._play(start, record)
            finally:
                self.restore(before)
            if result["success"]:
                break
        return result

    def _play(self, start: str, record: str) -> dict:
        env, frames, problem = self._run_from_here(), [], ""
        env.plan_success = True
        take = (lambda: frames.append(self.observe(record == "images"))) if record != "none" else None
        try:
            with scenes.ticking(env, take, self.command_steps):
                if start == "home":
                    env.move(*(env.open_gripper(arm) for arm in ARMS))
                    env.move(*(env.back_to_origin(arm) for arm in ARMS))
                env.play_once()
        except Exception as error:  # written for the initial scene, it may meet anything
            problem = tasks.said(error)
        planned = bool(env.plan_success) and not problem
        success = planned and bool(env.check_success())
        return {"start": start, "planned": planned, "success": success, "problem": problem, "frames": frames}

    def close(self) -> dict:
        """Release the scene and its planners; the server ends after answering."""
        if self.task is not None:
            self.task.close()
        return {}

    def _beginning(self) -> dict:
        """What an episode tells when it begins or is restored."""
        return {
            "instruction": self.instruction,
            "simulation": self.simulation,
            "step_limit": self.step_limit,
            "control_hz": scenes.PHYSICS_HZ / self.command_steps,
            "restore_method": states.restore_method(self._episode()),
            **self._counters(),
        }

    def _counters(self) -> dict:
        env = self._episode()
        return {
            "success": bool(env.eval_success),
            "step_count": int(env.take_action_cnt),
            "scene": scenes.where_things_are(env),
        }

    def _episode(self) -> Any:
        if self.env is None:
            raise RefusedError("no_episode", "no scene is set up; reset first")
        return self.env

    def _check_task(self, task: str) -> None:
        if task not in self.layout.tasks():
            raise RefusedError(
                "bad_request", f"no task {task!r} in this checkout; it has {', '.join(self.layout.tasks())}"
            )

    def _screen(self, identity: dict, key: tuple) -> None:
        self._setup(identity)
        path = [scenes.where_things_are(self.env)]
        try:
            with scenes.ticking(self.env, lambda: path.append(scenes.where_things_are(self.env)), self.command_steps):
                info = self.env.play_once()
        except Exception as error:
            raise RefusedError("raising_seed", f"the expert raised {tasks.said(error)}") from error
        if not self.env.plan_success:
            raise RefusedError("rejected_seed", "the expert found no plan")
        if not self.env.check_success():
            raise RefusedError("rejected_seed", "the expert did not succeed")
        while len(self.screened) >= KEPT_SCREENINGS:
            self.screened.pop(next(iter(self.screened)))
        added = self.task.added()
        self.screened[key] = {
            "info": (info or {}).get("info", {}),
            "path": path,
            "plain": states.plain_values(added, protocol.DTYPES),
            "arms": states.arm_tags(added),
        }

    def _setup(self, identity: dict) -> None:
        self.unpacked = None
        task, config, seed = (identity[key] for key in ("task", "config", "seed"))
        args = self._task_args(identity)
        os.chdir(self.layout.home)  # RoboTwin opens ./assets, and its code may have moved away
        if self.key != (task, config):
            if self.task is not None:
                self.task.close()
            kind = getattr(importlib.import_module(f"{self.layout.package}.{task}"), task)
            self.task, self.key = tasks.Task(kind), (task, config)
        try:
            self.task.set_up(seed, scenes.UNLIMITED, args)
        except Exception as error:
            if type(error).__name__ == "UnStableError":
                raise RefusedError("rejected_seed", f"unstable scene: {error}") from error
            raise
        self.robot.warm_up(self.env, identity["robot"])
        self.identity, self.instruction, self.actions = dict(identity), "", []
        self.simulation = self.robot.describe(args)
        self.step_limit = self.layout.step_limits().get(task, UNLISTED_STEP_LIMIT)
        self.command_steps = int(args.get("save_freq") or scenes.PICTURE_STEPS)
        found = self.screened.get(robots.screening(identity), {"plain": {}, "arms": {}})
        vars(self.env).update(found["plain"])
        states.set_arm_tags(self.env, found["arms"])

    def _run_from_here(self) -> Any:
        """The task object, in whose scene something is about to run; see `restore`."""
        if self.unpacked is not None:
            state = self.unpacked
            self._setup(state["identity"])
            self._instruct(state["instruction"])
            self._unpack(state)
        return self._episode()

    def _instruct(self, instruction: str) -> None:
        self.instruction = instruction
        self.env.set_instruction(instruction=instruction)

    def _task_args(self, identity: dict) -> dict[str, Any]:
        try:
            return robots.scene_arguments(self.layout, self.robot, identity)
        except ValueError as error:
            raise RefusedError("bad_request", str(error)) from None

    def _choose_instruction(self) -> str:
        task, split, seed = (self.identity[key] for key in ("task", "split", "seed"))
        if split not in ("seen", "unseen"):
            raise RefusedError("bad_request", f"instruction is {split!r}; use seen or unseen")
        info = self.screened.get(robots.screening(self.identity), {}).get("info", {})
        return tasks.choose_instruction(self.layout.instructions, task, info, split, seed)

    def _save(self) -> bytes:
        env = self._episode()
        method = states.restore_method(env)
        state: dict[str, Any] = {
            "format": SNAPSHOT,
            "made_by": {"layout": self.layout.name, "sapien": _sapien_version()},
            "identity": dict(self.identity),
            "instruction": self.instruction,
            "method": method,
        }
        if method == "replay":
            state["actions"] = [list(item) for item in self.actions]
        else:
            state |= states.pack(env, protocol.DTYPES)
        return protocol.encode(state)

    def _unpack(self, state: dict) -> None:
        states.unpack(self.env, state, protocol.DTYPES)


def _sapien_version() -> str:
    return str(getattr(sys.modules.get("sapien"), "__version__", "none"))


def _answer(server: Server, request: dict) -> dict:
    method, params = request.get("method"), request.get("params", {})
    try:
        if method not in METHODS:
            raise RefusedError("protocol", f"unknown method {method!r}; this server has {', '.join(METHODS)}")
        return {"result": getattr(server, method)(**params)}
    except RefusedError as error:
        return {"error": {"kind": error.kind, "message": str(error), "detail": ""}}
    except (Exception, SystemExit) as error:  # RoboTwin raises anything, and calls exit()
        message = f"{method} raised {tasks.said(error)}"
        return {"error": {"kind": "robotwin", "message": message, "detail": traceback.format_exc()}}


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def main(fd: int, root: str) -> None:
    """Answer requests until `close`, or until the lab is gone."""
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    layout = layouts.detect(root)
    ours = {HERE, os.path.dirname(os.path.dirname(HERE))}
    sys.path[:] = [*layout.import_paths, *(path for path in sys.path if path and os.path.realpath(path) not in ours)]
    os.chdir(layout.home)
    if layout.is_installed and not layout.has_box_robot:
        os.environ["ASSETS_PATH"] = layout.home  # where its tasks look for them
    server = Server(layout)
    with socket.socket(fileno=fd) as connection:
        while True:
            try:
                request = protocol.read(connection.recv)
            except EOFError:
                return
            answer = {"id": request.get("id"), **_answer(server, request)}
            connection.sendall(protocol.encode(answer))
            if request.get("method") == "close":
                return


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
