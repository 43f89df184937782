"""Observations, episodes and preference pairs: keys, shapes and units in one place.

Every record is a plain dataclass of arrays, strings and numbers, so that it crosses processes as it is.
T control steps, N recorded frames, S image side in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, get_args

import numpy as np

from envs import se3

CAMERAS = ("head_camera", "left_camera", "right_camera")
ARMS = ("left", "right")
EE_DIM = 16
QPOS_DIM = 14

Numbers = Literal["ee", "joints", "raw"]

MAX_DIM = 32
"""Most numbers of a state or a command: those of the released model."""


@dataclass(frozen=True)
class Layout:
    """What the numbers of states and commands are, and which cameras there are.

    Environments declare it, records carry it, policies are trained for one. What a network reads and predicts are
    encoded states and chunks; A numbers of a command, S of a state, H commands of a chunk.
    """

    numbers: Numbers = "ee"
    """ee: tool poses of one arm or two, each xyz (m), quaternion wxyz, gripper (1 open .. 0 closed); chunks are learned
    relative to the measured pose at their start. joints: positions of any kind that the state begins with as well;
    chunks are learned relative to those. raw: anything; chunks are learned as they are."""
    action_dim: int = EE_DIM
    """A."""
    state_dim: int = EE_DIM
    """S."""
    cameras: tuple[str, ...] = CAMERAS
    """In order."""

    def __post_init__(self) -> None:
        sizes = f"{self.action_dim} numbers of a command and {self.state_dim} of a state"
        if self.numbers not in get_args(Numbers):
            raise ValueError(f"numbers is {self.numbers!r}; use one of {', '.join(get_args(Numbers))}")
        if not (1 <= self.action_dim <= MAX_DIM and 1 <= self.state_dim <= MAX_DIM):
            raise ValueError(f"there are {sizes}; a policy takes 1 to {MAX_DIM} of each")
        if self.numbers == "ee" and not (self.action_dim == self.state_dim and self.state_dim in (EE_DIM // 2, EE_DIM)):
            raise ValueError(f"there are {sizes}; ee has 8 of both for one arm, 16 for two")
        if self.numbers == "joints" and self.state_dim < self.action_dim:
            raise ValueError(f"there are {sizes}; of joints the state begins with the numbers of a command")
        is_named = all(camera and "/" not in camera for camera in self.cameras)
        if not self.cameras or not is_named or len(set(self.cameras)) < len(self.cameras):
            raise ValueError(f"cameras are {list(self.cameras)}; name at least one, each once, without slashes")

    def is_like(self, other: Layout) -> bool:
        """Whether a policy for one can act in the other: all is the same but for the names of cameras."""
        return replace(self, cameras=other.cameras) == other and len(self.cameras) == len(other.cameras)

    def __str__(self) -> str:
        sizes = f"commands of {self.action_dim} numbers ({self.numbers}), states of {self.state_dim}"
        return f"{sizes} and {len(self.cameras)} camera{'s' * (len(self.cameras) != 1)}"

    @property
    def encoded_state_dim(self) -> int:
        """Numbers of an encoded state."""
        return self._encoded(self.state_dim)

    @property
    def encoded_action_dim(self) -> int:
        """Numbers of an encoded command."""
        return self._encoded(self.action_dim)

    def _encoded(self, size: int) -> int:
        return size // se3.ARM_EE_DIM * se3.ARM_ENCODED_DIM if self.numbers == "ee" else size

    def encode(self, states: np.ndarray) -> np.ndarray:
        """Absolute states or commands as a network reads them, [..., S or A] -> [..., encoded]."""
        return se3.encode_pose(states) if self.numbers == "ee" else np.asarray(states, dtype=np.float64)

    def encode_chunks(self, chunks: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Chunks [..., H, A] that begin in measured states [..., S] as a network learns them, [..., H, encoded]."""
        if self.numbers == "ee":
            return se3.to_relative(chunks, states)
        return np.asarray(chunks, dtype=np.float64) - self._origin(states)

    def decode_chunks(self, encoded: np.ndarray, states: np.ndarray) -> np.ndarray:
        """Inverse of `encode_chunks`."""
        if self.numbers == "ee":
            return se3.from_relative(encoded, states)
        return np.asarray(encoded, dtype=np.float64) + self._origin(states)

    def _origin(self, states: np.ndarray) -> np.ndarray | float:
        """What chunks of plain numbers are relative to."""
        return np.asarray(states)[..., None, : self.action_dim] if self.numbers == "joints" else 0.0


