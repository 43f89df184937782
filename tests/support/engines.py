"""Engines, simulators and a teacher without processes: pools that work in this one."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from envs.rollback import Collection
from envs.spatial_qa.items import Item
from rl_lab.model.checkpoint import Snapshot, load_chat_processor
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Completion, Prompt, TopScores, all_completions
from rl_lab.rollouts.teacher import TeacherEngines
from rl_lab.workers.engine import Generated, RolloutUnit
from rl_lab.workers.simulation import Unit
from tests.support.episodes import pair


class FakePool:
    """Units are done at once or in threads, there each after a moment of its own if there are `delays`."""

    methods: tuple[str, ...]
    """Of an actor."""

    def __init__(self, num_threads: int = 0, delays: np.random.Generator | None = None) -> None:
        self.num_workers, self.busy_s = max(num_threads, 1), 0.0
        self._threads = ThreadPoolExecutor(num_threads) if num_threads else None
        self._delays = delays

    def submit(self, call: Callable[[Any, Any], Any], units: Iterable[Any]) -> list[Future]:
        """See `WorkerPool.submit`."""
        actor = SimpleNamespace(**{name: SimpleNamespace(remote=getattr(self, name)) for name in self.methods})

        def run(unit: Any, seconds: float = 0.0) -> Any:
            time.sleep(seconds)
            return call(actor, unit)

        if self._threads is None:
            return [self._done(run(unit)) for unit in units]
        return [self._threads.submit(run, unit, self._delay()) for unit in units]

    def _delay(self) -> float:
        return 0.0 if self._delays is None else float(self._delays.random() * 0.03)

    @staticmethod
    def _done(value: Any) -> Future:
        future: Future = Future()
        future.set_result(value)
        return future

    def results(self, batch: list[Future], check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """See `WorkerPool.results`."""
        for future in batch:
            check_stop()
            yield future.result()

    def map(self, call: Any, units: Iterable[Any], check_stop: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """See `WorkerPool.map`."""
        for unit in units:
            yield from self.results(self.submit(call, [unit]), check_stop)


class FakeEngines(FakePool):
    """Answers right or wrong by chance, which follows from the prompt's seed and the weights' bytes alone."""

    methods = ("generate",)

    def __init__(
        self, policy: Path, items: Iterable[Item], rate: Callable[[Item], float] | None = None, **pool: Any
    ) -> None:
        super().__init__(**pool)
        self.processor = load_chat_processor(policy)
        self.rate = rate or (lambda item: (item.seed % 5) / 4)
        self.items = {tuple(item_prompt(item, self.processor).tokens): item for item in items}
        self.asked: list[tuple[int, str]] = []
        """(weight version, item) of every prompt, in order."""
        self.units: list[int] = []
        """Prompts of each call."""

    def generate(self, unit: RolloutUnit, snapshot: Snapshot) -> Generated:
        """See `Rollouter.generate`."""
        self.units.append(len(unit.prompts))
        rows = [self._answers(prompt, unit.sampling.num_generations, snapshot) for prompt in unit.prompts]
        return Generated(rows, 0.01, 0.0, 0.0)

    def _answers(self, prompt: Prompt, count: int, snapshot: Snapshot) -> list[Completion]:
        item = self.items[tuple(prompt.tokens)]
        self.asked.append((snapshot.version, item.id))
        draw = self._draw(prompt, snapshot)
        return [self._answer(item, prompt, draw, snapshot.version) for _ in range(count)]

    def _draw(self, prompt: Prompt, snapshot: Snapshot) -> np.random.Generator:
        assert prompt.seed is not None
        return np.random.default_rng([prompt.seed, int(snapshot.digest[:12], 16)])

    def _answer(self, item: Item, prompt: Prompt, draw: np.random.Generator, version: int) -> Completion:
        letter = item.answer if draw.random() < self.rate(item) else "C"
        tokens = self.processor.tokenizer(f"<answer>{letter}</answer>", add_special_tokens=False).input_ids
        tokens = (*tokens, self.processor.tokenizer.eos_token_id)
        logprobs = tuple((-draw.random(len(tokens), dtype=np.float32)).tolist())
        return Completion(tuple(prompt.tokens), tokens, logprobs, version, True)


class SkilledEngines(FakeEngines):
    """An answer is right if the item's own number is below the weights' language rate."""

    def _draw(self, prompt: Prompt, snapshot: Snapshot) -> np.random.Generator:
        rates = json.loads(snapshot.files["rates"])
        self.rate = lambda item: rates["language"]
        return np.random.default_rng(prompt.seed)


class FakeTeacher(TeacherEngines):
    """Says tokens and log-probabilities that follow from the answer."""

    def __init__(self, top_k: int = 3) -> None:
        self.top_k, self.asked = top_k, 0

    def _read(self, groups: Any, check_stop: Any) -> Any:
        for answer in all_completions(groups):
            self.asked += 1
            draw = np.random.default_rng([*answer.tokens])
            tokens = draw.integers(0, 100, (len(answer.tokens), self.top_k), dtype=np.int32)
            yield TopScores(tokens, -draw.random((len(answer.tokens), self.top_k), dtype=np.float32))


class SkilledSimulators(FakePool):
    """An episode succeeds if its seed's own number is below the weights' action rate; every unit gives two pairs."""

    methods = ("evaluate", "collect")

    def __init__(self, num_threads: int = 2, delays: np.random.Generator | None = None) -> None:
        super().__init__(num_threads, delays)
        self.collected: list[tuple[int, tuple[int, ...]]] = []
        """(weight version, seeds) of every unit."""

    def evaluate(self, unit: Unit, snapshot: Snapshot, execute: int) -> list[dict[str, Any]]:
        """See `Simulation.evaluate`."""
        rate = json.loads(snapshot.files["rates"])["actions"]
        return [{"seed": seed, "success": bool(np.random.default_rng(seed).random() < rate)} for seed in unit.seeds]

    def collect(self, unit: Unit, snapshot: Snapshot, rollback: Any, corrector: Any) -> Collection:
        """See `Simulation.collect`."""
        self.collected.append((snapshot.version, unit.seeds))
        made = [pair(seed, winner_steps=10, loser_steps=9) for seed in unit.seeds[:1]]
        for one in made:
            one.weight_version = snapshot.version
        return Collection(made, Counter(episodes=len(unit.seeds)))
