"""One copy of the policy for many simulation workers: an actor that batches what a worker asks, usually on a GPU.

A request is what one unit of simulation work asks at once, and is computed as one batch of its own. So episodes do not
depend on how many workers share the policy, nor on who asks first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayTaskError

from envs.rollout import Decision
from rl_lab.workers.policy import LocalPolicy, policy_key
from rl_lab.workers.weights import Snapshot

KEPT_POLICIES = 4
"""Stages that run at the same time use different weights."""


class Inference:
    """The actor: policies by key, the least recently used dropped."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._policies: OrderedDict[str, LocalPolicy] = OrderedDict()

    def load(self, snapshot: Snapshot, seed: int) -> None:
        """Get ready to act with these weights."""
        key = policy_key(snapshot, seed)
        if key not in self._policies:
            self._policies[key] = LocalPolicy.from_snapshot(snapshot, seed=seed, device=self._device)
        while len(self._policies) > KEPT_POLICIES:
            self._policies.popitem(last=False)

    def act(self, key: str, decisions: Sequence[Decision]) -> np.ndarray | None:
        """Chunks of the policy of this key (see `LocalPolicy.act`); None if it is not, or no longer, loaded."""
        if key not in self._policies:
            return None
        self._policies.move_to_end(key)
        return self._policies[key].act(decisions)


class SharedPolicy:
    """What a simulation worker holds of an `Inference` actor; acts like a `LocalPolicy`."""

    def __init__(self, server: Any, snapshot: Snapshot, *, seed: int) -> None:
        self._server, self._snapshot, self._seed = server, snapshot, seed
        self._key = policy_key(snapshot, seed)

    def act(self, decisions: Sequence[Decision]) -> np.ndarray:
        """Chunks of `ee` commands [len(decisions), H, 16]; loads the weights first where the actor lacks them.

        It lacks them at first, after others pushed them out, and when it died and was started again.
        """
        try:
            while (chunks := ray.get(self._server.act.remote(self._key, decisions))) is None:
                ray.get(self._server.load.remote(self._snapshot, self._seed))
        except RayTaskError as error:
            raise error.cause from error  # as a policy of this process would
        return chunks
