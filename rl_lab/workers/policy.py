"""A policy that acts: observations in, chunks of absolute commands out; and correctors of a collection as plain data.

One copy may serve many simulation workers: an actor, usually on a GPU, that batches what a worker asks. A request is
what one unit of simulation work asks at once, and is computed as one batch of its own. So episodes do not depend on how
many workers share the policy, nor on who asks first. Correctors are built and checked from `collect.corrector`.
"""

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
from pydantic import Field
from ray.exceptions import RayTaskError

from algos.batch import ObservationBatch
from algos.real_time_chunking import sample_guided, soft_mask
from envs.by_name import blamed
from envs.commands import CommandError
from envs.rollback import Corrector, Place, noisy_expert, own_corrector, recorded, scripted_expert, teacher
from envs.rollout import Act, Decision
from envs.types import BIMANUAL, MAX_DIM, Layout, camera_images, measured_state
from rl_lab.common.errors import RunError, UserError
from rl_lab.common.reading import fit, parse_json, read_text
from rl_lab.common.seeding import stream
from rl_lab.config.actions import CorrectorConfig
from rl_lab.learner.policy_gradient import Exploration, read_noise
from rl_lab.model.checkpoint import Snapshot, check_named, check_policy, load_policy, published, pull, snapshot_info
from rl_lab.records.checks import command_problems
from rl_lab.records.episodes import INDEX_FILE, read_pairs


def policy_key(snapshot: Snapshot, seed: int) -> str:
    """Equal for policies that act alike."""
    return f"{snapshot.digest}/{seed}"


