"""A stand-in for RoboTwin's `Base_Task`: its documented methods and its traps, with points instead of a simulator.

Written to the interface that RoboTwin's evaluation script uses; no code of RoboTwin's. A block must come within 5 cm of
a target: a gripper drags it while closed within reach; what nothing holds falls onto the table, or beside it. The
cameras see block, target and tools from above.
"""

import multiprocessing
import os
import random
import struct

import numpy as np

from .utils import ArmTag
from .utils.create_actor import UnStableError

HOME = {"left": [-0.3, 0.0, 0.9], "right": [0.3, 0.0, 0.9]}
PHYSICS_STEPS = 10
TEXTURES = {"seen": (90, 90, 90), "unseen": (150, 150, 150), None: (255, 255, 255)}
"""Of the table, in daylight."""
COLOURS = ((0, 0, 255), (255, 0, 0), (0, 255, 0), (255, 255, 0))
"""Of target, block, left and right tool in the pictures."""


class Joint:
    """A joint whose position follows its drive target."""

    def __init__(self, target=0.0):
        self.target, self.velocity, self.position = target, 0.0, target

    def get_drive_target(self):
        return np.array([self.target], dtype=np.float32)

    def get_drive_velocity_target(self):
        return np.array([self.velocity], dtype=np.float32)

    def set_drive_target(self, target):
        self.target = target

    def set_drive_velocity_target(self, velocity):
        self.velocity = velocity


class Entity:
    """What a robot file describes: arms of joints with a finger each; for both arms, or for one."""

    def __init__(self, joints):
        self.joints = joints
        self.qf = np.zeros(len(joints))

    def get_active_joints(self):
        return self.joints

    def get_qpos(self):
        return np.array([joint.position for joint in self.joints])

    def get_qf(self):
        return self.qf.copy()

    def set_qf(self, qf):
        self.qf = np.array(qf)


class Pose:
    """Place and attitude, as SAPIEN's."""

    def __init__(self, p):
        self.p, self.q = np.array(p, dtype=np.float32), np.array([1, 0, 0, 0], dtype=np.float32)


class Actor:
    """What a scene lists: a name and a pose that is read when it is asked for."""

    def __init__(self, name, place):
        self._name, self._place = name, place

    def get_name(self):
        return self._name

    def get_pose(self):
        return Pose(self._place())


class PhysxSystem:
    """SAPIEN's, of a version without snapshots."""


class PackingPhysxSystem(PhysxSystem):
    """Packs what RoboTwin's SAPIEN scene would: positions of joints and blocks, not drive targets."""

    def __init__(self, task):
        self._task = task

    def numbers(self):
        joints = [joint.position for joint in self._task.robot.joints]
        return [*joints, *self._task.scene.block]

    def pack(self):
        numbers = self.numbers()
        return struct.pack(f"{len(numbers)}d", *numbers)

    def unpack(self, data):
        numbers = struct.unpack(f"{len(data) // 8}d", data)
        for joint, position in zip(self._task.robot.joints, numbers[:-3], strict=True):
            joint.position = position
        self._task.scene.block = np.array(numbers[-3:])


class Scene:
    """Steps the physics; `physx_system` packs nothing in tasks that are restored by replay."""

    def __init__(self, task, block):
        self._task, self.block = task, block
        self.cache = 0.0  # hidden state that no snapshot holds and only a new scene forgets
        self.physx_system = PackingPhysxSystem(task) if task.HAS_PACK else PhysxSystem()
        self._actors = [
            Actor("table", lambda: [0.0, 0.0, 0.74]),
            Actor("block", lambda: self.block),
            Actor("target", lambda: task.target),
        ]

    def get_all_actors(self):
        return self._actors

    def get_all_articulations(self):
        return list({id(one): one for one in (self._task.robot.left_entity, self._task.robot.right_entity)}.values())

    def step(self):
        self._task.physics_step()


