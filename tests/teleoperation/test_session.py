"""A person's corrections: keys that finish what the policy left undone, and a collection that takes them as its own."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from envs.rollback import RollbackConfig, intervened_rollout, recorded, until_failure
from envs.rollout import run_lockstep
from envs.tabletop.env import TabletopEnv
from rl_lab.teleoperation.keys import GRIP, STEP_M, SWITCH, WAIT
from rl_lab.teleoperation.session import CorrectionSession, FailedEpisode, correction_line
from rl_lab.workers.policy import read_corrections

SEED = 3
CONFIG = RollbackConfig(execute=1, rollback_steps=(8, 32), correction_limit=170)


def stops_before_the_end(env: TabletopEnv):
    """A policy that does as the expert until the block is near the pad, and then nothing."""

    def act(decisions):
        near = env.diagnose().progress > 0.93
        return np.array([[env.ee_pose() if near else env.expert_action()] for _ in decisions])

    return act


def failure_of(env: TabletopEnv) -> FailedEpisode:
    ((trace, failure),) = run_lockstep([until_failure(env, SEED, CONFIG)], stops_before_the_end(env))
    assert failure is not None and failure.name == "no_progress"
    return FailedEpisode(env, SEED, trace, failure)


def operator(env: TabletopEnv, arm: str) -> str:
    """The key of a person who knows where the expert would go, the largest way first, and lets go above the pad."""
    wanted, now = (pose.reshape(2, 8) for pose in (env.expert_action(), env.ee_pose()))
    ways = np.abs(wanted - now)[:, :3]
    if env.diagnose().progress >= 0.99:
        busy, key = 1, GRIP
    elif ways.max() > STEP_M / 2:
        busy, axis = np.unravel_index(ways.argmax(), ways.shape)
        key = ("ad", "sw", "fr")[axis][int(wanted[busy, axis] > now[busy, axis])]
    else:
        return WAIT
    return key if ("left", "right")[busy] == arm else SWITCH


@pytest.fixture(scope="module")
def corrected(tmp_path_factory):
    """A session over one failure, corrected, with its file."""
    path = tmp_path_factory.mktemp("corrections") / "corrections.jsonl"
    env = TabletopEnv("handover_block")
    failed = failure_of(env)

    def keep(place, actions):
        path.write_text(correction_line(place, actions))

    session = CorrectionSession(iter([failed]), keep, CONFIG)
    status = session.status()
    for _ in range(2 * CONFIG.correction_limit):
        if status["ended"] is not None:
            break
        status = session.press(operator(env, status["moves"].removesuffix(" arm")))
    return session, status, path


def test_keys_finish_the_task_and_the_correction_is_kept_once(corrected):
    session, status, path = corrected
    assert status["ended"] == "success" and status["kept"] == 1
    (line,) = [json.loads(text) for text in path.read_text().splitlines()]
    assert line["task"] == "handover_block" and line["seed"] == SEED and line["step"] == status["start"]
    assert len(line["actions"]) == status["steps"]
    assert session.press(WAIT) == status, "nothing happens after success"


def test_a_collection_makes_its_pair_from_the_file(corrected):
    _, status, path = corrected
    env = TabletopEnv("handover_block")
    rollout = intervened_rollout(
        env,
        SEED,
        corrector=recorded("recorded", read_corrections(path)),
        config=CONFIG,
        generator=np.random.default_rng(0),
    )
    (found,) = run_lockstep([rollout], stops_before_the_end(env))
    (pair,) = found.pairs
    assert pair.start_step == status["start"] and len(pair.winner.actions) == status["steps"]
    assert pair.restore_error == 0 and len(pair.loser.actions) >= CONFIG.rollback_steps[0]


def test_steps_are_taken_back_and_starts_moved(corrected):
    env = TabletopEnv("handover_block")
    session = CorrectionSession(iter([failure_of(env)]), lambda place, actions: None, CONFIG)
    begin, start = env.save(), session.status()["start"]
    for key in "wwwwwww":
        session.press(key)
    assert session.press("[")["start"] == start, "a correction has begun"
    assert session.press("Backspace")["steps"] == 2 and session.press("Backspace")["steps"] == 0
    assert env.save() == begin
    assert session.press("[")["start"] == start - 4 and session.press("]")["start"] == start
    assert session.press("]")["start"] == start, "later, the failure would have no whole chunk"
    picture = Image.open(io.BytesIO(session.picture()))
    assert picture.size == (640, 693) and np.asarray(picture).std() > 10
    np.testing.assert_array_equal(np.asarray(picture)[:480], env.render_camera("head_camera", 480, 640))
    assert session.press("n") == {"over": True, "kept": 0} == session.press("w")
