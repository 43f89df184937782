"""Simulation workers: environments and a policy in one process, whole episodes in and out, or questions over pictures.

Work comes in units of a fixed size, in a fixed order: a list of environment seeds, or a range of a split's questions. A
unit's result depends on the unit and the weights alone, so a worker that dies, or whose RoboTwin dies, is replaced, its
unit run again, and nothing is lost or doubled. The environments of a process are made once and reset by every episode.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import gymnasium
import numpy as np

from envs.branching import BranchConfig, branched_rollout
from envs.by_name import blamed
from envs.execution import Execution
from envs.robotwin.connection import RoboTwin, RoboTwinServer, SeedRejectedError, ServerDiedError
from envs.robotwin.env import RoboTwinEnv
from envs.rollback import Collection, FailureDetector, RollbackConfig, intervened_rollout
from envs.rollout import Act, Decision, Rollout, as_member, demonstrate, policy_rollout, run_lockstep
from envs.tabletop import MODES
from envs.types import SIMULATOR_ERROR, Candidates, ControlledEnv, Episode, ExpertUnavailableError, SimulatorError
from rl_lab.common.seeding import evaluation_seeds, robotwin_seeds, stream, training_seeds
from rl_lab.config.environments import declared_environment
from rl_lab.learner.policy_gradient import Exploration
from rl_lab.model.checkpoint import Snapshot, snapshot_info
from rl_lab.records.checks import Problem
from rl_lab.records.item_files import QuestionRow, item_row
from rl_lab.records.labels import labels_of
from rl_lab.records.sources import Recording
from rl_lab.workers.films import webm
from rl_lab.workers.policy import CorrectorPlan, LocalPolicy, SharedPolicy, policy_key
from rl_lab.workers.pool import BrokenWorkerError


@dataclass(frozen=True)
class EnvSpec:
    """Which environment a unit runs in."""

    backend: str
    task: str
    variant: str
    image_size: int
    instruction_split: str = "seen"
    command_steps: int | None = None
    success_tolerance: float = 1.0
    expert_mode: str | None = None


class Environments:
    """Environments by kind. All of RoboTwin's share the one server of this process, so they take turns."""

    def __init__(self, robotwin: RoboTwin | None = None) -> None:
        """`robotwin` is None on machines without."""
        self._server = None if robotwin is None else RoboTwinServer(robotwin)
        self._made: dict[EnvSpec, list[ControlledEnv]] = {}

    def of(self, spec: EnvSpec, count: int) -> list[ControlledEnv]:
        """`count` environments of a kind."""
        made = self._made.setdefault(spec, [])
        while len(made) < count:
            made.append(self._make(spec))
        return made[:count]

    def close(self) -> None:
        """End RoboTwin's server, if there is one."""
        if self._server is not None:
            self._server.close()

    def _make(self, spec: EnvSpec) -> ControlledEnv:
        options: dict[str, Any] = {
            "variant": spec.variant,
            "image_size": spec.image_size,
            "instruction_split": spec.instruction_split,
        }
        if spec.backend == "robotwin":
            assert self._server is not None, "preflight found RoboTwin"
            options["command_steps"] = spec.command_steps
            return cast(ControlledEnv, RoboTwinEnv(spec.task, server=self._server, **options))
        if spec.backend != "tabletop":
            return cast(ControlledEnv, declared_environment(spec.backend, spec.task, **options))
        options |= {"success_tolerance": spec.success_tolerance, "expert_mode": spec.expert_mode}
        env = gymnasium.make(f"{spec.backend}/{spec.task}-v0", disable_env_checker=True, **options)
        return cast(ControlledEnv, env.unwrapped)


UNIT_QUESTIONS = 64
"""Questions that a worker renders at once."""


@dataclass(frozen=True)
class QuestionUnit:
    """Questions `start`, ..., `start + UNIT_QUESTIONS - 1` of a split; see `envs.spatial_qa.questions.make_items`."""

    split: str
    start: int
    tasks: tuple[str, ...]
    levels: tuple[float, ...]
    image_size: int
    thinking: bool
    per_scene: int


def question_units(unit: QuestionUnit) -> Iterator[QuestionUnit]:
    """This unit and all that follow it."""
    start = unit.start
    while True:
        yield replace(unit, start=start)
        start += UNIT_QUESTIONS