class Planner:
    """Time-optimal parametrisation of a joint path; fails on joints beyond 3 rad, like a singular path, and on none."""

    def TOPP(self, path, step, verbose=True):  # noqa: N802  (mplib's name)
        if np.abs(path).max() > 3.0:
            raise RuntimeError("not controllable")
        if np.allclose(path[0], path[-1], rtol=0, atol=1e-9):
            raise RuntimeError("a path of no length")
        positions = np.linspace(path[0], path[-1], PHYSICS_STEPS)
        return None, positions, np.zeros_like(positions), None, PHYSICS_STEPS * step


def count_planner():
    """A line in the checkout for every planner that is made."""
    with open("planners", "a") as file:
        file.write("made\n")


def plan_elsewhere(connection):
    """A planner's process: answers until the connection breaks, which it does not while others hold it open."""
    while True:
        connection.send(connection.recv())


class Robot:
    """Two arms: the first three joints are the tool's position."""

    def __init__(self, args):
        self.place(args)
        self.left_mplib_planner, self.right_mplib_planner = Planner(), Planner()
        self.communication_flag = self.left_robot_file != self.right_robot_file
        for arm in ("left", "right"):
            count_planner()
            if self.communication_flag:
                ours, theirs = multiprocessing.Pipe()
                process = multiprocessing.get_context("fork").Process(target=plan_elsewhere, args=(theirs,))
                process.daemon = True
                process.start()
                setattr(self, f"{arm}_conn", ours)
                setattr(self, f"{arm}_proc", process)

    def reset(self, args):
        """Into a new scene, with the planners that are there."""
        if self.communication_flag:
            for arm in ("left", "right"):
                getattr(self, f"{arm}_conn").send("reset")
                getattr(self, f"{arm}_conn").recv()
        self.place(args)

    def place(self, args):
        self.left_robot_file, self.right_robot_file = args["left_robot_file"], args["right_robot_file"]
        names = args["left_embodiment_config"]["arm_joints_name"][0]
        self.arm_joints, entities = {}, {}
        for arm in ("left", "right"):
            self.arm_joints[arm] = [Joint(HOME[arm][i] if i < 3 else 0.0) for i in range(len(names))]
            finger = Joint(0.04)
            setattr(self, f"{arm}_gripper", [(finger, 1.0, 0.0)])
            entities[arm] = [*self.arm_joints[arm], finger]
        self.joints = entities["left"] + entities["right"]
        if args["dual_arm_embodied"]:
            self.left_entity = self.right_entity = Entity(self.joints)
        else:
            self.left_entity, self.right_entity = Entity(entities["left"]), Entity(entities["right"])
        self.left_gripper_val = self.right_gripper_val = 1.0
        self.left_gripper_scale = self.right_gripper_scale = [0.0, 0.04]
        self.left_original_pose, self.right_original_pose = ([*HOME[arm], 1.0, 0.0, 0.0, 0.0] for arm in HOME)

    def set_gripper(self, value, arm):
        """The command is taken at once, the drive goes there by a tenth a physics step."""
        value = float(np.clip(value, 0, 1))
        setattr(self, f"{arm}_gripper_val", value)
        finger = getattr(self, f"{arm}_gripper")[0][0]
        finger.set_drive_target(finger.target + float(np.clip(0.04 * value - finger.target, -0.004, 0.004)))

    def set_arm_joints(self, positions, velocities, arm):
        for joint, position, velocity in zip(self.arm_joints[arm], positions, velocities, strict=True):
            joint.set_drive_target(float(position))
            joint.set_drive_velocity_target(float(velocity))

    def targets(self, arm):
        return [joint.target for joint in self.arm_joints[arm]]

    def get_left_arm_jointState(self):  # noqa: N802  (RoboTwin's name)
        return [*self.targets("left"), self.left_gripper_val]

    def get_right_arm_jointState(self):  # noqa: N802
        return [*self.targets("right"), self.right_gripper_val]

    def get_left_arm_real_jointState(self):  # noqa: N802
        return [*(joint.position for joint in self.arm_joints["left"]), self.left_gripper_val]

    def get_right_arm_real_jointState(self):  # noqa: N802
        return [*(joint.position for joint in self.arm_joints["right"]), self.right_gripper_val]

    def get_left_gripper_val(self):
        return self.left_gripper_val

    def get_right_gripper_val(self):
        return self.right_gripper_val

    def left_plan_path(self, pose):
        return self._plan("left", pose)

    def right_plan_path(self, pose):
        return self._plan("right", pose)

    def _plan(self, arm, pose):
        if np.linalg.norm(pose[:3]) > 2.0:
            return {"status": "Fail"}
        start = np.array(self.targets(arm))
        end = np.concatenate([pose[:3], start[3:]])
        positions = np.linspace(start, end, PHYSICS_STEPS)
        return {"status": "Success", "position": positions, "velocity": np.zeros_like(positions)}


