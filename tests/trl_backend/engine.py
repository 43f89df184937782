"""An engine in a Ray actor: there can be one in a process, and other tests have theirs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from rl_lab.model.checkpoint import Snapshot
from rl_lab.records.types import Completion, Prompt, Sampling
from rl_lab.trl_backend.grpo import RollOut
from rl_lab.workers import connection
from rl_lab.workers.engine import ENVIRONMENT, RolloutEngine
from tests.serving.conftest import ENGINE


@contextmanager
def engine(folder: Path, sampling: Sampling) -> Iterator[RollOut]:
    """`roll_out` by vLLM, which takes every snapshot."""
    connection.start(1, 200 << 20)
    try:
        actor = (
            ray.remote(RolloutEngine)
            .options(runtime_env={"env_vars": ENVIRONMENT | {"OMP_NUM_THREADS": "1"}})
            .remote(folder, ENGINE)
        )

        def roll_out(prompts: list[Prompt], snapshot: Snapshot) -> list[list[Completion]]:
            ray.get(actor.update.remote(snapshot))
            return ray.get(actor.generate.remote(prompts, sampling))

        yield roll_out
    finally:
        ray.shutdown()
