"""A stage in which a learner process takes answers as they come; if it dies, the run goes on from its last state."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ray
from ray.exceptions import RayActorError

from rl_lab.language.training import OnlinePlan
from rl_lab.learning.stage import LEARNER_RESTARTS, tell_of_death
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.rollout_learner import LearnerHandle


def with_learner(
    cluster: Cluster,
    context: StageContext,
    plan: OnlinePlan,
    state: Callable[[], Path | None],
    run: Callable[[LearnerHandle], None],
    cancel: Callable[[], None],
) -> None:
    """Call `run` with a learner that stands at `state()`, again with a new one where it died; `cancel` forgets answers
    that the dead one waited for."""
    for attempt in range(LEARNER_RESTARTS + 1):
        learner = cluster.rollout_learner(plan, state())
        try:
            run(LearnerHandle(learner, context.check_stop))
            return
        except RayActorError as error:
            tell_of_death(context, error, is_last=attempt == LEARNER_RESTARTS)
        finally:
            cancel()
            ray.kill(learner)
