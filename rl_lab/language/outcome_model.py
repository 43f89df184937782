"""A trained outcome reward model in a folder: `model.json` and one folder a member, `member-1`, `member-2`, ...

As a reward it gives the calibrated probability that an answer is correct (trained on preferences: that an answer with
this score is), by member; `rewards.ensemble` does the rest. A folder of a trained sequence classifier, as others
publish them, counts as a model of one member whose score is taken for a logit as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rewards.calibration import Platt
from rl_lab.errors import UserError
from rl_lab.language.outcome_members import Member, check_member, load_member
from rl_lab.language.text_classifier import CONFIG_FILE, Question, check_classifier, is_classifier
from rl_lab.reading import fit, read_object

MODEL_FILE = "model.json"
KIND = "outcome"
ROWS_AT_ONCE = 64
"""Answers that go through a member together; a fixed number, so that the same call gives the same bits."""


class OutcomeModel:
    """The members of a model, loaded; on the GPU where torch sees one."""

    def __init__(self, members: Sequence[Member], platts: Sequence[Platt]) -> None:
        self.members, self.platts = members, platts
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for member in members:
            member.to(self.device)

    def logits(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
        """Scores of N answers, one to each question, by member: float64 [M, N].

        Of answers to one question, with the same tuple of pictures, the pictures are encoded once.
        """
        parts = [
            [member.scores(questions[rows], texts[rows]) for member in self.members]
            for rows in (slice(start, start + ROWS_AT_ONCE) for start in range(0, len(texts), ROWS_AT_ONCE))
        ]
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(self.members), 0))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated, [M, N]."""
        return np.stack([platt(row) for platt, row in zip(self.platts, logits, strict=True)])


@lru_cache(maxsize=4)
def _load(folder: Path, changed: float) -> OutcomeModel:
    if not (folder / MODEL_FILE).is_file():
        return OutcomeModel([load_member(folder)], [Platt()])
    platts = _platts(folder)
    return OutcomeModel([load_member(member) for member in _members(folder, platts)], platts)


def _members(folder: Path, platts: Sequence[Platt]) -> list[Path]:
    return [folder / f"member-{number + 1}" for number in range(len(platts))]


def read_model_record(folder: Path) -> dict[str, Any]:
    """`model.json` of a model's folder. UserError where there is none, or one of another kind."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(
            f"{folder} is no reward model: {MODEL_FILE} is missing; train one with an outcome_model stage, or give the "
            "folder of a sequence classifier"
        )
    record = read_object(path)
    if record.get("kind") != KIND:
        raise UserError(f"{folder} is a reward model of kind {record.get('kind')!r}; answers need one of kind {KIND!r}")
    if not record.get("platt"):
        raise UserError(f"{path}: platt, the calibration of each member, is missing; train the model again")
    return record


def _platts(folder: Path) -> list[Platt]:
    """Calibration of each member."""
    return fit(read_model_record(folder)["platt"], list[Platt], f"{folder / MODEL_FILE}, platt")


def check_outcome_model(folder: Path) -> None:
    """UserError for a folder that is no model, or a damaged one; no model is made."""
    if is_classifier(folder):
        check_classifier(folder)
        return
    for member in _members(folder, _platts(folder)):
        check_member(member)


def load_outcome_model(folder: Path) -> OutcomeModel:
    """The model of a folder; the same one for every caller of a process. UserError for a folder that is none."""
    file = CONFIG_FILE if is_classifier(folder) else MODEL_FILE
    if file == MODEL_FILE:
        read_model_record(folder)
    return _load(folder.absolute(), (folder / file).stat().st_mtime)


class OutcomeReward:
    """A model as a `rewards.ensemble.RewardModel`; its weights are loaded at the first call."""

    def __init__(self, folder: Path) -> None:
        """UserError for a folder that is no model."""
        check_outcome_model(folder)
        self._folder = folder

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], images: Sequence[Any]) -> np.ndarray:
        """See `RewardModel`."""
        model = load_outcome_model(self._folder)
        questions = list(zip(prompts, images, strict=True))
        return model.probabilities(model.logits(questions, completions))

    def close(self) -> None:
        """See `RewardModel`; other stages of the process may still use the model."""
