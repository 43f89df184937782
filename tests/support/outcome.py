"""The stages of a reward model of answers without a cluster."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from rl_lab.config.language import OutcomeConfig
from rl_lab.graph.nodes import Node
from rl_lab.graph.stage import StageContext
from rl_lab.learner.outcome import LABELS_FILE, OutcomePlan
from rl_lab.learner.plans import Training
from rl_lab.stages.kinds import KINDS
from rl_lab.stages.outcome import ITEMS_FILE
from tests.support.stage_runs import config_of, stage_context

SETTINGS = OutcomeConfig(steps=2, batch_size=4, warmup=1, calibration=0.3, test=0.3)
CONFIG = """
name: outcome
stages: [questions, cold_start, outcome_model]
outcome: {steps: 2, batch_size: 4, warmup: 1, calibration: 0.3, test: 0.3}
traces: {max_tokens: 64}
wandb: disabled
"""


def outcome_context(
    run: Path, name: str, kind: str, inputs: dict[str, Path], overrides: Iterable[str] = (), **params: int
) -> StageContext:
    """A stage of a run folder."""
    return stage_context(
        run, Node(name, KINDS[kind], params), config_of(run.parent, CONFIG, overrides), inputs, work=name
    )


def train_member(policy: Path, labels: Path, folder: Path, settings: OutcomeConfig = SETTINGS, seed: int = 0) -> Path:
    """A member, in this process."""
    training = Training(OutcomePlan(policy, settings, labels / LABELS_FILE, labels / ITEMS_FILE, seed))
    for _ in range(settings.steps):
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)
    return folder
