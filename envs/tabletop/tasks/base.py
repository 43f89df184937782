"""What a task must define, and the instruction templates of our own.

Tasks hold constants only: all state is in the simulator, so any state can be judged. Templates are split into `seen`
(training) and `unseen` (generalisation) wordings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from envs.tabletop.expert import Command, tool_rotation
from envs.tabletop.world import LEFT, RIGHT, Pose, World
from envs.types import Diagnosis

__all__ = ["HOME", "LEFT", "RIGHT", "Command", "Pose", "Task", "World", "four_fold"]

HOME = (
    Pose(np.array([-0.26, -0.16, 0.95]), tool_rotation(np.pi / 2, 0.6)),
    Pose(np.array([0.26, -0.16, 0.95]), tool_rotation(np.pi / 2, 0.6)),
)
"""Tool poses of `scene.HOME_JOINTS`."""

BESIDE_M = np.array([0.0, -0.04, 0.0])
"""How far from its place an object ends in the mode edge_release: beyond the tolerance, and over the edge of a cube."""


class Task(ABC):
    """One manipulation task; `world` gives simulator truth."""

    name: ClassVar[str]
    step_limit: ClassVar[int]
    """Control steps (12.5 Hz) of an evaluation episode."""
    stages: ClassVar[tuple[str, ...]]
    """Names of the sub-goals in order; `Diagnosis.stage` counts those reached."""
    truth_names: ClassVar[tuple[str, ...]]
    """Meaning of each number of `truth`."""
    edge_m: ClassVar[float] = 0.0
    """So far from the grip point fingers touch the object and lose it on the way."""

    def __init__(self, tolerance: float = 1.0, mode: str | None = None) -> None:
        """`tolerance`: times the distances that `succeeded` allows; `mode`: the expert's, of `envs.tabletop.MODES`."""
        self.tolerance, self.mode = tolerance, mode

    @abstractmethod
    def objects_xml(self) -> str:
        """MJCF bodies of the task's objects."""

    @abstractmethod
    def reset(self, world: World, rng: np.random.Generator) -> None:
        """Place the objects; everything random comes from `rng`."""

    @abstractmethod
    def succeeded(self, world: World) -> bool:
        """RoboTwin's kind of success check for the current state."""

    @abstractmethod
    def progress(self, world: World) -> tuple[int, float]:
        """Sub-goals reached now, and the fraction of the next one in [0, 1]."""

    @abstractmethod
    def failure(self, world: World) -> str | None:
        """Name of an irreversible event, None while recoverable."""

    @abstractmethod
    def truth(self, world: World) -> np.ndarray:
        """Object poses, float32 with the meanings of `truth_names`."""

    @abstractmethod
    def expert(self, world: World) -> tuple[Command, Command]:
        """Next commands of the left and right tool; a function of the current state only."""

    def aimed(self, grip: Pose, axis: np.ndarray) -> Pose:
        """Where the expert closes a gripper: at `grip`; in the mode edge_grasp `edge_m` short of it."""
        return Pose(grip.position + self.edge_m * axis, grip.rotation) if self.mode == "edge_grasp" else grip

    def put(self, place: np.ndarray) -> np.ndarray:
        """Where the expert puts an object down: at `place`; in the mode edge_release `BESIDE_M` in front of it."""
        return place + BESIDE_M if self.mode == "edge_release" else place

    def turned(self, heading: float) -> float:
        """A heading at which the expert grasps, in the mode other_face a quarter turn from it."""
        return heading - np.pi / 2 if self.mode == "other_face" else heading

    def diagnose(self, world: World) -> Diagnosis:
        """Progress, stage and failure of the current state."""
        if self.succeeded(world):
            return Diagnosis(1.0, len(self.stages), None)
        stage, fraction = self.progress(world)
        value = min((stage + float(np.clip(fraction, 0.0, 1.0))) / len(self.stages), 0.99)
        return Diagnosis(value, stage, self.failure(world))


def four_fold(yaw: float) -> tuple[float, float]:
    """cos and sin of 4 * yaw: the heading of a square block without its ambiguity."""
    return float(np.cos(4 * yaw)), float(np.sin(4 * yaw))


SPLITS = ("seen", "unseen")

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "handover_block": {
        "seen": (
            "Pass the red block from the left arm to the right arm and put it on the blue pad.",
            "Hand the red block over to the right gripper and stand it on the blue square.",
            "Lift the block with the left arm, hand it to the right arm and place it on the pad.",
            "Use both arms to bring the red block to the blue pad.",
            "Give the tall red block to the right hand, then set it down on the blue pad.",
            "Move the red block onto the blue target by handing it from left to right.",
        ),
        "unseen": (
            "Transfer the upright red block between the grippers and leave it on the blue mat.",
            "Take the block with the left hand, let the right hand finish the placement on blue.",
            "Deliver the red block to the blue pad, switching hands on the way.",
        ),
    },
    "stack_blocks_two": {
        "seen": (
            "Put the red block in the middle of the table and stack the green block on top of it.",
            "Stack the green cube on the red cube.",
            "Place the red block at the centre, then put the green block on it.",
            "Build a tower of two: red at the bottom, green on top.",
            "Move the red cube to the middle and set the green cube on it.",
            "Pick up the green block and stack it on the red block in the centre.",
        ),
        "unseen": (
            "Make a small pile with the green cube resting on the red one.",
            "The red block is the base, the green block goes above it: assemble them mid-table.",
            "Set red down centrally and let green sit on it.",
        ),
    },
    "blocks_ranking_rgb": {
        "seen": (
            "Arrange the blocks in a row from left to right: red, green, blue.",
            "Line up the red, green and blue cubes in this order from the left.",
            "Put the three blocks side by side, red on the left, green in the middle, blue on the right.",
            "Sort the coloured blocks into a line: red, then green, then blue.",
            "Place the red, green and blue blocks next to each other, starting with red on the left.",
            "Make a row of blocks with red first, green second and blue third.",
        ),
        "unseen": (
            "Rank the cubes by colour so that red, green and blue read from left to right.",
            "Order the three cubes in front of you as red, green, blue.",
            "Form a line whose left end is red, whose centre is green and whose right end is blue.",
        ),
    },
    "grab_roller": {
        "seen": (
            "Grab the roller with both arms and lift it.",
            "Take the roller at both ends and raise it from the table.",
            "Use the left and the right gripper to pick up the roller.",
            "Lift the orange roller with two hands.",
            "Hold the roller by its blue ends and lift it up.",
            "Pick up the roller with both grippers at the same time.",
        ),
        "unseen": (
            "Raise the roller off the table, one hand on each end.",
            "With both hands, seize the rolling pin and bring it up.",
            "Two-handed lift: take the blue ends of the roller.",
        ),
    },
    "lift_pot": {
        "seen": (
            "Lift the pot with both arms by its handles.",
            "Grasp the two handles of the pot and raise it.",
            "Use both grippers to pick up the pot and keep it level.",
            "Take the pot by the handles and lift it from the table.",
            "Hold the left and right handle and lift the pot up.",
            "Raise the pot with two hands without tilting it.",
        ),
        "unseen": (
            "Bring the pot up off the table, one hand on each handle.",
            "Carry the cooking pot upwards using its two grips.",
            "Elevate the pot evenly with the left and the right hand.",
        ),
    },
}


def choose_instruction(task: str, split: str, rng: np.random.Generator) -> str:
    """One of the task's templates of a split, drawn from `rng`."""
    return str(rng.choice(TEMPLATES[task][split]))