def render(unit: QuestionUnit) -> list[QuestionRow]:
    """The questions of a unit, without those seeds for which no scene has a clear answer."""
    from envs.spatial_qa.questions import NoClearQuestionError, make_items  # here, because it imports the simulator

    ask = partial(
        make_items,
        1,
        unit.split,
        tasks=unit.tasks,
        levels=unit.levels,
        image_size=unit.image_size,
        thinking=unit.thinking,
        per_scene=unit.per_scene,
    )
    rows = []
    for index in range(unit.start, unit.start + UNIT_QUESTIONS):
        try:
            rows += [item_row(item) for item in ask(start=index)]
        except NoClearQuestionError:
            continue
    return rows


FILM_STRIDE = 2
"""Control steps between two pictures of a film."""

FILM_SIZE = (180, 240)
"""Height and width in pixels."""

ERRORS = "errors/"
"""What counts of a collection begin with that are errors of the simulator."""

MODE = "mode"
"""Key in `Episode.extra` of the mode in which the expert acted, if it is not its own."""

REJECTED = "rejected"
"""Key of the reason in the row of an evaluation seed that RoboTwin refused."""


@dataclass(frozen=True)
class Unit:
    """A piece of simulation work; `run_seed` addresses every random stream in it."""

    env: EnvSpec
    seeds: tuple[int, ...]
    run_seed: int


@dataclass(frozen=True)
class Rejection:
    """A seed on which RoboTwin gives no episode: its scene is unstable, its expert fails, or something raises."""

    seed: int
    reason: str
    is_error: bool = False
    """Whether something raised."""


def rejection(seed: int, error: Exception) -> Rejection:
    """The refusal of a seed, or an error before there is an episode to speak of."""
    raised = isinstance(error, SimulatorError) or (isinstance(error, SeedRejectedError) and error.is_error)
    return Rejection(seed, str(error).partition("\n")[0], raised)


@dataclass(frozen=True)
class Film:
    """A recorded episode."""

    task: str
    variant: str
    seed: int
    failure: str | None
    """None for a success."""
    webm: bytes
    """Of the camera for people, in real time where control steps last alike."""
    pictures_hz: float


@contextlib.contextmanager
def _simulating() -> Iterator[None]:
    """A RoboTwin that died takes its worker along: the pool says so, starts another and issues the unit again. What a
    user's own environment raises is told with its file and line."""
    try:
        with blamed():
            yield
    except ServerDiedError as error:
        raise BrokenWorkerError(f"lost its simulator ({str(error).splitlines()[0].rstrip('.')})") from error


