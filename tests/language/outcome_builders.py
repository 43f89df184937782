"""Stored answers of a run, and the stages of a reward model without a cluster."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rl_lab.config.language import OutcomeConfig
from rl_lab.config.load import load_config
from rl_lab.drivers.outcome import ITEMS_FILE
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageConfig, StageContext
from rl_lab.learner.outcome import LABELS_FILE, OutcomePlan
from rl_lab.learner.plans import Training
from rl_lab.records.rollouts import RolloutStore
from rl_lab.stages.kinds import KINDS
from rl_lab.terminal import ProgressBars
from tests.rollouts import groups_of

SETTINGS = OutcomeConfig(steps=2, batch_size=4, warmup=1, calibration=0.3, test=0.3)
CONFIG = """
name: outcome
stages: [questions, cold_start, outcome_model]
outcome: {steps: 2, batch_size: 4, warmup: 1, calibration: 0.3, test: 0.3}
traces: {max_tokens: 64}
wandb: disabled
"""


def rollout(item: str, sample: int, truth: float | None, text: str, paid: float = 0.0) -> dict[str, Any]:
    """An answer that was worth `truth`, whatever it was paid."""
    given = {"item": item, "group": 0, "sample": sample, "prompt": "?", "completion": text}
    tokens = {"prompt_tokens": [1], "tokens": [5], "token_texts": ["x"], "logprobs": [-1.0], "weight_version": 1}
    worth = {"rewards": {"answer": truth, "short": 1.0}, "reward": paid, "advantage": 0.0}
    return given | tokens | worth


def write_rollouts(folder: Path, num_items: int = 24, samples: int = 4) -> Path:
    """Answers A and B to every choice of `make_item`, in turns; those to even questions are right with A."""
    rows = []
    for number in range(num_items):
        for sample in range(samples):
            letter, right = "AB"[sample % 2], float(number % 2 == sample % 2)
            rows.append(rollout(f"item-{number}", sample, right, f"<answer>{letter}</answer>"))
    for step in (1, 2):
        RolloutStore(folder).write(step, groups_of(rows[step - 1 :: 2]))
    return folder


def stage_context(
    run: Path, name: str, kind: str, inputs: dict[str, Path], overrides: Sequence[str] = (), **params: int
) -> StageContext:
    """A stage of a run folder, as the executor gives it."""
    path = run.parent / "outcome.yaml"
    path.write_text(CONFIG)
    config = load_config(path, overrides)
    out, scratch = run / name / "out", run / name / "scratch"
    for folder in (out, scratch):
        folder.mkdir(parents=True)
    return StageContext(
        node=Node(name, KINDS[kind], params),
        config=StageConfig(config, KINDS[kind]),
        inputs=inputs,
        out=out,
        scratch=scratch,
        seed=0,
        _folder=RunFolder(run),
        _bars=ProgressBars(),
        _stop=threading.Event(),
        _track=lambda line: None,
    )


def train_member(policy: Path, labels: Path, folder: Path, settings: OutcomeConfig = SETTINGS, seed: int = 0) -> Path:
    """A member, in this process."""
    training = Training(OutcomePlan(policy, settings, labels / LABELS_FILE, labels / ITEMS_FILE, seed))
    for _ in range(settings.steps):
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)
    return folder
