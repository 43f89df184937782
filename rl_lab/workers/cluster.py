"""Ray for one run: started with it, shared by all stages, shut down with it.

Workers and learners take turns, so each asks for half a core: a laptop with two cores holds two of each kind. A kind
that the placement names has its resources reserved. Set RAY_ADDRESS to use a running cluster instead of starting one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from rl_lab.common.errors import RunError, UserError
from rl_lab.config.language import JudgeServerConfig
from rl_lab.config.placement import Placement
from rl_lab.config.robotwin import find_robotwin
from rl_lab.config.schema import WorkersConfig
from rl_lab.graph.executor import Turns
from rl_lab.learner.plans import Plan
from rl_lab.workers import connection
from rl_lab.workers.engine import ENVIRONMENT as ENGINE_ENVIRONMENT
from rl_lab.workers.engine import EngineOptions, Rollouter
from rl_lab.workers.judge import JudgeServer
from rl_lab.workers.learner import LearnerWorker
from rl_lab.workers.placement import ACTOR_CPUS, bundles, joins_cluster, lacking, resources
from rl_lab.workers.policy import Inference
from rl_lab.workers.pool import WorkerPool, warn_on_stderr
from rl_lab.workers.ranks import group_class
from rl_lab.workers.simulation import Simulation

LEARNER_GPUS, INFERENCE_GPUS = 0.9, 0.1
"""A learner has a GPU to itself, but for what acts or answers in the same run."""
INFERENCE_RESTARTS = 20
"""An actor that keeps dying (out of memory, a broken driver) must not be restarted forever."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Spins of a waiting thread before it sleeps: by default a step beside another stage takes 6 to 11 times as long.
    "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", "10000"),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}


