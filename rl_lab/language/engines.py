"""The engines of a stage: the run's pool of vLLM workers, set up for the model that the stage acts with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl_lab.digests import file_digest
from rl_lab.language.model import checkpoint_dtype
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.pool import WorkerPool
from rl_lab.workers.rollout import EngineOptions


def policy_folder(context: StageContext) -> Path:
    """The checkpoint that a stage starts from: an earlier stage's, or the one that the config names."""
    return context.inputs.get("policy") or Path(context.config.model.path)


@contextmanager
def engines(cluster: Cluster, context: StageContext) -> Iterator[WorkerPool]:
    """The run's engines, for one stage at a time; they take the weights with each call."""
    settings = context.config.engine.model_dump(exclude={"prompts_per_call"})
    if settings["dtype"] == "auto":
        settings["dtype"] = checkpoint_dtype(policy_folder(context))  # vLLM's own "auto" computes float32 in bfloat16
    sizes = file_digest(policy_folder(context) / "config.json")
    with cluster.rollout_pool(EngineOptions(**settings, model=sizes), context.say) as pool:
        yield pool
