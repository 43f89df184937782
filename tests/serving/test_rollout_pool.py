"""Rollouts of engines in Ray actors have the same bits whoever answers, whatever happens to the actors."""

import dataclasses
import os
import signal
import time
from concurrent.futures import wait

import pytest
import ray

from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.model.checkpoint import publish
from rl_lab.records.types import Prompt, Sampling
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.engine import RolloutUnit
from tests.serving.conftest import ENGINE
from tests.support.models import Drawer, differences, image_prompt, make_vlm, save_vlm
from tests.support.processes import descendants

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

TIMEOUT_S = 10.0
SAMPLING = Sampling(max_tokens=60, num_generations=4)


@pytest.fixture(scope="module")
def cluster():
    workers = WorkersConfig(rollout=2, rollout_threads=1, rollout_timeout_s=TIMEOUT_S)
    cluster = Cluster(workers, Placement(device="cpu"))
    yield cluster
    cluster.close()


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def pool(cluster, warnings):
    with cluster.rollout_pool(ENGINE, warnings.append) as pool:
        yield pool


@pytest.fixture(scope="module")
def models(vlm, folder, tmp_path_factory):
    """Version -> model and reference to its snapshot."""
    other = make_vlm(seed=1)
    other_folder = save_vlm(other, tmp_path_factory.mktemp("other"))
    return {1: (vlm, publish(folder, 1)), 2: (other, publish(other_folder, 2))}


@pytest.fixture(scope="module")
def units(vlm):
    """Text and images, two of them the same, so that a cache would show."""
    ids = vlm.config.special_token_ids
    found = []
    for number in (0, 1, 2, 1):
        drawer = Drawer(number)
        picture, words = drawer.picture(64, 64), drawer.words(40)
        prompts = (
            Prompt([*image_prompt(ids), *words], [picture], seed=number),
            Prompt([*image_prompt(ids), *words, *drawer.words(3)], [picture], seed=10 + number),
            Prompt(words, seed=20 + number),
        )
        found.append(RolloutUnit(prompts, SAMPLING))
    return found


def ask(snapshot):
    """A call that answers units with these weights."""
    reference = ray.put(snapshot)
    return lambda actor, unit: actor.generate.remote(unit, reference)


def answers(rollouts):
    return [one.completions for one in rollouts]


@pytest.fixture(scope="module")
def expected(cluster, models, units):
    """Answers by version. The engines meet the second weights as an update."""
    with cluster.rollout_pool(ENGINE) as pool:
        return {version: answers(pool.map(ask(snapshot), units)) for version, (_, snapshot) in models.items()}


def test_one_worker_alone_in_another_order_gives_the_same_bits(pool, models, units, expected):
    actor = pool.actors[0]
    for version in (2, 1):
        call = ask(models[version][1])
        found = [ray.get(call(actor, unit)) for unit in reversed(units)]
        assert answers(reversed(found)) == expected[version]
        assert all(one.busy_s > 0 and one.start_s < 0.1 for one in found)
        assert [one.update_s > 0.001 for one in found] == [version == 1, False, False, False]


def test_completions_are_those_of_the_weights_whose_version_they_carry(models, units, expected):
    for version, (model, _) in models.items():
        for unit, rows in zip(units[:2], expected[version], strict=False):
            for prompt, completions in zip(unit.prompts, rows, strict=True):
                assert {completion.weight_version for completion in completions} == {version}
                assert all(differences(model, completion, prompt.images).max() <= 1e-4 for completion in completions)


def test_one_worker_takes_new_weights_while_the_other_still_answers_with_the_old(pool, models, units):
    sampling = Sampling(max_tokens=400, num_generations=4, ignore_eos=True)
    long = dataclasses.replace(units[0], sampling=sampling)
    old = pool.submit(ask(models[1][1]), [long, units[1]])
    new = pool.submit(ask(models[2][1]), [units[1]])
    (rollouts,) = pool.results(new)
    assert not old[0].done()
    assert rollouts.update_s > 0 and rollouts.completions[0][0].weight_version == 2
    assert {rows[0].weight_version for one in pool.results(old) for rows in one.completions} == {1}


def test_weights_that_cannot_be_used_end_the_work_with_their_message(pool, models, units, warnings):
    snapshot = models[1][1]
    damaged = dataclasses.replace(snapshot, version=9, files=snapshot.files | {"config.json": b"{ }"})
    with pytest.raises(RuntimeError, match="^weights of version 9 arrived damaged"):
        list(pool.map(ask(damaged), units))
    assert not warnings


def test_a_prompt_that_is_too_long_ends_the_work_and_not_the_worker(pool, models, units, expected, warnings):
    long = RolloutUnit((*units[0].prompts, Prompt(Drawer().words(600), seed=1)), SAMPLING)
    with pytest.raises(ValueError, match="600"):
        list(pool.map(ask(models[1][1]), [long]))
    assert answers(pool.map(ask(models[1][1]), units)) == expected[1]
    assert not warnings


def stopped_with_work(pool, call, units):
    """A batch of which each worker holds a unit, and their processes, which were stopped before they were asked."""
    processes = descendants(os.getpid(), "ray::Rollouter")
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    batch = pool.submit(call, units)
    while [worker["doing"] for worker in pool.status()] != ["working", "working"]:
        time.sleep(0.01)
    return batch, processes


def test_a_killed_and_a_stopped_worker_change_nothing_but_time(pool, models, units, expected, warnings):
    batch, (first, _) = stopped_with_work(pool, ask(models[2][1]), units)
    os.kill(first, signal.SIGKILL)
    wait(batch[:1], timeout=0.1)
    assert not any(future.done() for future in batch)
    assert answers(pool.results(batch)) == expected[2]
    died, late = sorted(warning.partition(" ")[2] for warning in warnings)
    assert died.startswith("did not answer within 10 s; it is replaced")
    assert late.startswith("died (")
    assert {warning.partition(" ")[0] for warning in warnings} == {"rollout-0", "rollout-1"}
