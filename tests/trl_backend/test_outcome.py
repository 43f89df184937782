"""`backend: trl` of a reward model: TRL's `RewardTrainer` takes the Learner's steps."""

from pathlib import Path
from typing import Any

import pytest

from algos.outcome import BradleyTerry
from rl_lab.common.errors import UserError
from rl_lab.learner.learner import Learner
from rl_lab.learner.outcome import OutcomePlan
from rl_lab.learner.plans import optimiser
from rl_lab.stages.kinds import load_config
from rl_lab.stages.outcome import OutcomeLabelsKind
from rl_lab.trl_backend.outcome import train_outcome
from rl_lab.trl_backend.trainer import Settings
from tests.support.outcome import CONFIG, SETTINGS, outcome_context
from tests.support.questions import write_choices, write_questions
from tests.trl_backend.builders import make_folder


def test_losses_and_weights_are_the_learners(tmp_path: Path) -> None:
    inputs = {"traces": write_choices(tmp_path / "traces"), "questions": write_questions(tmp_path / "questions")}
    context = outcome_context(tmp_path, "labels", "outcome_labels", inputs)
    OutcomeLabelsKind().run(None, context)  # type: ignore[arg-type]
    settings = SETTINGS.model_copy(update={"learns": "preference", "steps": 3, "backend": "trl"})
    labels = (context.out / "labels.parquet", context.out / "items.arrow")
    plan = OutcomePlan(make_folder(tmp_path / "policy"), settings, *labels, seed=1)
    start, head = plan.start()
    data, told = plan.data(start.processor), {}
    groups = ("vision", "vlm", "head")
    train_outcome(start, head, data.both_sides, data.order, Settings(optimiser(settings), groups), told.__setitem__)

    other, other_head = plan.start()
    model: Any = other.model
    learner = Learner(model, seed=0)
    learner.add("outcome", BradleyTerry(other_head), optimiser(settings))
    for step in range(3):
        ours = learner.step("outcome", data.batch(step))
        assert told[step + 1] == pytest.approx({name: ours[name] for name in told[step + 1]}, rel=1e-4, abs=1e-6)
    far = max(float((a - b).abs().max()) for a, b in zip(start.model.parameters(), model.parameters(), strict=True))
    assert far < 0.1 * settings.lr
    assert float((head.linear.weight - other_head.linear.weight).abs().max()) < 0.1 * settings.lr


def test_single_answers_are_not_for_trl(tmp_path: Path) -> None:
    (tmp_path / "outcome.yaml").write_text(CONFIG)
    with pytest.raises(UserError, match="RewardTrainer learns from pairs only; set learns: preference"):
        load_config(tmp_path / "outcome.yaml", ["outcome.backend=trl"])