BIMANUAL = Layout()
"""RoboTwin's and the tabletop's."""

NO_FRAMES = np.zeros((0, len(CAMERAS), 0, 0, 3), dtype=np.uint8)

Observation = dict[str, Any]
"""RoboTwin's nested layout: observation/<camera>/rgb uint8 [S, S, 3] (absent in state-only mode),
joint_action/{left_arm [6], left_gripper, right_arm [6], right_gripper, vector [14]},
endpose/{left_endpose [7] xyz + wxyz, left_gripper, right_endpose [7], right_gripper}, instruction (str).
Of another layout than `BIMANUAL`: observation/<camera>/rgb, cameras (their names in order), state [S], instruction."""


def camera_images(observation: Observation) -> np.ndarray:
    """The views in the order of the layout's cameras, uint8 [V, S, S, 3]; KeyError in state-only mode."""
    cameras = observation.get("cameras", CAMERAS)
    return np.stack([observation["observation"][camera]["rgb"] for camera in cameras])


def measured_state(observation: Observation) -> np.ndarray:
    """The state of the layout, float64 [S]: of two arms their `ee` poses."""
    return observation["state"] if "state" in observation else ee_pose(observation)


def ee_pose(observation: Observation) -> np.ndarray:
    """Both arms as an `ee` vector, float64 [16]: xyz (m), quat_wxyz, gripper (1 open .. 0 closed), left then right."""
    endpose = observation["endpose"]
    parts = [np.append(endpose[f"{arm}_endpose"], endpose[f"{arm}_gripper"]) for arm in ARMS]
    return np.concatenate(parts).astype(np.float64)


def stacked_truth(truth: Sequence[np.ndarray]) -> np.ndarray | None:
    """Ground truth of successive states, float32 [N, n]; None without states, or numbers in them."""
    return np.stack(truth).astype(np.float32) if len(truth) and truth[0].size else None


def said_simulation(env: ControlledEnv) -> str | None:
    """Robot, planner, renderer and length of a command in words; None where the backend's name says it all."""
    if not env.simulation:
        return None
    steps = env.simulation["command_steps"]
    lasts = "commands of any length" if steps is None else f"commands of {steps} physics steps"
    return ", ".join([*(env.simulation[name] for name in ("robot", "planner", "renderer")), lasts])


class ExpertUnavailableError(RuntimeError):
    """The scripted expert has no action for the present state."""


SIMULATOR_ERROR = "simulator_error"
"""Name of the failure of an episode that a `SimulatorError` ended."""


class SimulatorError(RuntimeError):
    """The simulator raised an error in the middle of an episode, which cannot go on; others can."""

    @property
    def line(self) -> str:
        """What was raised, and where."""
        return str(self).partition("\n")[0]


SOME_PROGRESS = 1e-3
"""Smaller gains of `Diagnosis.progress` are none."""


@dataclass(frozen=True)
class Diagnosis:
    """What simulator truth says about an episode now; detectors may read it, policies never."""

    progress: float
    """Task progress in [0, 1]; rises when the expert acts, 1 at success. NaN where it is not known."""
    stage: int
    """Number of the task's sub-goals reached (0 at reset)."""
    failure: str | None
    """Name of an irreversible event ("tipped", "dropped", "off_table", ...), None while recoverable."""