class Base_Task:  # noqa: N801  (RoboTwin's name)
    """The life of an episode."""

    HAS_PACK = True

    def setup_demo(self, now_ep_num=0, seed=0, is_test=False, **args):
        np.random.seed(seed)
        if not os.path.isdir("./assets"):
            raise FileNotFoundError("./assets")
        assert args["left_embodiment_config"]["arm_joints_name"] and args["head_camera_w"] == 320
        self.task_name, self.ep_num, self.save_freq = args["task_name"], now_ep_num, args.get("save_freq")
        self.data_type, self.size = args["data_type"], (args["head_camera_h"], args["head_camera_w"])
        self.random_light = args["domain_randomization"]["random_light"]
        self.light = 0.5
        self.eval_success, self.plan_success, self.take_action_cnt = False, True, 0
        self.instruction, self.step_lim = None, None
        texture = "unseen" if args["eval_mode"] else "seen"
        self.texture = texture if args["domain_randomization"]["random_background"] else None
        if args["eval_mode"]:
            self.step_lim = {"push_block": 40, "trouble_block": 40}.get(self.task_name, 1000)
        self.table_z = float(np.random.uniform(-0.03, 0))
        self.tie_break = random.random()
        block = np.append(np.random.uniform(-0.1, 0.1, 2), 0.75)
        self.target = np.append(np.random.uniform(-0.1, 0.1, 2) + [0.0, 0.3], 0.75)
        if getattr(self, "robot", None) is None:
            self.robot = Robot(args)
        else:
            self.robot.reset(args)
        self.scene = Scene(self, block)
        self.stage_success_tag = False
        if seed % 10 == 7:
            raise UnStableError(f"Objects is unstable in seed({seed}), unstable objects: block")
        self.seed = seed

    def physics_step(self):
        self.scene.cache = 0.9 * self.scene.cache + 1e-6
        held = False
        for arm in ("left", "right"):
            joints, finger = self.robot.arm_joints[arm], getattr(self.robot, f"{arm}_gripper")[0][0]
            for joint in (*joints, finger):
                joint.position += 0.5 * (joint.target - joint.position) + self.scene.cache * 1e-3
            tool = np.array([joint.position for joint in joints[:3]])
            if finger.position < 0.02 and np.linalg.norm(tool - self.scene.block) < 0.15:
                self.scene.block, held = self.scene.block + 0.5 * (tool - self.scene.block), True
        if not held:
            on_table = np.all(np.abs(self.scene.block[:2]) < [0.6, 0.5])
            self.scene.block[2] = max(0.75 if on_table else 0.0, self.scene.block[2] - 0.02)

    def check_success(self):
        return bool(np.linalg.norm(self.scene.block - self.target) < 0.05)

    def get_obs(self):
        light = 0.5 * (np.random.rand() + self.light) if self.random_light else self.light
        image = np.full((*self.size, 3), np.array(TEXTURES[self.texture]) * light, dtype=np.uint8)
        tools = [self.get_arm_pose(arm)[:3] for arm in ("left", "right")]
        for colour, place in zip(COLOURS, (self.target, self.scene.block, *tools), strict=True):
            row, column = ((0.5 + np.array([-place[1], place[0]]) / 1.6) * self.size).astype(int)
            image[max(0, row - 12) : max(0, row + 12), max(0, column - 12) : max(0, column + 12)] = colour
        assert self.data_type["rgb"] and not self.data_type.get("depth")
        views = {name: {"rgb": image + i} for i, name in enumerate(("head_camera", "left_camera", "right_camera"))}
        return {"observation": views, "joint_action": {}, "endpose": {}, "pointcloud": []}

    def get_arm_pose(self, arm):
        return [joint.position for joint in self.robot.arm_joints[arm][:3]] + [1.0, 0.0, 0.0, 0.0]

    def set_instruction(self, instruction=None):
        self.instruction = instruction

    def take_action(self, action, action_type="qpos"):
        if self.take_action_cnt == self.step_lim or self.eval_success:
            return
        self.take_action_cnt += 1
        print(f"step: {self.take_action_cnt} / {self.step_lim}", end="\r")
        if self.random_light:
            self.light = np.random.rand()
        size = len(action) // 2
        paths = {}
        for arm, part in zip(("left", "right"), (action[:size], action[size:]), strict=True):
            if action_type == "ee":
                plan = getattr(self.robot, f"{arm}_plan_path")(part[:7])
                paths[arm] = plan["position"] if plan["status"] == "Success" else None
            else:
                try:
                    path = np.vstack([self.robot.targets(arm), part[:-1]])
                    paths[arm] = getattr(self.robot, f"{arm}_mplib_planner").TOPP(path, 1 / 250, verbose=False)[1]
                except RuntimeError:
                    paths[arm] = None
        num_steps = max(50 if path is None else len(path) for path in paths.values())
        for i in range(num_steps):
            for arm, gripper in zip(("left", "right"), (action[size - 1], action[-1]), strict=True):
                if paths[arm] is not None:
                    row = paths[arm][min(i, len(paths[arm]) - 1)]
                    self.robot.set_arm_joints(row, np.zeros(len(row)), arm)
                self.robot.set_gripper(gripper, arm)
            self.scene.step()
            if self.check_success():
                self.eval_success = True
                return

    def move_tool(self, arm, goal, gripper):
        """The expert's primitive: straight to the goal."""
        plan = self.robot._plan(arm, np.array(goal))
        if plan["status"] != "Success" or not self.plan_success:
            self.plan_success = False
            return
        for i, row in enumerate(np.repeat(plan["position"], 3, axis=0)):
            self.robot.set_arm_joints(row, np.zeros(len(row)), arm)
            self.robot.set_gripper(gripper, arm)
            self.scene.step()
            if self.save_freq is not None and i % self.save_freq == 0:
                self._take_picture()

    def _take_picture(self, reward=None):
        return None

    def open_gripper(self, arm, pos=1.0):
        return arm, [("gripper", pos)]

    def back_to_origin(self, arm):
        return arm, [("move", getattr(self.robot, f"{arm}_original_pose"))]

    def move(self, *actions_by_arm):
        """Both arms in turn; RoboTwin's moves them together."""
        for arm, actions in actions_by_arm:
            for kind, goal in actions:
                pose = self.get_arm_pose(arm) if kind == "gripper" else goal
                gripper = goal if kind == "gripper" else getattr(self.robot, f"{arm}_gripper_val")
                self.move_tool(arm, pose[:3], gripper)
        return self.plan_success

    def play_once(self):
        arm = "left" if self.scene.block[0] < 0 else "right"
        self.arm_tag, self.origin_z = ArmTag(arm), float(self.scene.block[2])
        self.move_tool(arm, [*self.scene.block[:2], 0.9], 1.0)
        self.move_tool(arm, self.scene.block, 1.0)
        self.move_tool(arm, self.scene.block, 0.0)
        self.move_tool(arm, self.target if self.seed % 10 != 5 else [3.0, 3.0, 3.0], 0.0)
        for _ in range(20):
            self.scene.step()
        return {"info": {"{A}": "block", "{a}": arm}}

    def close_env(self, clear_cache=False):
        self.robot = self.scene = None
