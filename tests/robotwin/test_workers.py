"""Simulation workers on the fake RoboTwin: demonstrations, evaluation, pairs, rejected seeds, servers that die."""

import numpy as np
import pytest

from envs.execution import Execution
from envs.rollback import RollbackConfig
from envs.types import Episode
from rl_lab.common.seeding import SPLIT_SIZE, evaluation_seeds, robotwin_seeds, training_seeds
from rl_lab.model.checkpoint import publish
from rl_lab.rollouts.evaluation import evaluate_policy
from rl_lab.stages.kinds import resolve_config
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.pool import BrokenWorkerError
from rl_lab.workers.simulation import REJECTED, EnvSpec, Rejection, Simulation, Unit, drawn_units, evaluation_groups
from tests.robotwin.fake import robotwin
from tests.support.models import save_nano_policy

ROLLBACK = RollbackConfig(execute=4, rollback_steps=(8, 10), correction_limit=60)
GOOD, FAILING_EXPERT, UNSTABLE = 1, 5, 7


def unit(seed, task="push_block", variant="demo_clean"):
    return Unit(EnvSpec("robotwin", task, variant, image_size=64, instruction_split="unseen"), (seed,), run_seed=0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory):
    return publish(save_nano_policy(tmp_path_factory.mktemp("checkpoint")), 1)


@pytest.fixture
def simulation(classic):
    made = Simulation(robotwin=robotwin(classic, step_timeout_s=5.0))
    yield made
    made._environments.close()


def test_demonstrations_are_the_experts_and_rejected_seeds_have_a_reason(simulation):
    (demo,) = simulation.demonstrate(unit(GOOD), 0.0)
    assert isinstance(demo, Episode) and demo.success
    on = "aloha-agilex, curobo, ray tracing, commands of any length"
    assert demo.truth.shape == (demo.num_steps, 12) and demo.extra == {"control_hz": 50.0, "simulation": on}
    assert demo.images.shape == (demo.num_steps, 3, 64, 64, 3) and np.ptp(demo.images[0]) > 100
    for seed, reason in ((UNSTABLE, "unstable"), (FAILING_EXPERT, "no plan")):
        (rejection,) = simulation.demonstrate(unit(seed), 0.0)
        assert isinstance(rejection, Rejection) and rejection.seed == seed and reason in rejection.reason


def test_a_policy_is_evaluated_on_the_seeds_that_its_expert_solves(simulation, snapshot):
    (row,) = simulation.evaluate(unit(GOOD), snapshot, Execution(execute=7))
    assert (row["task"], row["variant"], row["seed"], row["step_limit"]) == ("push_block", "demo_clean", GOOD, 40)
    assert row["instruction"].startswith("Unseen: ") and REJECTED not in row
    (row,) = simulation.evaluate(unit(UNSTABLE), snapshot, Execution(execute=7))
    assert row["seed"] == UNSTABLE and "unstable" in row[REJECTED]


def test_a_failure_is_rolled_back_and_the_expert_planned_anew_corrects_it(simulation, snapshot):
    found = simulation.collect(unit(GOOD), snapshot, ROLLBACK, CorrectorPlan())
    (pair,) = found.pairs
    assert pair.corrector == "scripted_expert" and pair.trigger in ("no_progress", "deviating", "timeout", "dropped")
    np.testing.assert_array_equal(pair.winner.poses[0], pair.loser.poses[0])
    np.testing.assert_array_equal(pair.winner.images[0], pair.loser.images[0])
    assert (pair.restore_method, pair.exact_restore, pair.restore_error) == ("simulator", True, 0.0)
    assert found.counts["corrector_steps"] >= len(pair.winner.actions) > 5
    assert simulation.collect(unit(UNSTABLE), snapshot, ROLLBACK, CorrectorPlan()).counts == {"rejected_seeds": 1}


