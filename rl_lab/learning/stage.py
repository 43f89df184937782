"""A training stage on a data set: a plan in a learner process, driven in slices."""

from __future__ import annotations

from typing import Any

import ray
from ray.exceptions import RayActorError

from algos.alarms import cap_alarm, collapse_alarm
from rl_lab.learning.saved_states import SavedStates
from rl_lab.learning.training import Plan
from rl_lab.learning.watch import Watch, nothing_learned
from rl_lab.runner.stage_context import StageContext
from rl_lab.workers.cluster import Cluster

LEARNER_RESTARTS = 3


def tell_of_death(context: StageContext, error: RayActorError, *, is_last: bool) -> None:
    """Say that the learner's process is gone and what follows; raise the error where nothing does any more."""
    if is_last:
        raise error
    context.say("the learner died; a new one goes on from the last saved state")


def train(cluster: Cluster, context: StageContext, plan: Plan) -> None:
    """Run a plan in a learner process, which is replaced if it dies."""
    SavedStates(context.scratch).drop_damaged(context.say)
    for attempt in range(LEARNER_RESTARTS + 1):
        worker = cluster.learner(plan, context.scratch)
        try:
            _run_slices(context, worker, plan.settings.steps)
            ray.get(worker.finish.remote(context.out))
            return
        except RayActorError as error:
            tell_of_death(context, error, is_last=attempt == LEARNER_RESTARTS)
        finally:
            ray.kill(worker)


def _run_slices(context: StageContext, worker: Any, steps: int) -> None:
    """Drive the learner to `steps`, from wherever its last saved state is."""
    step = ray.get(worker.step.remote())
    watch = Watch(context)
    watch.add(*context.resume_from(step))
    every = context.checkpoint_every(steps)
    while step < steps:
        result = ray.get(worker.run.remote(min(10, steps - step, every - step % every)))
        for line in result.lines:
            context.log(**line)
        if result.error:
            raise RuntimeError(result.error)
        step += len(result.lines)
        watch.add(*result.lines)
        watch.look(step, nothing_learned(steps))
        if step % every == 0:
            ray.get(worker.save.remote())
        context.progress(step, steps, f"loss {watch.lines[-1]['loss']:.4g}")
    watch.look(step, collapse_alarm, cap_alarm)
