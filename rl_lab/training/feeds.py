"""What the two objectives learn from: groups of answers, and rounds of preference pairs; both prepared ahead.

A feed prepares its next batch as soon as it may be needed, with the newest weights of that moment, and its workers are
at it while the learner takes other turns. When that is follows from the turns done, and so not from who is fast.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from typing import Any

from algos.methods import find_method
from rl_lab.common.files import write_folder
from rl_lab.graph.stage import StageContext
from rl_lab.model.checkpoint import Snapshot
from rl_lab.rollouts.collect import COUNTS_FILE, Request, collect_pairs, write_collection
from rl_lab.training.loop import Feed, Turn
from rl_lab.training.online import OnlineSteps
from rl_lab.training.state import JointState
from rl_lab.workers.learner import BAD_BATCH_FILE, LearnerHandle, Weights
from rl_lab.workers.pool import POLL_S, WorkerPool

PAIRS = "pairs"
"""Folder of the rounds of pairs in a run's output."""


class LanguageFeed(OnlineSteps):
    """Groups of answers: the next batch is asked right after the one before is learned."""

    def prepare(self, weights: Weights) -> None:
        """Ask the next batch unless it is asked."""
        progress = self.state.progress
        if progress.batches < self.method.steps:
            self.rollouts.issue_ahead([progress.step + 1], weights)

    @property
    def is_ready(self) -> bool:
        """Whether the answers to the next batch are there."""
        issued = self.rollouts.ahead(self.state.progress.step + 1)
        return issued is not None and all(answer.done() for answer in issued.asked)

    def check(self, line: dict[str, Any]) -> None:
        """Only where RPRO has not moved the weights since the engines answered."""
        if line["rollouts/staleness"] == 0:
            super().check(line)


class ActionFeed(Feed):
    """Rounds of preference pairs, collected in the background and kept when they are whole; none for imitation."""

    def __init__(
        self, context: StageContext, simulations: WorkerPool, learner: LearnerHandle, state: JointState
    ) -> None:
        """Continues where the state is."""
        self.context, self.simulations, self.learner, self.state = context, simulations, learner, state
        joint, optimise = context.config.joint, context.config.optimise
        self.rounds, self.block, self.round_steps = joint.rounds, joint.block, optimise.steps
        self.blocks = -(-optimise.steps // joint.block)
        """Turns of a round."""
        self.ahead = joint.collect_ahead
        self.collects = find_method(joint.method).needs_collection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="collection")
        self._closed = threading.Event()
        self._begun: dict[int, Future[None]] = {}
        self._weights: dict[int, Weights] = {}
        """With which rounds were begun in this process."""
        self.state.progress.done.setdefault("rpro", 0)
        if self._turns:
            self.learner.use_pairs(self._folders(-(-self._turns // self.blocks)))

    @property
    def _turns(self) -> int:
        return self.state.progress.done["rpro"]

    @property
    def round(self) -> int:
        """Number of the round that the next turn belongs to."""
        return self._turns // self.blocks + 1

    def _folders(self, rounds: int) -> tuple[Path, ...]:
        if not self.collects:
            return ()
        return tuple(self.context.out / PAIRS / f"round-{number}" for number in range(1, rounds + 1))

    def prepare(self, weights: Weights) -> None:
        """Begin to collect what the next turns need, unless that has begun."""
        if not self.collects:
            return
        needed = min((self._turns + self.ahead) // self.blocks + 1, self.rounds)
        for number in range(self.round, needed + 1):
            if number not in self._begun:
                self._begun[number] = self._begin(number, weights)

    def _begin(self, number: int, newest: Weights) -> Future[None]:
        """A round with the weights that it was begun with before a kill, else the newest."""
        known = self.state.progress.collections.get(str(number))
        digest = known["digest"] if known else self.learner.snapshot(newest).digest
        folder = self._folders(number)[-1]
        if folder.is_dir() and json.loads((folder / COUNTS_FILE).read_text())["digest"] == digest:
            self._kept(number, newest.version if known is None else known["version"], digest)
            return _done()
        shutil.rmtree(folder, ignore_errors=True)  # asynchronous mode came to other weights after a kill
        weights = newest
        if known and known["version"] != newest.version:
            weights = self.learner.share(self.state.weights(known["version"]))
        self._kept(number, weights.version, digest)
        self._weights[number] = weights
        return self._thread.submit(self._collect, number, weights, digest)

    def _kept(self, number: int, version: int, digest: str) -> None:
        self.state.progress.collections[str(number)] = {"version": version, "digest": digest}

    def _collect(self, number: int, weights: Weights, digest: str) -> None:
        """In the feed's thread: the pairs of a round, of which every finished unit is kept."""
        scratch = self.context.scratch / f"round-{number}-{digest[:12]}"
        request = Request(f"joint/{number}", self.context.seed, scratch, self._check_stop)
        pairs, counts = collect_pairs(self.simulations, weights.reference, self.context.config, request)
        folder = self._folders(number)[-1]
        folder.parent.mkdir(exist_ok=True)
        more = {"digest": digest, "weight_version": weights.version}
        write_folder(folder, lambda partial: write_collection(partial, pairs, counts, **more))
        shutil.rmtree(scratch, ignore_errors=True)

    def _check_stop(self) -> None:
        if self._closed.is_set():
            raise _ClosedError
        self.context.check_stop()

    @property
    def is_ready(self) -> bool:
        """Whether the pairs of the next turn are there."""
        return not self.collects or (self.round in self._begun and self._begun[self.round].done())

    def turn(self, weights: Weights) -> Turn:
        """A block of steps on the pairs of the round.

        RuntimeError where the first round has no pair at all, and when the loss is not a number.
        """
        number = self.round
        if self.collects:
            self._wait(self._begun[number])
            self._check_pairs(number)
        began = time.perf_counter()
        self.learner.use_pairs(self._folders(number))
        steps = min(self.block, self.round_steps - (self._turns % self.blocks) * self.block)
        learned, weights = self.learner.learn_pairs(steps, self.context.scratch / BAD_BATCH_FILE)
        self.state.progress.pair_steps += steps
        counted = {"round": float(number), "steps": float(self.state.progress.pair_steps)}
        return Turn(learned.metrics | counted | {"seconds/learn": time.perf_counter() - began}, weights)

    def _wait(self, future: Future[None]) -> None:
        while not future.done():
            wait_for([future], timeout=POLL_S)
            self.context.check_stop()
        future.result()

    def _check_pairs(self, number: int) -> None:
        found = self.collected(number)
        if number == 1 and not found["pairs"]:
            raise RuntimeError(
                f"no preference pair in {found['episodes']} episodes: the policy does not fail, or nothing it does can "
                "be corrected; raise collect.max_episodes"
            )

    def collected(self, number: int) -> dict[str, Any]:
        """Counts of a round that is collected."""
        return json.loads((self._folders(number)[-1] / COUNTS_FILE).read_text())

    def older_weights(self, newest: Weights) -> list[Snapshot]:
        """Weights, but for the newest, with which rounds are being collected."""
        used = [weights for number, weights in self._weights.items() if not self._begun[number].done()]
        older = {weights.version: weights for weights in used if weights.version != newest.version}
        return [self.learner.snapshot(weights) for weights in older.values()]

    def close(self) -> None:
        """End the thread; what it has finished is kept."""
        self._closed.set()
        self._thread.shutdown(cancel_futures=True)


def _done() -> Future[None]:
    """What is there already."""
    future: Future[None] = Future()
    future.set_result(None)
    return future


class _ClosedError(Exception):
    """The feed is no longer needed."""
