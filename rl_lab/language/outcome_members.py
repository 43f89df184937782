"""Members of an outcome reward model, trained and ready to score: a head on the lab's model, or a text classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from algos.outcome import OutcomeHead, outcome_scores
from rl_lab.errors import UserError
from rl_lab.language.model import LanguageModel, check_language_model, language_sizes, load_language_model
from rl_lab.language.outcome_training import HEAD_FILE, hidden_size, scoring_batch
from rl_lab.language.text_classifier import Question, TextClassifier, check_classifier, is_classifier
from rl_lab.model.weights import check_finite, check_fit


class Member(Protocol):
    """What scores answers."""

    def to(self, device: str) -> None:
        """Move the weights."""

    def scores(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
        """Of N answers, one to each question: float64 [N]."""


class HeadMember:
    """A vision-language model and the head that was trained with it."""

    def __init__(self, language: LanguageModel, head: OutcomeHead) -> None:
        self.language, self.head = language, head
        language.model.eval().requires_grad_(False)
        head.eval().requires_grad_(False)

    def to(self, device: str) -> None:
        """See `Member`."""
        self.language.model.to(device)  # type: ignore[arg-type]
        self.head.to(device)

    @torch.inference_mode()
    def scores(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
        """See `Member`; of answers to one question, with the same pictures, the pictures are encoded once."""
        keys = [(text, id(images)) for text, images in questions]
        first = {key: place for place, key in reversed([*enumerate(keys)])}
        shown = sorted(first.values())
        rows = [(shown.index(first[key]), text) for key, text in zip(keys, texts, strict=True)]
        batch = scoring_batch([questions[place] for place in shown], rows, self.language.processor)
        model: Any = self.language.model
        on = self.head.linear.weight.device
        return outcome_scores(model, self.head, batch.to(on)).double().cpu().numpy()


def load_member(folder: Path) -> Member:
    """A member, ready to score. UserError for a folder that is none."""
    if is_classifier(folder):
        return TextClassifier.load(folder)
    weights = _head_weights(folder)
    language = load_language_model(folder)
    head = OutcomeHead(hidden_size(language))
    _check_head(folder, weights, head)
    head.load_state_dict(weights)
    return HeadMember(language, head)


def check_member(folder: Path) -> None:
    """UserError for a folder that `load_member` would refuse; no model is made."""
    if is_classifier(folder):
        check_classifier(folder)
        return
    weights = _head_weights(folder)
    check_language_model(folder)
    _check_head(folder, weights, OutcomeHead(language_sizes(folder).hidden))


def _head_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / HEAD_FILE
    if not path.is_file():
        raise UserError(f"{folder} is no member of an outcome reward model: {HEAD_FILE} is missing")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; copy it again") from error


def _check_head(folder: Path, weights: dict[str, Tensor], head: OutcomeHead) -> None:
    """UserError for weights that are not those of the head of this model, or not finite."""
    expected = {name: tuple(value.shape) for name, value in head.state_dict().items()}
    try:
        check_fit({name: tuple(value.shape) for name, value in weights.items()}, expected, ("", ""))
        check_finite(weights.items(), folder / HEAD_FILE)
    except ValueError as error:
        raise UserError(f"{folder / HEAD_FILE}: {error}") from error
