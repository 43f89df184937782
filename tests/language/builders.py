"""Items with pictures, a run's context, and an engine and a learner that are plain objects."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from envs.spatial_qa.items import CATEGORIES, Item
from rl_lab.config.load import load_config
from rl_lab.drivers.grpo import GRPORun
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageConfig, StageContext
from rl_lab.model.checkpoint import Snapshot, digest, load_chat_processor
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Completion, Prompt, RolloutGroup
from rl_lab.stages.kinds import KINDS
from rl_lab.terminal import ProgressBars
from rl_lab.training.state import RunState
from rl_lab.workers.engine import Generated, RolloutUnit
from rl_lab.workers.learner import Learned, Weights
from tests.rollouts import advantages_of

CONFIG = """
name: language
stages: [questions, cold_start, grpo]
grpo: {num_generations: 4, max_completion_length: 16}
engine: {prompts_per_call: 3}
curriculum: {batch_size: 4, explore: 0.5}
rl: {steps: 6, warmup: 0, examine_every: 2, max_refills: 2}
checkpoint_every: 2
wandb: disabled
"""


def make_item(number: int, num_images: int = 1, **changes: Any) -> Item:
    """A choice between letters; the pictures are random."""
    draw = np.random.default_rng(number)
    values: dict[str, Any] = {
        "id": f"item-{number}",
        "category": CATEGORIES[number % 4],
        "task": "test",
        "reward_type": "choice",
        "seed": number,
        "scene": f"test:{number}",
        "difficulty": {"margin_m": 0.1, "thinking": True},
        "prompt": f"which of the {number} cups is it? /think",
        "images": tuple(draw.integers(0, 256, (32, 32 + 32 * i, 3), dtype=np.uint8) for i in range(num_images)),
        "answer": "AB"[number % 2],
        "solution": f"<think>it is near</think><answer>{'AB'[number % 2]}</answer>",
    }
    return Item(**(values | changes))


def write_questions(folder: Path, num_train: int = 24, num_held_out: int = 5) -> Path:
    """The output of a `questions` stage."""
    folder.mkdir()
    write_rows(folder / "train.arrow", map(item_row, map(make_item, range(num_train))))
    write_rows(folder / "cold_start.arrow", (item_row(make_item(i, i % 3)) for i in range(10)))
    write_rows(folder / "held_out.arrow", (item_row(make_item(1000 + i)) for i in range(num_held_out)))
    return folder


def make_context(
    run: Path, questions: Path, overrides: Sequence[str] = (), track: Callable[[dict], None] = lambda line: None
) -> StageContext:
    """The `grpo` stage of replicate 1 in a run folder, as the executor gives it, also a second time after a kill."""
    path = run.parent / "language.yaml"
    path.write_text(CONFIG)
    config = load_config(path, overrides)
    scheme = config.curriculum.scheme
    params = {"curriculum": {"scheme": scheme}}
    node = Node(f"{scheme}.1.grpo", KINDS["grpo"], params, method=scheme, replicate=1)
    out, scratch = run / "work" / "out", run / "work" / "scratch"
    for folder in (out, scratch):
        folder.mkdir(parents=True, exist_ok=True)
    folder = RunFolder(run)
    folder.keep_metrics(lambda line: False)
    return StageContext(
        node=node,
        config=StageConfig(config, KINDS["grpo"]),
        inputs={"questions": questions},
        out=out,
        scratch=scratch,
        seed=config.seed,
        _folder=folder,
        _bars=ProgressBars(),
        _stop=threading.Event(),
        _track=track,
    )


class FakeEngines:
    """Answers right or wrong by chance, which follows from the prompt's seed and the weights' bytes alone."""

    num_workers = 1

    def __init__(self, policy: Path, items: Iterable[Item], rate: Callable[[Item], float] | None = None) -> None:
        self.processor = load_chat_processor(policy)
        self.rate = rate or (lambda item: (item.seed % 5) / 4)
        self.items = {tuple(item_prompt(item, self.processor).tokens): item for item in items}
        self.asked: list[tuple[int, str]] = []
        """(weight version, item) of every prompt, in order."""
        self.units: list[int] = []
        """Prompts of each call."""

    def submit(self, call: Callable[[Any, Any], Any], units: Iterable[RolloutUnit]) -> list[Generated]:
        """See `WorkerPool.submit`; the answers are there at once."""
        actor = SimpleNamespace(generate=SimpleNamespace(remote=self.generate))
        return [call(actor, unit) for unit in units]

    def results(self, batch: list[Generated], check_stop: Callable[[], None]) -> Iterator[Generated]:
        """See `WorkerPool.results`."""
        check_stop()
        yield from batch

    def generate(self, unit: RolloutUnit, snapshot: Snapshot) -> Generated:
        """See `Rollouter.generate`."""
        self.units.append(len(unit.prompts))
        rows = [self._answers(prompt, unit.sampling.num_generations, snapshot) for prompt in unit.prompts]
        return Generated(rows, 0.01, 0.0, 0.0)

    def _answers(self, prompt: Prompt, count: int, snapshot: Snapshot) -> list[Completion]:
        item = self.items[tuple(prompt.tokens)]
        self.asked.append((snapshot.version, item.id))
        assert prompt.seed is not None
        draw = np.random.default_rng([prompt.seed, int(snapshot.digest[:12], 16)])
        return [self._answer(item, prompt, draw, snapshot.version) for _ in range(count)]

    def _answer(self, item: Item, prompt: Prompt, draw: np.random.Generator, version: int) -> Completion:
        letter = item.answer if draw.random() < self.rate(item) else "C"
        tokens = self.processor.tokenizer(f"<answer>{letter}</answer>", add_special_tokens=False).input_ids
        tokens = (*tokens, self.processor.tokenizer.eos_token_id)
        logprobs = tuple((-draw.random(len(tokens), dtype=np.float32)).tolist())
        return Completion(tuple(prompt.tokens), tokens, logprobs, version, True)


class FakeLearner:
    """Weights that are one number, moved by everything that a batch holds."""

    def __init__(self, state: Path | None, start: int = 1) -> None:
        self.start, self.batches, self.weight = start, 0, 0.0
        if state is not None:
            self.batches, self.weight = json.loads(state.read_text())
        self.learned: list[list[RolloutGroup]] = []
        self.error: str | None = None
        self.mismatch = 0.0
        self.die_at: int | None = None
        """Batch that is not survived."""
        self.die_after: str | None = None
        """`save` or `finish`: the call that is the last."""

    def publish(self) -> Weights:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        files = {"weight": repr(self.weight).encode()}
        version = self.start + self.batches
        return Weights(version, Snapshot(version, digest(files), files))

    def learn(self, groups: list[RolloutGroup], bad_batch: Path) -> tuple[Learned, Weights]:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        if self.batches + 1 == self.die_at:
            raise Killed
        self.learned.append(groups)
        rows = [group.completions for group in groups]
        seen: list[Any] = [torch.tensor(advantages_of(groups)).tolist()]
        seen += [[[answer.reward is not None for answer in row] for row in rows]]
        seen += [[[answer.tokens, answer.logprobs, answer.weight_version] for answer in row] for row in rows]
        total = int(hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:8], 16) / 2**32
        self.batches, self.weight = self.batches + 1, 0.5 * self.weight + total
        weights = self.publish()
        signal = float(np.mean([any(row) for row in advantages_of(groups)]))
        metrics = {"loss": self.weight, "mismatch/newest": self.mismatch, "grad_norm": self.weight}
        metrics |= {"groups/with_signal": signal} if groups[0].size > 1 else {}  # else it imitates
        return Learned(metrics, weights.version, 0.0, self.error), weights

    def save(self, path: Path) -> None:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        path.write_text(json.dumps([self.batches, self.weight]))
        self._end("save")

    def finish(self, folder: Path) -> None:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        (folder / "model").write_text(repr(self.weight))
        self._end("finish")

    def _end(self, call: str) -> None:
        if call == self.die_after:
            raise Killed

    def snapshot(self, weights: Weights) -> Snapshot:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        return weights.reference

    def share(self, snapshot: Snapshot) -> Weights:
        """See `rl_lab.workers.learner.LearnerHandle`."""
        return Weights(snapshot.version, snapshot)


class Killed(Exception):  # noqa: N818 - no error: what stands for a SIGKILL
    """The process is gone."""


class FakeRun:
    """A run of GRPO in a folder: started, killed, resumed."""

    def __init__(self, run: Path, questions: Path, policy: Path, *overrides: str, rate: Any = None) -> None:
        run.mkdir(parents=True)
        self.path, self.questions, self.policy, self.overrides = run, questions, policy, overrides
        self.out = run / "work" / "out"
        self.rate = rate
        self.kill_at: int | None = None
        """Step after whose line the process dies."""

    def start(self, **learner: Any) -> FakeRun:
        """Run to the end, from the last checkpoint if there is one, by a learner with these attributes."""
        context = make_context(self.path, self.questions, self.overrides, self._track)
        try:
            items = [make_item(number) for number in [*range(24), *range(1000, 1005)]]
            self.engines = FakeEngines(self.policy, items, self.rate)
            state = RunState(context.out, context.scratch, context.say)
            self.learner = FakeLearner(state.learner_state)
            for name, value in learner.items():
                setattr(self.learner, name, value)
            self.run = GRPORun(context, self.policy, self.engines, self.learner, state)  # type: ignore[arg-type]
            self.run.run()
        finally:
            context._folder.close()
        return self

    def _track(self, line: dict[str, Any]) -> None:
        if line["step"] == self.kill_at:
            self.kill_at = None
            raise Killed

    def metrics(self, path: str = "work/out/metrics.jsonl") -> list[dict[str, Any]]:
        """Lines without wall times."""
        lines = [json.loads(line) for line in (self.path / path).read_text().splitlines()]
        volatile = ("time", "seconds/", "idle/")
        return [{key: value for key, value in line.items() if not key.startswith(volatile)} for line in lines]