class Cluster:
    """Ray's connection and the run's pools of workers; safe to use from several stages at once.

    Make it in the main thread: Ray's processes end with the thread that started them.
    """

    def __init__(self, workers: WorkersConfig, placement: Placement) -> None:
        self.workers, self.placement = workers, placement
        self._groups: dict[str, PlacementGroup] = {}
        """What is reserved for the kinds of workers."""
        self._judge: Any = None
        """The actor of the run's own judge; it ends when nobody holds it."""
        self._simulations: WorkerPool | None = None
        self._rollouts: tuple[EngineOptions, WorkerPool] | None = None
        self._simulation_turns, self._rollout_turns = Turns(), Turns()
        self._connect()

    def _connect(self) -> None:
        runtime_env = {"env_vars": _ENVIRONMENT}
        if joins_cluster():
            connection.join(runtime_env=runtime_env)
        else:
            needed = ACTOR_CPUS * (self.workers.simulation + self.workers.rollout + 3)
            needed += sum(one.count * one.resources["CPU"] for one in bundles(self.placement, self.workers))
            connection.start(max(os.cpu_count() or 1, int(needed + 1)), runtime_env=runtime_env)
        asked = bundles(self.placement, self.workers, shared=True)
        shortage = lacking(asked, _resources_of_nodes(), self.placement.strategy)
        if shortage is not None:
            ray.shutdown()
            raise UserError(shortage)
        self._num_gpus = int(ray.cluster_resources().get("GPU", 0)) if self.placement.device != "cpu" else 0
        self._on_gpu = self._num_gpus >= 1
        self._device = "cuda" if self._on_gpu else "cpu"

    @contextlib.contextmanager
    def simulation_pool(self, warn: Callable[[str], None] = warn_on_stderr) -> Iterator[WorkerPool]:
        """The pool of `Simulation` workers, for one stage at a time. `warn` is told when one is replaced."""
        with self._simulation_turns.taken():
            if self._simulations is None:
                inference = self._inference() if self.workers.policy == "shared" else None
                actor = ray.remote(Simulation).options(**self._resources("simulators", 0.0))
                robotwin = find_robotwin(self.workers)
                count = self.workers.simulation
                self._simulations = WorkerPool("simulation", count, lambda: actor.remote(inference, robotwin))
            with _lent(self._simulations, warn):
                yield self._simulations

    @contextlib.contextmanager
    def rollout_pool(
        self, options: EngineOptions, warn: Callable[[str], None] = warn_on_stderr
    ) -> Iterator[WorkerPool]:
        """The pool of `Rollout` workers, for one stage at a time; other options than before start it anew.

        What a stage submitted and no worker has begun is forgotten when the stage leaves. `warn` is told when a worker
        is replaced.
        """
        with self._rollout_turns.taken():
            if self._rollouts is not None and self._rollouts[0] != options:
                self._rollouts[1].close()
                self._rollouts = None
            if self._rollouts is None:
                self._rollouts = options, self._start_rollouts(options)
            with _lent(self._rollouts[1], warn):
                yield self._rollouts[1]

    @contextlib.contextmanager
    def teacher_pool(
        self, options: EngineOptions, warn: Callable[[str], None] = warn_on_stderr
    ) -> Iterator[WorkerPool]:
        """`Rollout` workers beside those of `rollout_pool`, as many, that end with the stage."""
        pool = self._start_rollouts(options, beside=True)
        pool.warn = warn
        try:
            yield pool
        finally:
            pool.close()

    def _start_rollouts(self, options: EngineOptions, *, beside: bool = False) -> WorkerPool:
        threads = str(self.workers.rollout_threads)
        actor = ray.remote(Rollouter).options(
            **self._resources("teachers" if beside else "engines", self._rollout_gpus(beside)),
            runtime_env={"env_vars": _ENVIRONMENT | ENGINE_ENVIRONMENT | {"OMP_NUM_THREADS": threads}},
        )
        return WorkerPool(
            "teacher" if beside else "rollout",
            self.workers.rollout,
            lambda: actor.remote(options),
            timeout_s=self.workers.rollout_timeout_s,
        )

    def _rollout_gpus(self, beside: bool) -> float:
        """Of one engine: a GPU of its own where there is one for each beside the learner's, else all share what the
        learner leaves of its GPU, half of which is for a teacher's engines."""
        count = self.workers.rollout
        own = self._num_gpus > count * (2 if beside else 1)
        return self._on_gpu * (1.0 if own else (1 - LEARNER_GPUS) / 2 / count)

    def _inference(self) -> Any:
        """The actor that all simulation workers act with; Ray starts it again if it dies."""
        actor = ray.remote(Inference).options(
            num_cpus=ACTOR_CPUS,
            num_gpus=INFERENCE_GPUS * self._on_gpu,
            max_restarts=INFERENCE_RESTARTS,
            max_task_retries=INFERENCE_RESTARTS,
        )
        return actor.remote(self._device)

    def share(self, value: Any) -> ray.ObjectRef:
        """Put a value into the object store once, for any number of calls."""
        return ray.put(value)

    def _resources(self, kind: str, gpus: float) -> dict[str, Any]:
        """Options of a worker's actor: its place among what is reserved for its kind, or half a core and `gpus`."""
        named = self.placement.named.get(kind)
        if named is None:
            return {"num_cpus": ACTOR_CPUS, "num_gpus": gpus}
        if kind not in self._groups:
            bundle = next(one for one in bundles(self.placement, self.workers) if one.kind == kind)
            self._groups[kind] = placement_group([bundle.resources] * bundle.count, self.placement.strategy)
        place = PlacementGroupSchedulingStrategy(self._groups[kind])
        return {"num_cpus": named.cpus, "num_gpus": named.gpus, "scheduling_strategy": place}

    def learner(self, plan: Plan, state: Path | None) -> Any:
        """Start a `LearnerWorker`, from a saved state if there is one; end it with `ray.kill`, and so its ranks.

        It is an actor of its own, on a GPU if there is one and the placement is not cpu, or one in front of ranks.
        """
        place = self.placement.learner
        if place is None:
            actor: Any = ray.remote(LearnerWorker).options(num_cpus=ACTOR_CPUS, num_gpus=LEARNER_GPUS * self._on_gpu)
            return actor.remote(plan, state, self._device)
        given = [ray.put(argument) for argument in (plan, state, "cuda" if place.gpus else "cpu")]
        bundle = resources(place.cpus, place.gpus)
        front: Any = ray.remote(group_class(LearnerWorker)).options(num_cpus=0)
        return front.remote(LearnerWorker, given, place.ranks, bundle, self.placement.strategy)

    def serve_judge(self, settings: JudgeServerConfig) -> str:
        """Start the run's own judge; its address, once it answers. RunError if it does not start."""
        gpus = self._on_gpu * (1 - LEARNER_GPUS) / 2
        self._judge = (
            ray.remote(JudgeServer)
            .options(**self._resources("judges", gpus))
            .remote(settings, ray.util.get_node_ip_address())
        )
        try:
            return ray.get(self._judge.address.remote())
        except ray.exceptions.RayTaskError as error:
            raise RunError(f"judge: {error.cause}") from error

    def check_folders(self, folders: Iterable[Path]) -> None:
        """UserError if a machine of a cluster that was there before cannot see the files of the run."""
        if joins_cluster():
            for folder in folders:
                _check_shared(folder.absolute())

    def close(self) -> None:
        """End the pools and shut Ray down, with all its actors."""
        pools = [self._simulations, self._rollouts and self._rollouts[1]]
        for pool in pools:
            if pool is not None:
                pool.close()
        ray.shutdown()


def cluster_nodes() -> list[dict[str, float]]:
    """Resources of the machines of the cluster at RAY_ADDRESS; see `connection.join` for what is raised."""
    connection.join(log_to_driver=False, logging_level=logging.ERROR)
    try:
        return _resources_of_nodes()
    finally:
        ray.shutdown()


def _resources_of_nodes() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _check_shared(folder: Path) -> None:
    """Every machine reads a file that this one has just written."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".seen-") as sign:
        sign.write(folder.as_posix())
        sign.flush()
        look = ray.remote(num_cpus=0)(_reads)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
        seen = ray.get([look.options(scheduling_strategy=place).remote(Path(sign.name)) for place in there])
    for node, text in zip(nodes, seen, strict=True):
        if text != folder.as_posix():
            raise UserError(
                f"machine {node['NodeManagerAddress']} of the Ray cluster cannot see {folder}; start the run in a "
                "folder on a disk that all machines have at the same path, with --run-dir there too"
            )


def _reads(path: Path) -> str | None:
    """The text of a file; None where there is no such file."""
    return path.read_text() if path.is_file() else None


@contextlib.contextmanager
def _lent(pool: WorkerPool, warn: Callable[[str], None]) -> Iterator[None]:
    """A pool in the hands of a stage."""
    pool.warn = warn
    try:
        yield
    finally:
        pool.cancel()