class LocalPolicy:
    """A copy of the policy in the worker's own process.

    The flow's initial noise is addressed by (run seed, environment seed, decision number), so an episode depends on
    nothing but these and the weights (up to the rounding of a batched forward pass).
    """

    def __init__(self, folder: Path, *, seed: int, device: str = "cpu", code: str | None = None) -> None:
        """`code` as in `load_policy`."""
        self.policy, self.processor, self.info = load_policy(folder, code)
        self.policy.eval().to(device)
        self.seed, self.device = seed, device
        self._noise_weights = read_noise(folder)

    @classmethod
    def from_snapshot(cls, snapshot: Snapshot, *, seed: int, device: str = "cpu") -> LocalPolicy:
        """Load a published snapshot."""
        with tempfile.TemporaryDirectory() as folder:
            return cls(pull(snapshot, Path(folder)), seed=seed, device=device, code=snapshot.code)

    def _noise(self, decisions: Sequence[Decision]) -> torch.Tensor:
        shape = (self.policy.chunk_size, self.policy.action_dim)
        draws = [stream(self.seed, "flow", *decision.key).normal(size=shape) for decision in decisions]
        return torch.from_numpy(np.stack(draws)).float().to(self.device)

    @torch.no_grad()
    def act(self, decisions: Sequence[Decision]) -> np.ndarray:
        """Chunks of commands [len(decisions), H, A], one forward pass for all.

        RunError for commands that no arm may be sent to (see `PolicyProcessor.decode`).
        """
        batch, poses = self._observed(decisions)
        prefix, noise = self.policy.encode(batch), self._noise(decisions)
        if any(decision.plan is not None for decision in decisions):
            chunks = self._guided(prefix, noise, decisions, poses)
        else:
            chunks = self.policy.sample_actions(prefix, noise)
        return self._commands(chunks, poses)

    @torch.no_grad()
    def explore(self, decisions: Sequence[Decision], how: Exploration) -> tuple[np.ndarray, np.ndarray]:
        """The same with noise on the way; also the paths of denoising, see `Exploration.paths`."""
        batch, poses = self._observed(decisions)
        shape = (how.steps, self.policy.chunk_size, self.policy.action_dim)
        draws = [stream(self.seed, "explore", *decision.key).normal(size=shape) for decision in decisions]
        paths = how.paths(
            self.policy,
            self.policy.encode(batch),
            batch.state,
            self._noise(decisions),
            torch.from_numpy(np.stack(draws, axis=1)).float().to(self.device),
            self._noise_weights,
        )
        used = self.processor.config.layout.encoded_action_dim
        return self._commands(paths[:, -1, :, :used], poses), paths.cpu().numpy()

    def _observed(self, decisions: Sequence[Decision]) -> tuple[ObservationBatch, np.ndarray]:
        """What the policy reads, and the measured states [len(decisions), S]."""
        observations = [decision.observation for decision in decisions]
        instructions = [self.info.condition(str(observation["instruction"])) for observation in observations]
        poses = np.stack([measured_state(observation) for observation in observations])
        images = np.stack([_views(decision, self.info.history) for decision in decisions])
        return self.processor.batch(images, poses, instructions, truth=self._truth(decisions)).to(self.device), poses

    def _commands(self, chunks: torch.Tensor, poses: np.ndarray) -> np.ndarray:
        try:
            return self.processor.decode(chunks.cpu().numpy(), poses)
        except CommandError as error:
            raise RunError(
                f"the policy of weight version {self.info.weight_version} must not act: {error}; its statistics or its "
                "weights are not those it was trained with, or its training diverged"
            ) from error

    def _truth(self, decisions: Sequence[Decision]) -> np.ndarray | None:
        """The simulator's, [len(decisions), n], for a policy of studies alone. RunError where there is none."""
        if not self.processor.reads_truth:
            return None
        known = [decision.truth for decision in decisions if decision.truth is not None]
        if len(known) < len(decisions):
            raise RunError("a policy of studies reads the simulator's truth, which is not there: it acts in simulators")
        return np.stack(known)

    def _guided(
        self, prefix: Any, noise: torch.Tensor, decisions: Sequence[Decision], poses: np.ndarray
    ) -> torch.Tensor:
        """Chunks that go on from the plans of their decisions; those without one are free. See `Decision.plan`."""
        velocity, num_steps = (getattr(self.policy, name, None) for name in ("velocity", "num_steps"))
        if velocity is None or num_steps is None:
            raise RunError(f"join is guide, but {type(self.policy).__name__} has no velocity and num_steps to guide by")
        plan, mask = torch.zeros_like(noise), torch.zeros_like(noise)
        length = self.processor.num_commands
        for row, decision in enumerate(decisions):
            if decision.plan is not None:
                left = decision.plan.commands[:length]
                commands = left[np.minimum(np.arange(length), len(left) - 1)]
                chunk = self.processor.encode(commands[None], poses[row : row + 1])[0].to(self.device)
                plan[row, :, : chunk.shape[-1]] = chunk
                held = soft_mask(length, len(left), decision.plan.late).to(self.device)
                mask[row, :, : chunk.shape[-1]] = held.repeat(len(chunk) // length)[:, None]
        chunks = sample_guided(partial(velocity, prefix), noise, plan, mask, num_steps)
        return chunks[..., : self.processor.config.layout.encoded_action_dim]


def _views(decision: Decision, frames: int) -> np.ndarray:
    """What a policy sees: uint8 [V, S, S, 3], or [V, K, S, S, 3] with the present frame last. ValueError if it lacks
    the past that it was trained with."""
    now = camera_images(decision.observation)
    given = 1 if decision.past is None else 1 + len(decision.past)
    if given != frames:
        raise ValueError(f"the policy sees {frames} frames of each camera, but the decision has {given}")
    return now if decision.past is None else np.concatenate([decision.past, now[None]]).swapaxes(0, 1)


KEPT_POLICIES = 4
"""Stages that run at the same time use different weights."""


class Inference:
    """The actor: policies by key, the least recently used dropped."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._policies: OrderedDict[str, LocalPolicy] = OrderedDict()

    @blamed()
    def load(self, snapshot: Snapshot, seed: int) -> None:
        """Get ready to act with these weights."""
        key = policy_key(snapshot, seed)
        if key not in self._policies:
            self._policies[key] = LocalPolicy.from_snapshot(snapshot, seed=seed, device=self._device)
        while len(self._policies) > KEPT_POLICIES:
            self._policies.popitem(last=False)

    @blamed()
    def act(self, key: str, decisions: Sequence[Decision]) -> np.ndarray | None:
        """Chunks of the policy of this key (see `LocalPolicy.act`); None if it is not, or no longer, loaded."""
        if key not in self._policies:
            return None
        self._policies.move_to_end(key)
        return self._policies[key].act(decisions)

    @blamed()
    def explore(
        self, key: str, decisions: Sequence[Decision], how: Exploration
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """The same with noise, see `LocalPolicy.explore`."""
        if key not in self._policies:
            return None
        self._policies.move_to_end(key)
        return self._policies[key].explore(decisions, how)


class SharedPolicy:
    """What a simulation worker holds of an `Inference` actor; acts like a `LocalPolicy`."""

    def __init__(self, server: Any, snapshot: Snapshot, *, seed: int) -> None:
        self._server, self._snapshot, self._seed = server, snapshot, seed
        self._key = policy_key(snapshot, seed)

    def act(self, decisions: Sequence[Decision]) -> np.ndarray:
        """Chunks of commands [len(decisions), H, A]; loads the weights first where the actor lacks them.

        It lacks them at first, after others pushed them out, and when it died and was started again.
        """
        return self._asked(self._server.act, decisions)

    def explore(self, decisions: Sequence[Decision], how: Exploration) -> tuple[np.ndarray, np.ndarray]:
        """The same with noise, see `LocalPolicy.explore`."""
        return self._asked(self._server.explore, decisions, how)

    def _asked(self, method: Any, *arguments: Any) -> Any:
        try:
            while (found := ray.get(method.remote(self._key, *arguments))) is None:
                ray.get(self._server.load.remote(self._snapshot, self._seed))
        except RayTaskError as error:
            raise error.cause from error  # as a policy of this process would
        return found


@dataclass(frozen=True)
class CorrectorPlan:
    """Who corrects; crosses processes."""

    name: str = scripted_expert.name
    """Stands on every pair."""
    weights: Snapshot | None = None
    """A teacher policy's."""
    execute: int = 1
    """Commands of each of its chunks that are run."""
    corrections: dict[Place, np.ndarray] = field(default_factory=dict)
    """Recorded commands [T, A]."""
    code: str | None = None
    """A user's own."""
    noise_m: float = 0.0
    """Of the scripted expert."""

    def build(self, policy: Callable[[Snapshot], Act]) -> Corrector:
        """The corrector itself; `policy` makes one act from its weights."""
        if self.code is not None:
            return own_corrector(self.code)
        if self.weights is not None:
            return teacher(self.name, policy(self.weights), self.execute, snapshot_info(self.weights).memory)
        if self.noise_m:
            return noisy_expert(self.noise_m)
        return recorded(self.name, self.corrections) if self.corrections else scripted_expert


def corrector_plan(
    settings: CorrectorConfig, execute: int, layout: Layout = BIMANUAL, code: str | None = None
) -> CorrectorPlan:
    """From the configuration, for an environment of this layout; `code` is that of a teacher of one's own. UserError
    for recorded corrections that cannot be read."""
    path = Path(settings.path or "")
    if settings.kind == "policy":
        weights = published(path, code)
        return CorrectorPlan(f"policy {path.name} ({weights.digest[:12]})", weights, execute)
    if settings.kind == "recorded":
        return CorrectorPlan(f"recorded {path.name}", corrections=read_corrections(path, layout))
    return CorrectorPlan(code=settings.code, noise_m=settings.noise_m)


def read_corrections(path: Path, layout: Layout = BIMANUAL) -> dict[Place, np.ndarray]:
    """Corrections of a file that `python -m rl_lab.correct` wrote, or the winners of a folder of pairs that a run left.

    A line is {"task": ..., "variant": ..., "seed": environment seed, "step": control step of the state in which the
    correction begins, "actions": [[16 numbers, or as many as a command has], ...]}, the actions as in
    `envs.types.Segment`. UserError, naming the line, for anything else.
    """
    if path.is_dir():
        if not (path / INDEX_FILE).is_file():
            raise UserError(f"collect.corrector.path: {path} is no folder of pairs: {INDEX_FILE} is missing")
        found = dict(_winners(path, layout))
    else:
        found = dict(_lines(path, layout))
    if not found:
        raise UserError(f"collect.corrector.path: {path} has no corrections")
    return found


def _winners(folder: Path, layout: Layout) -> Iterator[tuple[Place, np.ndarray]]:
    try:
        for number, pair in enumerate(read_pairs(folder)):
            place = (pair.task, pair.variant, pair.seed, pair.start_step)
            yield place, _checked(f"{folder}, pair {number}", pair.winner.actions, layout)
    except UserError as error:
        raise UserError(f"collect.corrector.path: {error}") from error


def _lines(path: Path, layout: Layout) -> Iterator[tuple[Place, np.ndarray]]:
    try:
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            if line.strip():
                where = f"{path}, line {number}"
                row = fit(parse_json(line, where), _Line, where)
                size = layout.action_dim
                for place, action in enumerate(row.actions):
                    if len(action) != size:
                        bound = f"at {'least' if len(action) < size else 'most'} {size}"
                        raise UserError(f"{where}: actions.{place}: List should have {bound} items, not {len(action)}")
                actions = np.array(row.actions).reshape(-1, size)
                yield (row.task, row.variant, row.seed, row.step), _checked(where, actions, layout)
    except UserError as error:
        raise UserError(f"collect.corrector.path: {error}") from error


def _checked(where: str, actions: np.ndarray, layout: Layout) -> np.ndarray:
    """Commands [T, A]; UserError for anything that no environment takes."""
    problems: Sequence[object] = command_problems(where, "action", actions, layout)
    problems = problems if len(actions) else [f"{where}: there are no actions"]
    if problems:
        raise UserError(f"{problems[0]}; mend it or leave it out")
    return actions


@dataclass(frozen=True)
class _Line:
    task: str
    variant: str
    seed: int
    step: int
    actions: list[Annotated[list[float], Field(max_length=MAX_DIM)]]


def check_corrector(
    settings: CorrectorConfig, image_size: int, execute: int, layout: Layout = BIMANUAL, code: str | None = None
) -> None:
    """UserError, before a run begins, for a corrector that cannot act in it."""
    if settings.kind == "recorded":
        read_corrections(Path(settings.path or ""), layout)
    if settings.kind == "policy":
        check_acting(Path(settings.path or ""), image_size, execute, "collect.corrector.path", layout, code)


def check_acting(
    folder: Path, image_size: int, execute: int, where: str, layout: Layout = BIMANUAL, code: str | None = None
) -> None:
    """UserError, in the name of `where`, unless the folder holds a policy that can act on pictures of this size with
    so many commands of each chunk executed."""
    sizes, processor, _ = check_named(where, folder, partial(check_policy, code=code))
    if not processor.has_stats:
        raise UserError(f"{where}: {folder} has no normalisation statistics: such a policy cannot act; train it first")
    if not sizes.layout.is_like(layout):
        raise UserError(f"{where}: {folder} knows {sizes.layout}, but the environment has {layout}")
    if sizes.image_size != image_size:
        raise UserError(
            f"{where}: {folder} takes {sizes.image_size} pixels, but env.image_size is {image_size}; set it to that"
        )
    if execute > processor.num_commands:
        raise UserError(
            f"{where}: {folder} predicts {processor.num_commands} commands, but execute is {execute}; execute at most "
            "that many"
        )
