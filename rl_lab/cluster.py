"""Ray for one run: started with it, shared by all stages, shut down with it.

Simulation workers and learners take turns, so both ask for half a core: a laptop with two cores holds two of each.
Set RAY_ADDRESS to use a running cluster instead of starting one.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from rl_lab.config.schema import WorkersConfig
from rl_lab.training import OptimisePlan, SFTPlan
from rl_lab.workers.inference import Inference
from rl_lab.workers.pool import MAX_RESTARTS, SimulationPool
from rl_lab.workers.training import LearnerWorker

ACTOR_CPUS = 0.5
LEARNER_GPUS, INFERENCE_GPUS = 0.9, 0.1
"""A learner has a GPU to itself, but for the policy that acts."""
OBJECT_STORE_BYTES = 1 << 30
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


class Cluster:
    """Ray's connection and the run's pool of simulation workers; safe to use from several stages at once.

    Make it in the main thread: Ray's processes end with the thread that started them.
    """

    def __init__(self, workers: WorkersConfig, placement: str) -> None:
        self.workers, self.placement = workers, placement
        self._pool: SimulationPool | None = None
        self._pool_lock = threading.Lock()
        self._connect()

    def _connect(self) -> None:
        options: dict[str, Any] = {"runtime_env": {"env_vars": _ENVIRONMENT}}
        if "RAY_ADDRESS" not in os.environ:
            # Loopback only, so token authentication (which writes a file into the user's home) has nothing to protect.
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
            needed = ACTOR_CPUS * (self.workers.simulation + 3)
            options |= {
                "num_cpus": max(os.cpu_count() or 1, int(needed + 1)),
                "include_dashboard": False,
                "object_store_memory": OBJECT_STORE_BYTES,
                "log_to_driver": False,
            }
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(**options)
        self._on_gpu = self.placement != "cpu" and ray.cluster_resources().get("GPU", 0) >= 1
        self._device = "cuda" if self._on_gpu else "cpu"

    @contextlib.contextmanager
    def simulation_pool(self) -> Iterator[SimulationPool]:
        """The pool of simulation workers, for one stage at a time."""
        with self._pool_lock:
            if self._pool is None:
                inference = self._inference() if self.workers.policy == "shared" else None
                self._pool = SimulationPool(self.workers.simulation, num_cpus=ACTOR_CPUS, inference=inference)
            yield self._pool

    def _inference(self) -> Any:
        """The actor that all simulation workers act with; Ray starts it again if it dies."""
        actor = ray.remote(Inference).options(
            num_cpus=ACTOR_CPUS,
            num_gpus=INFERENCE_GPUS * self._on_gpu,
            max_restarts=MAX_RESTARTS,
            max_task_retries=MAX_RESTARTS,
        )
        return actor.remote(self._device)

    def share(self, value: Any) -> ray.ObjectRef:
        """Put a value into the object store once, for any number of calls."""
        return ray.put(value)

    def learner(self, plan: SFTPlan | OptimisePlan, scratch: Path) -> Any:
        """Start a `LearnerWorker`, on a GPU if there is one and the placement is not cpu; end it with `ray.kill`."""
        actor = ray.remote(LearnerWorker).options(num_cpus=ACTOR_CPUS, num_gpus=LEARNER_GPUS * self._on_gpu)
        return actor.remote(plan, scratch, self._device)

    def close(self) -> None:
        """Shut Ray down, with all its actors."""
        ray.shutdown()