@dataclass
class Episode:
    """One rollout. Frames are recorded at the steps in `frame_steps`: decisions of a policy, every step of a demo."""

    task: str
    variant: str
    seed: int
    instruction: str
    success: bool
    num_steps: int
    poses: np.ndarray
    """Measured states, float64 [T + 1, S], of two arms their `ee` poses [T + 1, 16]; row t is before action t."""
    actions: np.ndarray
    """Commands, float64 [T, A], of two arms `ee` poses [T, 16], as they were given; see `envs.commands.executed`."""
    frame_steps: np.ndarray
    """int64 [N], the control steps at which `images` were taken."""
    images: np.ndarray
    """uint8 [N, V, S, S, 3] in the order of the layout's cameras."""
    stage: int = 0
    """Most sub-goals reached at any time."""
    failure: str | None = None
    """First irreversible event, or "timeout", or `SIMULATOR_ERROR`; None on success."""
    weight_version: int = 0
    layout: Layout = BIMANUAL
    truth: np.ndarray | None = None
    """Simulator ground truth at each frame, float32 [N, n]; only for auxiliary losses and reports."""
    paths: np.ndarray | None = None
    """Of a policy that explored: what the denoising of each chunk went through, float32 [N, K + 1, C, A], see
    `algos.batch.ExploredBatch`."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Diagnostics as plain values; `control_hz`: control steps a second; `simulation`: see `said_simulation`; `error`:
    the line of a `SimulatorError`."""


@dataclass
class Segment:
    """A stretch of control steps from the shared start state of a pair."""

    poses: np.ndarray
    """Measured states, float64 [T + 1, S], of two arms their `ee` poses [T + 1, 16]; row 0 is the shared start."""
    actions: np.ndarray
    """Commands, float64 [T, A], as they were given: a policy's samples, whose grippers may leave 0..1."""
    images: np.ndarray
    """uint8 [T, V, S, S, 3], the observation before each action."""
    truth: np.ndarray | None = None
    """Simulator ground truth at each of them, float32 [T, n]; None where nobody recorded it."""

    def beginning(self, steps: int) -> Segment:
        """Its first steps, all of them if there are fewer."""
        truth = None if self.truth is None else self.truth[:steps]
        return Segment(self.poses[: steps + 1], self.actions[:steps], self.images[:steps], truth)


INTERVENTION, RANKED = "intervention", "ranked"
"""Where a preference pair comes from."""


@dataclass
class PreferencePair:
    """A failure and its correction from one restored simulator state (FlowPRO, arXiv:2606.14409, section 4.2)."""

    task: str
    variant: str
    seed: int
    instruction: str
    winner: Segment
    loser: Segment
    start_step: int
    """Control step of the shared start state."""
    trigger_step: int
    """Control step at which the detector stopped the policy."""
    trigger: str
    """Why: the name of the failure or of the detector's rule."""
    rollback_steps: int
    """Steps between the irreversible event (or the trigger) and the shared start."""
    corrector: str
    start_digest: str
    """SHA-256 of the simulator snapshot from which both segments were run."""
    weight_version: int
    origin: str = INTERVENTION
    """INTERVENTION, or RANKED: the best and the worst of several chunks that the policy sampled in one state."""
    reward: str | None = None
    """What ranked the chunks."""
    reward_gap: float | None = None
    """Reward of the winner minus that of the loser, in standard deviations within states."""
    restore_method: str = "simulator"
    """How the shared start was brought back; see `ControlledEnv.restore_method`."""
    exact_restore: bool = True
    """Whether the restored start continued bit for bit: `restore_error` is 0."""
    restore_error: float = 0.0
    """Measured: the loser's first steps, run twice from the restored start, differ by so much in any number of the
    measured states (of poses m, parts of quaternions)."""
    before: np.ndarray | None = None
    """The policy's own frames of the last M steps before the shared start, uint8 [M, 3, S, S, 3], to which a memory
    looks back from both segments; None where the policy has no memory. M is its reach, or less near the reset."""
    control_hz: float | None = None
    """Control steps a second; None where nobody recorded it."""
    simulation: str | None = None
    """`said_simulation` of the environment."""
    correction_limit: int | None = None
    """Control steps from the shared start within which the corrector had to succeed: its own limit, in place of the
    episode's; None where nobody corrected or recorded it."""
    layout: Layout = BIMANUAL


