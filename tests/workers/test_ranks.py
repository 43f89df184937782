"""Learners of two ranks as Ray actors: one handle, one answer, and a group that is replaced when a rank is killed."""

import os
import signal
import time
from pathlib import Path

import pytest
import ray
from ray.exceptions import RayActorError

from rl_lab.config.placement import LearnerPlacement, Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.errors import UserError
from rl_lab.learning.checkpoint import load_training_state, save_training_state
from rl_lab.learning.ranks import gather, num_ranks, this_rank
from rl_lab.workers.cluster import Cluster


class Member:
    """Counts together with the other ranks, and goes on from a saved count."""

    def __init__(self, state: Path, device: str) -> None:
        self.state = state
        self.count = load_training_state(state)["count"] if state.exists() else 0

    def add(self, number: int) -> tuple[int, list[int]]:
        self.count += sum(gather(number))
        return self.count, gather(this_rank())

    def save(self) -> None:
        save_training_state(self.state, {"count": self.count})

    def fail(self, rank: int) -> None:
        if this_rank() == rank:
            raise UserError("cannot do that; do something else")
        gather(0)

    def size(self) -> int:
        return num_ranks()


@pytest.fixture(scope="module")
def cluster():
    placement = Placement(learner=LearnerPlacement(ranks=2, cpus=0.5))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_raylet_start_wait_time_s", "300")  # on a machine with much else to do
        made = Cluster(WorkersConfig(simulation=1, rollout=1), placement)
        yield made
        made.close()


def test_a_group_answers_as_one_actor_and_is_replaced_when_a_rank_is_killed(cluster, tmp_path):
    group = cluster._learner(Member, tmp_path / "state.pt")
    assert ray.get(group.size.remote()) == 2
    count, ranks = group.add.options(num_returns=2).remote(3)
    assert ray.get([count, ranks]) == [6, [0, 1]]
    ray.get(group.save.remote())
    ray.get(group.add.remote(5))
    os.kill(ray.get(group.rank_processes.remote())[1], signal.SIGKILL)
    with pytest.raises(RayActorError):
        ray.get(group.add.remote(1), timeout=300)

    group = cluster._learner(Member, tmp_path / "state.pt")
    assert ray.get(group.add.remote(1)) == (8, [0, 1]), "it goes on from what was saved"
    with pytest.raises(UserError, match="do something else"):
        ray.get(group.fail.remote(0), timeout=300)
    processes = ray.get(group.rank_processes.remote())
    ray.kill(group)
    _wait_until_gone(processes)


def _wait_until_gone(processes: list[int]) -> None:
    """Ranks end with their front."""
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a rank outlives its group"
        time.sleep(0.2)