class Simulation:
    """The work of one simulation process."""

    def __init__(self, inference: Any = None, robotwin: RoboTwin | None = None) -> None:
        self._environments = Environments(robotwin)
        self._inference = inference
        """An `Inference` actor to act with; None: a copy of the policy in this process."""
        self._policies: dict[str, tuple[str, LocalPolicy | SharedPolicy]] = {}
        """The last one of each role, with its key."""

    def _load(self, snapshot: Snapshot, run_seed: int, role: str = "policy") -> LocalPolicy | SharedPolicy:
        """The snapshot's policy, kept until another one of its role comes."""
        key = policy_key(snapshot, run_seed)
        if role not in self._policies or self._policies[role][0] != key:
            policy = (
                LocalPolicy.from_snapshot(snapshot, seed=run_seed)
                if self._inference is None
                else SharedPolicy(self._inference, snapshot, seed=run_seed)
            )
            self._policies[role] = (key, policy)
        return self._policies[role][1]

    def _roll_out(
        self, unit: Unit, snapshot: Snapshot, make: Callable[[ControlledEnv, int], Rollout], act: Act | None = None
    ) -> list:
        """Rollouts of the unit's seeds, together, by the snapshot's policy; SeedRejectedError where RoboTwin refuses
        one."""
        environments = self._environments.of(unit.env, len(unit.seeds))
        rollouts = [make(env, seed) for env, seed in zip(environments, unit.seeds, strict=True)]
        with _simulating():
            return run_lockstep(rollouts, act or self._load(snapshot, unit.run_seed).act)

    def questions(self, unit: QuestionUnit) -> list[QuestionRow]:
        """Questions over pictures of scenes; see `render`."""
        return render(unit)

    def demonstrate(self, unit: Unit, noise_m: float) -> list[Episode | Rejection]:
        """Expert episodes of the unit's seeds (see `envs.rollout.demonstrate`), failing ones until that shows."""
        env = self._environments.of(unit.env, 1)[0]
        mode = unit.env.expert_mode
        fails = mode is not None and not MODES[unit.env.task][mode]
        found: list[Episode | Rejection] = []
        for seed in unit.seeds:
            generator = stream(unit.run_seed, "demo_noise", seed)
            try:
                detect = FailureDetector(RollbackConfig(), env.patience).update if fails else None
                with _simulating():
                    episode = demonstrate(env, seed, noise_m=noise_m, generator=generator, detect=detect)
                found.append(episode if mode is None else replace(episode, extra=episode.extra | {MODE: mode}))
            except (SeedRejectedError, SimulatorError, ExpertUnavailableError) as error:
                found.append(rejection(seed, error))
        return found

    def read_recordings(self, unit: Sequence[Recording]) -> list[tuple[Episode | None, list[Problem]]]:
        """Demonstrations in files, each read and checked (see `Recording.read`)."""
        return [recording.read() for recording in unit]

    def evaluate(self, unit: Unit, snapshot: Snapshot, execution: Execution) -> list[dict[str, Any]]:
        """Policy episodes of the unit's seeds: their labels and the step limit, without the recorded arrays.

        A seed that RoboTwin refuses gives a row with the reason as `rejected`, and `is_error` if something raised.
        """
        memory = snapshot_info(snapshot).memory

        def make(env: ControlledEnv, seed: int) -> Rollout[Episode]:
            return policy_rollout(env, seed, execution=execution, memory=memory, weight_version=snapshot.version)

        try:
            episodes = self._roll_out(unit, snapshot, make)
        except (SeedRejectedError, SimulatorError) as error:
            (seed,) = unit.seeds  # one episode a unit in RoboTwin
            found = rejection(seed, error)
            row = {"task": unit.env.task, "variant": unit.env.variant, "seed": seed, REJECTED: found.reason}
            return [row | {"is_error": True} if found.is_error else row]
        step_limit = self._environments.of(unit.env, 1)[0].step_limit
        return [labels_of(episode) | {"step_limit": step_limit} for episode in episodes]

    def record(self, unit: Unit, snapshot: Snapshot, execution: Execution) -> list[Episode]:
        """Policy episodes of the unit's seeds as they are, with a picture at every decision and one at the end."""

        labels: dict[str, Any] = {"memory": snapshot_info(snapshot).memory, "weight_version": snapshot.version}

        def make(env: ControlledEnv, seed: int) -> Rollout[Episode]:
            return policy_rollout(env, seed, execution=execution, record_end=True, **labels)

        with contextlib.suppress(SeedRejectedError, SimulatorError):
            return [one for one in self._roll_out(unit, snapshot, make) if one.failure != SIMULATOR_ERROR]
        return []

    def explore(self, unit: Unit, snapshot: Snapshot, execution: Execution, how: Exploration) -> list[Episode]:
        """A group: episodes from the one seed of the unit, named once for each, with the paths of all decisions."""
        policy, taken = self._load(snapshot, unit.run_seed), dict[tuple[int, ...], np.ndarray]()
        members = itertools.count()

        def act(decisions: Sequence[Decision]) -> np.ndarray:
            commands, paths = policy.explore(decisions, how)
            taken.update(zip((decision.key for decision in decisions), paths, strict=True))
            return commands

        def make(env: ControlledEnv, seed: int) -> Rollout[Episode]:
            rollout = policy_rollout(env, seed, execution=execution, weight_version=snapshot.version)
            return as_member(rollout, next(members))

        episodes = self._roll_out(unit, snapshot, make, act)
        return [
            replace(one, paths=np.stack([taken[one.seed, number, member] for number in range(len(one.frame_steps))]))
            for member, one in enumerate(episodes)
        ]

    def candidates(self, unit: Unit, snapshot: Snapshot, config: BranchConfig) -> list[Candidates]:
        """Chunks sampled in states of the policy's episodes (see `envs.branching`), all episodes together."""

        labels: dict[str, Any] = {"memory": snapshot_info(snapshot).memory, "weight_version": snapshot.version}

        def make(env: ControlledEnv, seed: int) -> Rollout[list[Candidates]]:
            generator = stream(unit.run_seed, "branches", seed)
            return branched_rollout(env, seed, config=config, generator=generator, **labels)

        with contextlib.suppress(SeedRejectedError, SimulatorError):
            return [state for states in self._roll_out(unit, snapshot, make) for state in states]
        return []

    def film(self, unit: Unit, seeds: tuple[int, ...], snapshot: Snapshot, execution: Execution) -> list[Film]:
        """The episodes of `evaluate` again; those of some seeds recorded, in the order of the unit."""
        cameras: dict[int, list[np.ndarray]] = {seed: [] for seed in seeds}
        memory = snapshot_info(snapshot).memory

        def make(env: ControlledEnv, seed: int) -> Rollout[Episode]:
            frames = cameras.get(seed)

            def record(env: ControlledEnv) -> None:
                if frames is not None and env.step_count % FILM_STRIDE == 0:
                    frames.append(env.watch(*FILM_SIZE))

            return policy_rollout(env, seed, execution=execution, memory=memory, on_step=record)

        episodes = {episode.seed: episode for episode in self._roll_out(unit, snapshot, make)}
        hz = self._environments.of(unit.env, 1)[0].control_hz / FILM_STRIDE
        return [
            Film(unit.env.task, unit.env.variant, seed, episodes[seed].failure, webm(cameras[seed], hz), hz)
            for seed in unit.seeds
            if cameras.get(seed)
        ]

    @blamed()
    def collect(self, unit: Unit, snapshot: Snapshot, rollback: RollbackConfig, corrector: CorrectorPlan) -> Collection:
        """Policy episodes with interventions (see `envs.rollback.intervened_rollout`), all together."""

        chosen = corrector.build(lambda weights: self._load(weights, unit.run_seed, "teacher").act)
        memory = snapshot_info(snapshot).memory

        def make(env: ControlledEnv, seed: int) -> Rollout[Collection]:
            return intervened_rollout(
                env,
                seed,
                corrector=chosen,
                config=rollback,
                generator=stream(unit.run_seed, "rollback", seed),
                memory=memory,
                weight_version=snapshot.version,
            )

        try:
            return Collection.merge(self._roll_out(unit, snapshot, make))
        except (SeedRejectedError, SimulatorError) as error:
            (seed,) = unit.seeds
            found = rejection(seed, error)
            counts = Counter(rejected_seeds=1) if isinstance(error, SeedRejectedError) else Counter(episodes=1)
            return Collection(counts=counts + Counter({f"{ERRORS}{found.reason}": 1} if found.is_error else {}))