@dataclass
class Candidates:
    """Several chunks that a policy sampled in one state, each run from there in the simulator. N chunks, H commands."""

    task: str
    variant: str
    seed: int
    instruction: str
    step: int
    """Control step of the state."""
    start_digest: str
    """SHA-256 of the simulator snapshot from which all of them were run."""
    weight_version: int
    poses: np.ndarray
    """Measured states, float64 [N, H + 1, S]; row 0 is the state's own."""
    actions: np.ndarray
    """The chunks as commanded, float64 [N, H, A]."""
    images: np.ndarray
    """uint8 [N, H, V, S, S, 3], the observation before each command."""
    after: np.ndarray
    """uint8 [N, V, S, S, 3], after the chunk and what the policy did next."""
    expert: np.ndarray
    """Commands of the scripted expert from the state on, float64 [H, A]."""
    progress: np.ndarray
    """Simulator truth at `after`, float64 [N]; for reports only."""
    success: np.ndarray
    """Simulator truth at `after`, bool [N]; for reports only."""
    before: np.ndarray | None = None
    """As in `PreferencePair`, before the state."""
    control_hz: float | None = None
    """As in `PreferencePair`."""
    simulation: str | None = None
    """As in `PreferencePair`."""
    layout: Layout = BIMANUAL

    def __len__(self) -> int:
        return len(self.actions)


class ControlledEnv(Protocol):
    """What collection and evaluation ask of an environment beyond `gymnasium.Env`."""

    layout: Layout
    """What its numbers are, and its cameras."""
    exact_restore: bool
    """`load(save())` continues bit for bit."""
    restore_method: str
    """"simulator": `load` sets the state. "replay": it repeats the episode from its seed, step by step."""
    expert_from_any_state: bool
    """`expert_action` works in every recoverable state, not only after `reset`."""
    simulation: Mapping[str, Any]
    """What the backend's name leaves open: `robot`, `planner`, `renderer` and `command_steps`, physics steps of a
    command (None where they differ). Empty on the tabletop."""
    control_hz: float
    """Control steps a second; nominal where steps differ in length."""
    patience: int
    """Control steps without progress that its expert never takes: a policy that does is stuck."""
    correction_limit: int
    """Control steps in which its expert solves the task from any state, if it does."""
    task: str
    variant: str
    step_limit: int
    step_count: int
    success: bool
    instruction: str

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]: ...

    def advance(self, action: np.ndarray) -> None:
        """One control step without rendering; `action` is a command [A]."""

    def observe(self, images: bool = True) -> Observation:
        """The current observation; images are rendered here and only here."""

    def state(self) -> np.ndarray:
        """The measured state, float64 [S], without rendering."""

    def expert_action(self) -> np.ndarray:
        """The scripted expert's command for the current state, [A]; ExpertUnavailableError if it has none."""

    def diagnose(self) -> Diagnosis: ...

    def truth(self) -> np.ndarray:
        """Ground truth for auxiliary losses, float32 [n], n fixed per task."""

    def watch(self, height: int, width: int) -> np.ndarray:
        """A picture of the present state for people, uint8 [height, width, 3]."""

    def steering_view(self, height: int, width: int) -> np.ndarray:
        """The same for a person who steers the robot: its left is on the left."""

    def save(self) -> bytes: ...

    def load(self, snapshot: bytes) -> None: ...
