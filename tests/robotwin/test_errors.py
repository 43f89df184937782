"""Errors that RoboTwin raises: a seed passed over, a failed episode, a correction given up, or the end of it."""

import subprocess
import sys

import pytest

from envs.execution import Execution
from envs.robotwin.connection import EpisodeError, SeedRejectedError
from envs.types import SIMULATOR_ERROR, Episode
from rl_lab.common.errors import RunError
from rl_lab.rollouts.evaluation import evaluate_policy
from rl_lab.rollouts.simulator_errors import MAX_IN_A_ROW, ErrorWatch, summary
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.simulation import REJECTED
from tests.robotwin.fake import make_checkout
from tests.robotwin.test_env import HOLD
from tests.robotwin.test_runs import RUN
from tests.robotwin.test_workers import ROLLBACK, config, in_robotwin, simulation, snapshot, unit  # noqa: F401

IN_SET_UP, IN_STEPS, NOWHERE = 2, 1, 4
"""Seeds of raising_block."""


def test_an_error_in_screening_rejects_the_seed_and_one_in_a_step_ends_the_episode(checkout, make_env):
    env = make_env(checkout, task="raising_block", image_size=None)
    with pytest.raises(
        SeedRejectedError, match=r"^RoboTwin raised KeyError: '049_shampoo' \(raising_block.py, line"
    ) as one:
        env.reset(seed=IN_SET_UP)
    assert one.value.is_error and "\n" not in str(one.value)
    with pytest.raises(SeedRejectedError, match="unstable") as other:
        env.reset(seed=7)
    assert not other.value.is_error
    env.reset(seed=IN_STEPS)
    start = env.save()
    for _ in range(3):
        env.advance(HOLD)
    with pytest.raises(EpisodeError) as raised:
        env.advance(HOLD)
    assert raised.value.line.startswith(
        "step raised AssertionError: target_pose cannot be None (raising_block.py, line"
    )
    env.load(start)
    env.advance(HOLD)
    assert env.step_count == 1 and env.server.num_starts == 1


def test_demonstrations_pass_over_seeds_on_which_something_raises(simulation):  # noqa: F811
    for seed, part in ((IN_SET_UP, "RoboTwin raised KeyError"), (IN_STEPS, "step raised AssertionError")):
        (found,) = simulation.demonstrate(unit(seed, "raising_block"), 0.0)
        assert found.is_error and found.reason.startswith(part) and "\n" not in found.reason
    (demo,) = simulation.demonstrate(unit(NOWHERE, "raising_block"), 0.0)
    assert isinstance(demo, Episode) and demo.success


def test_an_evaluation_has_the_episode_as_a_failure_with_the_line(simulation, snapshot):  # noqa: F811
    (row,) = simulation.evaluate(unit(IN_STEPS, "raising_block"), snapshot, Execution(execute=7))
    assert (row["success"], row["failure"], row["num_steps"]) == (False, SIMULATOR_ERROR, 3)
    assert row["extra"]["error"].startswith("step raised AssertionError: target_pose")
    (row,) = simulation.evaluate(unit(IN_SET_UP, "raising_block"), snapshot, Execution(execute=7))
    assert row[REJECTED].startswith("RoboTwin raised KeyError") and row["is_error"]
    assert simulation.record(unit(IN_STEPS, "raising_block"), snapshot, Execution(execute=7)) == []
    (film,) = simulation.film(unit(IN_STEPS, "raising_block"), (IN_STEPS,), snapshot, Execution(execute=7))
    assert film.failure == SIMULATOR_ERROR


def test_a_collection_counts_errors_and_goes_on(simulation, snapshot):  # noqa: F811
    def counts(seed):
        return simulation.collect(unit(seed, "raising_block"), snapshot, ROLLBACK, CorrectorPlan()).counts

    assert [key.partition(":")[0] for key in counts(IN_SET_UP)] == ["rejected_seeds", "errors/RoboTwin raised KeyError"]
    assert [key.partition(":")[0] for key in counts(IN_STEPS)] == ["episodes", "errors/step raised AssertionError"]
    assert counts(NOWHERE)["interventions"] == 1


def test_nothing_but_errors_ends_the_work():
    watch = ErrorWatch("push_block demo_clean")
    for _ in range(MAX_IN_A_ROW - 1):
        watch.see("step raised KeyError: 'a'")
    watch.see(None)
    for _ in range(MAX_IN_A_ROW - 1):
        watch.see("step raised KeyError: 'b'")
    watch.end()
    with pytest.raises(
        RunError, match="push_block demo_clean: the simulator raised an error on 20 seeds in a row.*'b'$"
    ):
        watch.see("step raised KeyError: 'b'")
    short = ErrorWatch("push_block demo_clean")
    short.end()
    short.see("step raised KeyError: 'a'")
    with pytest.raises(RunError, match="on 1 seeds in a row"):
        short.end()


def test_refusals_are_counted_by_their_kind():
    reasons = ["unstable scene: block", "RoboTwin raised KeyError: 'a'", "RoboTwin raised KeyError: 'b'"]
    assert summary(reasons) == "2 x RoboTwin raised KeyError, 1 x unstable scene"


class Raising:
    """A pool whose every episode an error ends; of every third seed the set-up already."""

    def map(self, call, units, check_stop):
        for one in units:
            (seed,) = one.seeds
            row = {"task": one.env.task, "variant": one.env.variant, "seed": seed}
            refused = {REJECTED: "RoboTwin raised KeyError: 'a'", "is_error": True}
            failed = {"success": False, "failure": SIMULATOR_ERROR, "extra": {"error": "step raised KeyError: 'a'"}}
            yield [row | (refused if seed % 3 == 0 else failed)]


@pytest.mark.parametrize("episodes", [3, 60])
def test_an_evaluation_of_errors_alone_is_no_score(in_robotwin, tmp_path, episodes):  # noqa: F811
    with pytest.raises(RunError, match="the simulator raised an error on (4|5|20) seeds in a row"):
        evaluate_policy(Raising(), None, config(f"eval.episodes={episodes}"), 0, tmp_path)


@pytest.mark.slow
def test_a_run_in_which_every_seed_raises_ends_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBOTWIN_ROOT", str(make_checkout(tmp_path / "RoboTwin", "classic")))
    monkeypatch.setenv("ROBOTWIN_PYTHON", sys.executable)
    (tmp_path / "run.yaml").write_text(RUN)
    command = [sys.executable, "-m", "rl_lab.run", "run.yaml", "env.tasks=[refusing_block]", "--run-dir", "out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "on 12 seeds in a row" in line and "KeyError: '049_shampoo' (refusing_block.py, line" in line