UNIT_EPISODES = {"demos": 5, "collect": 10, "evaluate": 25, "record": 20, "candidates": 10}
"""Episodes of one unit on the tabletop and in own environments, that many run in lockstep; the batch size is part of a
result's bits, so it is no option. In RoboTwin, where a process has one scene at a time, a unit is one episode."""

CANDIDATES = 10
"""Seeds tried for each evaluation episode in RoboTwin, which rejects some, before an evaluation is given up."""


def env_specs(config: Any, instruction_split: str) -> list[EnvSpec]:
    """Every task of a configuration's `env` section in every variant."""
    env = config.env
    return [
        EnvSpec(env.backend, task, variant, env.image_size, instruction_split, env.command_steps, env.success_tolerance)
        for task in env.tasks
        for variant in env.variants
    ]


def demonstrations_wanted(config: Any) -> list[tuple[EnvSpec, int, bool]]:
    """By task, variant and mode of the expert how many episodes, and whether they are to succeed."""
    return [
        (replace(spec, expert_mode=mode), count, mode is None or MODES[spec.task][mode])
        for spec in env_specs(config, "seen")
        for mode, count in config.demos.by_mode.items()
    ]


def episode_units(kind: str, spec: EnvSpec, seeds: Sequence[int], run_seed: int) -> Iterator[Unit]:
    """Units of a kind of work over environment seeds."""
    size = 1 if spec.backend == "robotwin" else UNIT_EPISODES[kind]
    for start in range(0, len(seeds), size):
        yield Unit(spec, tuple(seeds[start : start + size]), run_seed)


def drawn_units(kind: str, spec: EnvSpec, name: str, count: int, run_seed: int) -> list[Unit]:
    """Units over `count` environment seeds of training, drawn by the run's seed, a name, task and variant."""
    seeds = training_seeds(run_seed, f"{name}/{spec.task}/{spec.variant}", count, spec.backend)
    return list(episode_units(kind, spec, seeds, run_seed))


def evaluation_groups(config: Any, run_seed: int) -> list[tuple[list[Unit], int]]:
    """Units of a configuration's `env` and `eval` sections, and how many of their episodes count, the first ones.

    All in one group, but in RoboTwin, which rejects seeds: there each task and variant is a group of its own with more
    seeds than are needed, in the order in which RoboTwin's own evaluation tries them.
    """
    settings = config.eval
    specs = env_specs(config, settings.instructions)
    if config.env.backend != "robotwin":
        seeds = evaluation_seeds(settings.seeds, settings.episodes)
        units = [unit for spec in specs for unit in episode_units("evaluate", spec, seeds, run_seed)]
        return [(units, len(specs) * len(seeds))]
    seeds = robotwin_seeds(settings.seeds, settings.robotwin_seed, CANDIDATES * settings.episodes)
    return [(list(episode_units("evaluate", spec, seeds, run_seed)), settings.episodes) for spec in specs]
