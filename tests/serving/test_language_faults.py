"""Processes of a run of GRPO are really killed; it goes on, or is resumed, and ends with the bits of the unbroken run.

The runs of this process share its engines, so an engine has answered for other runs and weights before.
"""

import os
import signal
import time

import numpy as np
import pytest

from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.workers.cluster import Cluster
from tests.serving.language_runs import (
    NODE,
    SMOKE,
    TRAINING,
    LanguageRun,
    assert_same_run,
    here,
    meanwhile,
    steps_logged,
    wait_until,
    with_stages,
    worker,
)

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
pytestmark = pytest.mark.slow

RUN = (str(SMOKE), *TRAINING, "--run-dir", "run")
STALE = {staleness: (*RUN, f"rl.staleness={staleness}") for staleness in (1, 2)}


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster(WorkersConfig(simulation=1, rollout=2, rollout_threads=1), Placement(device="cpu"))
    yield cluster
    cluster.close()


@pytest.fixture(scope="module")
def unbroken(cluster, tmp_path_factory):
    """Two engines and no trouble."""
    folder = tmp_path_factory.mktemp("unbroken")
    assert here(cluster, folder, *RUN) == 0
    return folder


@pytest.fixture
def folder(unbroken, tmp_path):
    return with_stages(unbroken, tmp_path)


def kill(title, path, after):
    """When so many steps are logged and a worker does what the title says, that worker is no more."""
    wait_until(lambda: steps_logged(path) >= after)
    os.kill(wait_until(lambda: worker(title))[0], signal.SIGKILL)


def test_an_engine_killed_in_mid_rollout_changes_nothing_but_time(cluster, unbroken, folder, capfd):
    path = folder / "run"
    with meanwhile(lambda: kill("ray::Rollouter.generate", path, after=2)):
        assert here(cluster, folder, *RUN) == 0
    assert "it is replaced and its work issued again" in capfd.readouterr().err
    assert_same_run(path, unbroken / "run")


def test_a_killed_learner_goes_on_from_the_last_checkpoint(cluster, unbroken, folder):
    path, learners = folder / "run", set()

    def twice():
        for after in (1, 3):
            wait_until(lambda after=after: steps_logged(path) >= after)
            found = wait_until(lambda: set(worker("ray::LearnerWorker")) - learners)
            learners.update(found)
            os.kill(found.pop(), signal.SIGKILL)

    with meanwhile(twice):
        assert here(cluster, folder, *RUN) == 0
    assert len(learners) == 2
    assert_same_run(path, unbroken / "run")


def test_a_run_stopped_by_sigterm_is_resumed(cluster, unbroken, folder):
    path = folder / "run"

    def stop():
        wait_until(lambda: steps_logged(path) >= 3)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(stop):
        assert here(cluster, folder, *RUN) == 130
    assert '"stopped"' in (path / "stages.json").read_text()
    assert here(cluster, folder, "--resume", "run") == 0
    assert_same_run(path, unbroken / "run")


@pytest.mark.parametrize("staleness", STALE)
def test_with_rollouts_ahead_of_the_learner_nothing_is_lost_or_counted_twice(cluster, unbroken, tmp_path, staleness):
    """Every selected item is answered once in the store and observed once by the pool: see `assert_counted_once`."""
    expected, folder = (with_stages(unbroken, tmp_path / name) for name in ("expected", "folder"))
    assert here(cluster, expected, *STALE[staleness]) == 0
    path = folder / "run"

    def trouble():
        kill("ray::Rollouter.generate", path, after=1)
        kill("ray::LearnerWorker", path, after=3)
        wait_until(lambda: steps_logged(path) >= 5)
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(trouble):
        assert here(cluster, folder, *STALE[staleness]) == 130
    assert here(cluster, folder, "--resume", "run") == 0
    assert_same_run(path, expected / "run")


def test_a_driver_killed_at_random_moments_is_resumed_with_one_engine_to_the_bits_of_two(unbroken, folder):
    moments = np.random.default_rng(4)
    run = LanguageRun(folder, "smoke.yaml", *TRAINING, "workers.rollout=1")
    for after in (0, *sorted(moments.choice(np.arange(1, 5), 2, replace=False).tolist())):
        run.wait_for(lambda run=run, after=after: run.status(NODE) == "running" and run.steps() >= after)
        time.sleep(moments.uniform(0, 0.5))
        run.process.kill()
        run.process.wait()
        assert run.status(NODE) == "running"
        run = LanguageRun(folder, "--resume", "run")
    run.finish()
    assert_same_run(run.path, unbroken / "run")
