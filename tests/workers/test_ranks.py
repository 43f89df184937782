"""Learners of two ranks as Ray actors: one handle, one answer, and a group that is replaced when a rank is killed."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError

from rl_lab.common.errors import UserError
from rl_lab.workers.ranks import group_class


class Member:
    """Counts together with the other ranks, and goes on from a saved count."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.count = int(state.read_text()) if state.exists() else 0

    def add(self, number: int) -> tuple[int, list[int]]:
        import torch.distributed as dist  # here, so that only the ranks import torch

        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (dist.get_rank(), number))
        self.count += sum(number for _, number in found)
        return self.count, [rank for rank, _ in found]

    def save(self) -> None:
        import torch.distributed as dist

        if dist.get_rank() == 0:
            self.state.write_text(str(self.count))

    def fail(self, rank: int) -> None:
        import torch.distributed as dist

        if dist.get_rank() == rank:
            raise UserError("cannot do that; do something else")
        self.add(0)


def start(state: Path) -> Any:
    """A group of two, as `rl_lab.workers.cluster` starts it."""
    front = ray.remote(group_class(Member)).options(num_cpus=0)
    return front.remote(Member, [ray.put(state)], 2, {"CPU": 0.5}, "PACK")


@pytest.mark.slow
def test_a_group_answers_as_one_actor_and_goes_on_from_its_state_when_a_rank_is_killed(cluster, tmp_path):
    state = tmp_path / "count"
    group = start(state)
    count, ranks = group.add.options(num_returns=2).remote(3)
    assert ray.get([count, ranks]) == [6, [0, 1]]
    ray.get(group.save.remote())
    assert ray.get(group.add.remote(5)) == (16, [0, 1])
    os.kill(ray.get(group.rank_processes.remote())[1], signal.SIGKILL)
    with pytest.raises(RayActorError):
        ray.get(group.add.remote(1), timeout=300)

    group = start(state)
    assert ray.get(group.add.remote(1)) == (8, [0, 1]), "it goes on from what was saved"
    processes = ray.get(group.rank_processes.remote())
    with pytest.raises(UserError, match="do something else"):
        ray.get(group.fail.remote(0), timeout=300)
    ray.kill(group)
    deadline = time.monotonic() + 120
    while any(Path(f"/proc/{process}").exists() for process in processes):
        assert time.monotonic() < deadline, "a rank outlives its group"
        time.sleep(0.2)