def test_without_a_way_for_the_expert_a_recorded_correction_or_a_teacher_goes_on(simulation, snapshot):
    found = simulation.collect(unit(GOOD), snapshot, ROLLBACK, CorrectorPlan())
    (pair,) = found.pairs
    place = ("stubborn_block", "demo_clean", GOOD, pair.start_step)
    plan = CorrectorPlan("recorded x", corrections={place: pair.winner.actions})
    stubborn = simulation.collect(unit(GOOD, "stubborn_block"), snapshot, ROLLBACK, plan)
    assert [one.corrector for one in stubborn.pairs] == ["recorded x"]
    hopeless = simulation.collect(unit(GOOD), snapshot, ROLLBACK, CorrectorPlan("policy x", snapshot, 4))
    assert hopeless.pairs == [] and hopeless.counts["corrector_steps"] > 0


def test_crashes_and_hangs_ask_for_another_worker_and_the_unit_then_succeeds(simulation, snapshot):
    for trouble in ("SIGSEGV", "within 5 s"):
        with pytest.raises(BrokenWorkerError, match=f"lost its simulator .*{trouble}"):
            simulation.evaluate(unit(GOOD, "trouble_block"), snapshot, Execution(execute=4))
    (row,) = simulation.evaluate(unit(GOOD, "trouble_block"), snapshot, Execution(execute=4))
    assert row["num_steps"] > 5


def test_the_film_shows_what_the_head_camera_sees(simulation, snapshot):
    (film,) = simulation.film(unit(GOOD), (GOOD,), snapshot, Execution(execute=7))
    assert film.webm[:4] == b"\x1aE\xdf\xa3" and film.failure is not None


class Here:
    """A pool without processes, whose workers reject every seed that ends in 5 or 7."""

    def __init__(self):
        self.asked = []

    def map(self, call, units, check_stop):
        for one in units:
            (seed,) = one.seeds
            self.asked.append((one.env.variant, seed))
            row = {"task": one.env.task, "variant": one.env.variant, "seed": seed}
            yield [row | ({REJECTED: "unstable"} if seed % 10 in (5, 7) else {"success": True})]


def config(*overrides):
    content = {"name": "x", "stages": ["demos"], "env": {"tasks": ["push_block"]}}
    return resolve_config(content, "here", overrides)


@pytest.fixture
def in_robotwin(monkeypatch):
    monkeypatch.setenv("ROBOTWIN_ROOT", "somewhere")


def test_an_evaluation_goes_on_until_enough_seeds_are_accepted(in_robotwin, tmp_path):
    settings = config("eval.episodes=6", "env.variants=[demo_clean,demo_randomized]", "eval.robotwin_seed=2")
    for _ in range(2):
        pool = Here()
        found = evaluate_policy(pool, None, settings, 0, tmp_path)
        seeds = [row["seed"] for row in found.rows if row["variant"] == "demo_randomized"]
        assert seeds == [300_000, 300_001, 300_002, 300_003, 300_004, 300_006] and len(found.rows) == 12
        assert [row["seed"] for row in found.rejected] == [300_005, 300_005]
    assert pool.asked == [], "finished episodes are read, not run again"


def test_too_many_rejections_end_an_evaluation_with_the_last_reason(in_robotwin, tmp_path, monkeypatch):
    monkeypatch.setattr("rl_lab.workers.simulation.CANDIDATES", 1)
    with pytest.raises(RuntimeError, match="accepted 5 of 6 seeds of push_block demo_clean; last: unstable"):
        evaluate_policy(Here(), None, config("eval.episodes=6"), 0, tmp_path)


def test_seeds_of_training_development_and_evaluation_are_apart_in_robotwin(in_robotwin):
    trained = training_seeds(0, "demos", 5000, "robotwin")
    assert max(trained) < 100_000 == robotwin_seeds("held_out", 0, 1)[0]
    assert set(robotwin_seeds("held_out", 0, 1000)).isdisjoint(robotwin_seeds("development", 0, 1000))
    assert robotwin_seeds("held_out", 10_000, 1) == [1_000_100_000], "Hy-VLA's"
    assert max(training_seeds(0, "demos", 5000)) < SPLIT_SIZE == evaluation_seeds("development", 1)[0]
    settings = config("env.image_size=64")
    spec = EnvSpec("robotwin", "push_block", "demo_clean", 64)
    assert {len(one.seeds) for one in drawn_units("collect", spec, "collect", 9, 0)} == {1}
    ((units, wanted),) = evaluation_groups(settings, 0)
    assert wanted == 100 and len(units) == 1000
