"""A learner of several ranks behind one actor: it looks like the learner's own actor, and dies when any rank does.

The front starts one actor a rank in a placement group (all or none, so that two groups never wait for each other's
half), calls every rank with the same arguments and hands on the first one's answer. Ranks and placement group belong
to the front: they end with it, so whoever replaces a learner that died replaces the group.
"""

from __future__ import annotations

import inspect
import os
import socket
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rl_lab.workers.connection import LOOPBACK

JOIN_LIMIT = timedelta(minutes=10)
"""What ranks may wait for each other: until all are started, or in one step."""
LAST_WORDS_S = 10.0
"""After one rank's error the others may take so long to tell whether they are alive."""


class Rank:
    """One rank: a member of the group's class, beside torch's process group."""

    def __init__(self, number: int, count: int, member: type, arguments: list[Any]) -> None:
        self._number, self._count = number, count
        self._member, self._arguments = member, arguments
        self._store: Any = None

    def node(self) -> str:
        """The address of its machine."""
        return ray.util.get_node_ip_address()

    def host(self, *nodes: str) -> tuple[str, int]:
        """Open the rendezvous, of the first rank, for ranks on these nodes; its address.

        Whoever reaches it can disturb the group, so it is on loopback where all ranks are on one machine. The port is
        free because the system chose it; torch, which would listen on all addresses, is given the socket.
        """
        from torch.distributed import TCPStore

        address = LOOPBACK if len(set(nodes)) == 1 else nodes[0]
        with socket.create_server((address, 0)) as listening:
            port = listening.getsockname()[1]
            self._store = TCPStore(
                address,
                port,
                self._count,
                is_master=True,
                wait_for_workers=False,
                timeout=JOIN_LIMIT,
                master_listen_fd=listening.detach(),
            )
        return address, port

    def join(self, rendezvous: tuple[str, int]) -> None:
        """Wait for the others, then make the member."""
        import torch
        import torch.distributed as dist

        if rendezvous[0] == LOOPBACK:
            os.environ |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
        if self._store is None:
            self._store = dist.TCPStore(*rendezvous, self._count, is_master=False, timeout=JOIN_LIMIT)
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, store=self._store, rank=self._number, world_size=self._count, timeout=JOIN_LIMIT
        )
        self._made = self._member(*ray.get(self._arguments))

    def call(self, method: str, arguments: list[Any]) -> Any:
        """Call the member; only the first rank's answer travels."""
        answer = getattr(self._made, method)(*ray.get(arguments))
        return answer if self._number == 0 else None

    def process(self) -> int:
        """Its process id."""
        return os.getpid()


class _Front:
    """What every front does; `group_class` adds the methods of the members."""

    def __init__(
        self,
        member: type,
        arguments: list[ray.ObjectRef],
        count: int,
        resources: Mapping[str, float],
        strategy: str,
    ) -> None:
        group = placement_group([dict(resources)] * count, strategy)
        self._ranks: list[Any] = [
            ray.remote(Rank)
            .options(
                num_cpus=resources["CPU"],
                num_gpus=resources.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(group, number),
            )
            .remote(number, count, member, arguments)
            for number in range(count)
        ]
        rendezvous = self._ranks[0].host.remote(*[rank.node.remote() for rank in self._ranks])
        self._joined = [rank.join.remote(rendezvous) for rank in self._ranks]

    def rank_processes(self) -> list[int]:
        """Process ids of the ranks."""
        return ray.get([rank.process.remote() for rank in self._ranks])

    def _ask(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._joined:
            joining, self._joined = self._joined, []
            self._wait(joining)
        given = [ray.put(argument) for argument in arguments]
        return self._wait([rank.call.remote(method, given) for rank in self._ranks])

    def _wait(self, references: list[ray.ObjectRef]) -> Any:
        """The first rank's answer; the error of the first rank that has one; the end of this process if one died."""
        pending, errors = list(references), dict[int, RayTaskError]()
        while pending:
            done, pending = ray.wait(pending, timeout=LAST_WORDS_S if errors else None)
            if not done:
                break  # the rest wait for a rank that has failed
            try:
                ray.get(done)
            except RayActorError:
                print(f"rank {references.index(done[0])} died; its group ends", file=sys.stderr, flush=True)
                os._exit(1)
            except RayTaskError as error:
                errors[references.index(done[0])] = error
        if errors:
            first = errors[min(errors)]
            raise first.cause from first
        return ray.get(references[0])


def group_class(member: type) -> type:
    """A class of fronts with the public methods of `member`, each of which calls all ranks."""

    def forward(name: str) -> Any:
        def method(self: _Front, *arguments: Any) -> Any:
            return self._ask(name, arguments)

        method.__name__ = name
        return method

    names = [name for name, _ in inspect.getmembers(member, inspect.isfunction) if not name.startswith("_")]
    return type(member.__name__, (_Front,), {name: forward(name) for name in names})
