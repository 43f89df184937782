"""Trained outcome reward models, ready to score: a head on the lab's model, or a text classifier, by member.

A model is a folder: `model.json` and one folder a member, `member-1`, `member-2`, ... As a reward it gives the
calibrated probability that an answer is correct (trained on preferences: that an answer with this score is), by member;
`rewards.rubric` does the rest.

A text classifier is a sequence classifier of transformers, one number for a question and its answer, both as text: any
folder that `AutoModelForSequenceClassification` loads with one label, its tokenizer beside it, so reward models as they
are published, and encoders or decoders that get a new head. It sees no pictures. Such a folder alone counts as a model
of one member whose score is taken for a logit as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from algos.outcome import OutcomeHead, outcome_scores
from rewards.calibration import Platt
from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, read_object
from rl_lab.common.seeding import integer
from rl_lab.learner.outcome import HEAD_FILE, hidden_size, scoring_batch
from rl_lab.model.checkpoint import LanguageModel, check_language_model, language_sizes, load_language_model
from rl_lab.model.loading import NAMED, check_finite, check_fit, no_progress_bars, stored_tensors
from rl_lab.model.vlm_config import read_config_file

CONFIG_FILE = "config.json"

QuestionInput = tuple[str, Sequence[np.ndarray]]
"""Text and pictures, uint8 [H, W, 3] each."""


def is_classifier(folder: Path) -> bool:
    """Whether the folder holds a trained sequence classifier. UserError for a config that cannot be read."""
    if not (folder / CONFIG_FILE).is_file():
        return False
    names = read_config_file(folder).get("architectures") or []
    return isinstance(names, list) and any(str(name).endswith("ForSequenceClassification") for name in names)


def check_classifier(folder: Path) -> Any:
    """The tokenizer of a folder that `TextClassifier` can read; no model is made.

    UserError for a folder without a model or tokenizer of transformers, for weights that do not fit or are not finite,
    and for a model with several labels.
    """
    with _reading(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    _model(folder, device_map="meta")
    if any(folder.glob("*.safetensors")):
        with _reading(folder):
            check_finite(stored_tensors(folder), folder)
    if is_classifier(folder) and config.num_labels != 1:
        raise UserError(
            f"{folder} gives {config.num_labels} numbers for an answer; a reward model gives 1 (num_labels)"
        )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise UserError(f"{folder}: the tokenizer has neither a pad nor an eos token; give it one")
    return tokenizer


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a damaged file of another's model; transformers raises whatever comes of it
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{folder} is no sequence classifier of transformers with its tokenizer: {said}") from error


def _model(folder: Path, **options: Any) -> Any:
    """The model of a folder; only the head of a checkpoint that never had one may be missing, UserError for others."""
    labels = {} if is_classifier(folder) else {"num_labels": 1}
    with _quiet(), _reading(folder):
        model, found = AutoModelForSequenceClassification.from_pretrained(
            folder, local_files_only=True, output_loading_info=True, **labels, **options
        )
        missing = sorted(key for key in found["missing_keys"] if is_classifier(folder) or _is_body(key, model))
        if missing:
            raise ValueError(f"{len(missing)} tensors are missing: {', '.join(missing[:NAMED])}")
    return model


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of transformers, and no warning that a head is new: that is what was asked for."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with no_progress_bars():
            yield
    finally:
        logging.set_verbosity(verbosity)


def _is_body(key: str, model: Any) -> bool:
    """Whether a tensor is no part of what a classifier adds: its head, and of encoders the pooler below it."""
    return key.startswith(f"{model.base_model_prefix}.") and ".pooler." not in key


class TextClassifier:
    """A model and its tokenizer."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    @classmethod
    def load(cls, folder: Path, seed: int = 0) -> TextClassifier:
        """From a folder; a head that the checkpoint lacks is drawn from `seed`. UserError as `check_classifier`."""
        tokenizer = check_classifier(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(integer(seed, "classifier", "head"))
            model = _model(folder)
        with _reading(folder):
            check_finite(model.state_dict().items(), folder)
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return cls(model.eval(), tokenizer)

    def to(self, device: str) -> None:
        """Move the weights."""
        self.model.to(device)

    def encode(self, question: str, answer: str) -> list[int]:
        """Token ids: by the chat template where the tokenizer has one, else as a pair of texts.

        Of what is too long for the model the last tokens, so the answer before its question.
        """
        if self.tokenizer.chat_template is None:
            ids = self.tokenizer(question, answer)["input_ids"]
        else:
            chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            ids = self.tokenizer.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"]
        return ids[-self.limit :]

    @property
    def limit(self) -> int:
        """Tokens that the model can read."""
        places = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return min(self.tokenizer.model_max_length, places or self.tokenizer.model_max_length)

    @torch.inference_mode()
    def scores(self, questions: Sequence[QuestionInput], texts: Sequence[str]) -> np.ndarray:
        """Of N answers, one to each question: float64 [N]."""
        rows = [self.encode(question, text) for (question, _), text in zip(questions, texts, strict=True)]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        given = {name: padded[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        return self.model(**given).logits[:, 0].double().cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write it, for `load`."""
        with _quiet():
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


class Member(Protocol):
    """What scores answers."""

    def to(self, device: str) -> None:
        """Move the weights."""

    def scores(self, questions: Sequence[QuestionInput], texts: Sequence[str]) -> np.ndarray:
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
    def scores(self, questions: Sequence[QuestionInput], texts: Sequence[str]) -> np.ndarray:
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

    def logits(self, questions: Sequence[QuestionInput], texts: Sequence[str]) -> np.ndarray:
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


def check_outcome_model(folder: Path) -> None:
    """UserError for a folder that is no model, or a damaged one; no model is made."""
    if is_classifier(folder):
        check_classifier(folder)
        return
    for member in _members(folder, _platts(folder)):
        check_member(member)


def _members(folder: Path, platts: Sequence[Platt]) -> list[Path]:
    return [folder / f"member-{number + 1}" for number in range(len(platts))]


def _platts(folder: Path) -> list[Platt]:
    """Calibration of each member."""
    return fit(read_model_record(folder)["platt"], list[Platt], f"{folder / MODEL_FILE}, platt")


def load_outcome_model(folder: Path) -> OutcomeModel:
    """The model of a folder; the same one for every caller of a process. UserError for a folder that is none."""
    file = CONFIG_FILE if is_classifier(folder) else MODEL_FILE
    if file == MODEL_FILE:
        read_model_record(folder)
    return _load(folder.absolute(), (folder / file).stat().st_mtime)


@lru_cache(maxsize=4)
def _load(folder: Path, changed: float) -> OutcomeModel:
    if not (folder / MODEL_FILE).is_file():
        return OutcomeModel([load_member(folder)], [Platt()])
    platts = _platts(folder)
    return OutcomeModel([load_member(member) for member in _members(folder, platts)], platts)


class OutcomeReward:
    """A model as a `rewards.rubric.RewardModel`; its weights are loaded at the first call."""

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
