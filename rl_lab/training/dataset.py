"""A stage with a learner process, and the training on a data set in one, driven in slices of steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TypeVar

import ray
from ray.exceptions import RayActorError

from algos.alarms import cap_alarm, collapse_alarm
from rl_lab.common.files import write_whole
from rl_lab.common.reading import read_object
from rl_lab.graph.stage import StageContext
from rl_lab.learner.dtype import FromModel, faster
from rl_lab.learner.plans import Plan
from rl_lab.learner.state import LEARNER_FILE, SavedStates
from rl_lab.training.state import RunState
from rl_lab.training.watch import Watch, nothing_learned
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.learner import BAD_BATCH_FILE, LearnerHandle
from rl_lab.workers.pool import WorkerPool

LEARNER_RESTARTS = 3
TIMES_FILE = "step_seconds.json"
SLICE = 10
"""Steps on a data set between two looks at them."""


State = TypeVar("State", SavedStates, RunState)
"""Where a stage is."""


def with_learner(
    cluster: Cluster,
    context: StageContext,
    plan: Plan,
    find_state: Callable[[], State],
    run: Callable[[LearnerHandle, State], None],
    pools: Sequence[WorkerPool] = (),
) -> None:
    """Call `run` with a learner at the stage's last state, again with a new one if it died.

    `pools` then forget what the dead one waited for.
    """
    for attempt in range(LEARNER_RESTARTS + 1):
        state = find_state()
        learner = cluster.learner(plan, state.learner_state)
        try:
            run(LearnerHandle(learner, context.check_stop), state)
            return
        except RayActorError:
            if attempt == LEARNER_RESTARTS:
                raise
            context.say("the learner died; a new one goes on from the last saved state")
        finally:
            for pool in pools:
                pool.cancel()
            ray.kill(learner)


def train(cluster: Cluster, context: StageContext, plan: Plan) -> None:
    """Run a plan with a data set in a learner process."""

    def find_states() -> SavedStates:
        states = SavedStates(context.scratch)
        states.drop_damaged(context.say)
        return states

    times: dict[str, float] = {}
    if isinstance(plan, FromModel) and plan.dtype == "auto":
        times = _timed(cluster, context, plan, find_states)
        plan = plan.in_dtype(faster(times))

    def run(learner: LearnerHandle, states: SavedStates) -> None:
        _run_slices(context, learner, states, plan.settings.steps, times)
        learner.finish(context.out)

    with_learner(cluster, context, plan, find_states, run)


def _timed(
    cluster: Cluster, context: StageContext, plan: FromModel, find_states: Callable[[], SavedStates]
) -> dict[str, float]:
    """Seconds of a step by type, measured once and kept, so that a resumed stage goes on in the type it began with."""
    path = context.scratch / TIMES_FILE

    def measure(learner: LearnerHandle, _: SavedStates) -> None:
        write_whole(path, json.dumps(learner.step_seconds()) + "\n")

    if not path.is_file():
        with_learner(cluster, context, plan, find_states, measure)
    times = read_object(path)
    said = " and ".join(f"{value:.3g} s in {dtype}" for dtype, value in times.items())
    context.say(f"model.dtype is auto: {faster(times)}; a step takes {said or 'long in bfloat16 on this processor'}")
    return times


def _run_slices(
    context: StageContext, learner: LearnerHandle, states: SavedStates, steps: int, times: dict[str, float]
) -> None:
    """Drive the learner to `steps`, from wherever its last saved state is; `times` of steps by type are logged."""
    step = states.last
    watch = Watch(context)
    watch.add(*context.resume_from(step or -1))
    if step == 0 and (found := {f"seconds/step_{dtype}": value for dtype, value in times.items()} | learner.validate()):
        context.log(0, **found)
    every = context.checkpoint_every(steps)
    while step < steps:
        result = learner.run(min(SLICE, steps - step, every - step % every), context.scratch / BAD_BATCH_FILE)
        for line in result.lines:
            context.log(**line)
        if result.error:
            raise RuntimeError(result.error)
        step += len(result.lines)
        watch.add(*result.lines)
        watch.look(step, nothing_learned(steps))
        if step % every == 0:
            states.save(step, lambda folder: learner.save(folder / LEARNER_FILE))
        context.progress(step, steps, f"loss {watch.lines[-1]['loss']:.4g}")
    watch.look(step, collapse_alarm, cap_alarm)
