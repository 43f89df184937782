"""A sequence classifier of transformers as a reward model: one number for a question and its answer, both as text.

Any folder that `AutoModelForSequenceClassification` loads with one label, its tokenizer beside it: reward models as
they are published, and encoders or decoders that get a new head. It sees no pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from rl_lab.errors import UserError
from rl_lab.model.loading import no_progress_bars
from rl_lab.model.stored_config import read_config_file
from rl_lab.model.weights import NAMED, check_finite, stored_tensors
from rl_lab.seeding import integer

CONFIG_FILE = "config.json"
Question = tuple[str, Sequence[np.ndarray]]
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
    def scores(self, questions: Sequence[Question], texts: Sequence[str]) -> np.ndarray:
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
