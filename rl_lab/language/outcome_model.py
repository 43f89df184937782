"""A trained outcome reward model in a folder: `model.json` and one folder a member, `member-1`, `member-2`, ...

As a reward it gives the calibrated probability that an answer is correct (trained on preferences: that an answer with
this score is), by member; `rewards.ensemble` does the rest.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.outcome import OutcomeHead, outcome_scores
from rewards.calibration import Platt
from rl_lab.errors import UserError
from rl_lab.language.model import LanguageModel
from rl_lab.language.outcome_training import load_member, scoring_batch

MODEL_FILE = "model.json"
KIND = "outcome"
ROWS_AT_ONCE = 64
"""Answers that go through a member together; a fixed number, so that the same call gives the same bits."""
Question = tuple[str, Sequence[np.ndarray]]
"""Text and pictures, uint8 [H, W, 3] each."""


class OutcomeModel:
    """The members of a model, loaded; on the GPU where torch sees one."""

    def __init__(self, members: Sequence[tuple[LanguageModel, OutcomeHead]], platts: Sequence[Platt]) -> None:
        self.members, self.platts = members, platts
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        for found, head in members:
            found.model.to(self.device)  # type: ignore[arg-type]
            head.to(self.device)

    @torch.inference_mode()
    def logits(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
        """Scores of N answers, one to each question, by member: float64 [M, N].

        Of answers to one question, with the same tuple of pictures, the pictures are encoded once.
        """
        parts = [
            self._logits(questions[start : start + ROWS_AT_ONCE], texts[start : start + ROWS_AT_ONCE])
            for start in range(0, len(texts), ROWS_AT_ONCE)
        ]
        return np.concatenate(parts, axis=1) if parts else np.zeros((len(self.members), 0))

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated, [M, N]."""
        return np.stack([platt(row) for platt, row in zip(self.platts, logits, strict=True)])

    def _logits(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
        keys = [(text, id(images)) for text, images in questions]
        first = {key: place for place, key in reversed([*enumerate(keys)])}
        shown = sorted(first.values())
        rows = [(shown.index(first[key]), text) for key, text in zip(keys, texts, strict=True)]
        found = []
        for language, head in self.members:
            batch = scoring_batch([questions[place] for place in shown], rows, language.processor)
            model: Any = language.model
            found.append(outcome_scores(model, head, batch.to(self.device)).double().cpu().numpy())
        return np.stack(found)


@lru_cache(maxsize=4)
def _load(folder: Path, changed: float) -> OutcomeModel:
    record = read_model_record(folder)
    members = [load_member(folder / f"member-{number}") for number in range(1, len(record["platt"]) + 1)]
    return OutcomeModel(members, [Platt(**platt) for platt in record["platt"]])


def read_model_record(folder: Path) -> dict[str, Any]:
    """`model.json` of a model's folder. UserError where there is none, or one of another kind."""
    path = folder / MODEL_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no reward model: {MODEL_FILE} is missing; train one with an outcome_model stage")
    record = json.loads(path.read_text())
    if record.get("kind") != KIND:
        raise UserError(f"{folder} is a reward model of kind {record.get('kind')!r}; answers need one of kind {KIND!r}")
    return record


def load_outcome_model(folder: Path) -> OutcomeModel:
    """The model of a folder; the same one for every caller of a process. UserError for a folder that is none."""
    read_model_record(folder)
    return _load(folder.absolute(), (folder / MODEL_FILE).stat().st_mtime)


class OutcomeReward:
    """A model as a `rewards.ensemble.RewardModel`; its weights are loaded at the first call."""

    def __init__(self, folder: Path) -> None:
        """UserError for a folder that is no model."""
        read_model_record(folder)
        self._folder = folder

    def __call__(self, prompts: Sequence[str], completions: Sequence[str], images: Sequence[Any]) -> np.ndarray:
        """See `RewardModel`."""
        model = load_outcome_model(self._folder)
        questions = list(zip(prompts, images, strict=True))
        return model.probabilities(model.logits(questions, completions))

    def close(self) -> None:
        """See `RewardModel`; other stages of the process may still use the model."""
