"""The language side of a run's shared model: checkpoints of a VLM or of a policy around one, prompts, and its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from envs.spatial_qa.items import Item
from rl_lab.config.model import ModelConfig
from rl_lab.learning.checkpoint import CheckpointInfo, check_policy, load_policy, read_info, reading, write_info
from rl_lab.learning.ranks import is_first_rank
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.conversion import vlm_config, vlm_processor
from rl_lab.model.initialisation import calibrate_vision, smooth_numbers
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.sharding import is_sharded, whole
from rl_lab.model.sizes import TowerSizes
from rl_lab.model.stored_config import read_config_file
from rl_lab.model.tokenizer import check_vocabulary, load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.model.vlm_config import HyVLMConfig
from rl_lab.records.types import Prompt, RolloutGroup, all_completions, filled
from rl_lab.seeding import integer

KINDS = (HyVLMConfig.model_type, HyVLAConfig.model_type)
"""What config.json may call a model that reads and writes text here."""
NO_THINKING = "/no_think"
"""End of a prompt that asks for the answer alone."""


@dataclass
class LanguageModel:
    """A model that reads and writes text, with what belongs to its checkpoint."""

    model: HunYuanVLMoTForConditionalGeneration | HyVLAPolicy
    processor: HunYuanVLMoTProcessor
    info: CheckpointInfo
    actions: PolicyProcessor | None = None
    """Of a policy: what its checkpoint holds for actions."""

    def save(self, folder: Path, info: CheckpointInfo, weights: dict[str, Tensor] | None = None) -> None:
        """Write the checkpoint with what is now recorded beside it; `weights` in place of the model's own.

        Of several ranks all must call it, and the first writes.
        """
        if is_sharded(self.model):
            weights = whole(dict(self.model.state_dict()) if weights is None else weights)
        if not is_first_rank():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
        (self.actions or self.processor).save_pretrained(folder)
        write_info(folder, info)

    def calibrate(self, images: Sequence[np.ndarray]) -> None:
        """Fit random weights to pictures and numbers; see `rl_lab.model.initialisation`."""
        dtype = next(self.model.parameters()).dtype
        self.model.float()  # statistics in bfloat16 would be off by as much as they correct
        backbone = self.model.model.vlm if isinstance(self.model, HyVLAPolicy) else self.model.model
        smooth_numbers(backbone.language_model.model.embed_tokens, self.processor.tokenizer)
        cut = [self.processor.image_processor(image) for image in images]
        sizes = Counter(grid for _, grid in cut)
        if sizes:
            (_, height, width), _ = sizes.most_common(1)[0]
            pixels = np.concatenate([patches for patches, grid in cut if grid[1:] == (height, width)])
            calibrate_vision(backbone, torch.from_numpy(pixels), (height, width))
        self.model.to(dtype)  # type: ignore[arg-type]


def load_language_model(folder: Path) -> LanguageModel:
    """Read the checkpoint folder of a VLM or of a policy; UserError when there is none or it does not fit."""
    if is_policy(folder):
        policy, actions, info = load_policy(folder)
        return LanguageModel(policy, vlm_processor(policy.config, actions.tokenizer), info, actions)
    with reading(folder):
        model = HunYuanVLMoTForConditionalGeneration.from_pretrained(folder)
        processor = HunYuanVLMoTProcessor.from_pretrained(folder)
        check_vocabulary(processor.tokenizer, model.config.text.vocab_size)
    return LanguageModel(model, processor, read_info(folder))


def check_language_model(folder: Path) -> HunYuanVLMoTProcessor:
    """The processor of a checkpoint folder; UserError for what `load_language_model` would refuse. No model is made."""
    if is_policy(folder):
        config, actions, _ = check_policy(folder)
        return vlm_processor(config, actions.tokenizer)
    with reading(folder):
        sizes = HunYuanVLMoTForConditionalGeneration.check_stored(folder)
        processor = HunYuanVLMoTProcessor.from_pretrained(folder)
        check_vocabulary(processor.tokenizer, sizes.text.vocab_size)
    read_info(folder)
    return processor


def is_policy(folder: Path) -> bool:
    """Whether a checkpoint folder holds a policy and not a VLM alone. UserError where it says nothing of the kind."""
    with reading(folder):
        return read_config_file(folder).get("model_type") == HyVLAConfig.model_type


def language_sizes(folder: Path) -> TowerSizes:
    """Sizes of the language tower of a checkpoint folder. UserError for a folder that has none."""
    with reading(folder):
        kind = HyVLAConfig if is_policy(folder) else HyVLMConfig
        return kind.from_pretrained(folder).vlm_sizes


def load_chat_processor(folder: Path) -> HunYuanVLMoTProcessor:
    """The processor of a checkpoint folder without its model. UserError for a folder that has none."""
    with reading(folder):
        if is_policy(folder):
            return vlm_processor(HyVLAConfig.from_pretrained(folder), load_tokenizer(folder))
        return HunYuanVLMoTProcessor.from_pretrained(folder)


def model_processor(model: ModelConfig) -> HunYuanVLMoTProcessor:
    """The processor of the model that a config names, a checkpoint or a preset, without the model."""
    if model.path is not None:
        return load_chat_processor(Path(model.path))
    return vlm_processor(preset_config(model.preset), load_tokenizer())


def checkpoint_dtype(folder: Path) -> str:
    """In what a checkpoint folder says that its weights are, float32 where it is silent."""
    config = read_config_file(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


def initial_language_model(model: ModelConfig, seed: int) -> LanguageModel:
    """What a cold start begins with: a preset with random weights of the seed, or the checkpoint of the config."""
    if model.path is not None:
        found = load_language_model(Path(model.path))
    else:
        torch.manual_seed(integer(seed, "initialisation"))
        made = HunYuanVLMoTForConditionalGeneration(vlm_config(preset_config(model.preset)))
        found = LanguageModel(made, model_processor(model), CheckpointInfo(0, 0))
    if model.dtype is not None:
        found.model.to(getattr(torch, model.dtype))
    return found


def item_prompt(item: Item, processor: HunYuanVLMoTProcessor, seed: int | None = None) -> Prompt:
    """An item as an engine reads it: the chat template's tokens up to where the answer begins, and the pictures."""
    return question_prompt(item.prompt, item.images, processor, seed)


def question_prompt(
    text: str, images: tuple[np.ndarray, ...], processor: HunYuanVLMoTProcessor, seed: int | None = None
) -> Prompt:
    """The same of a question's text and pictures, uint8 [H, W, 3] each."""
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
    tokens: Any = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        chat_template=processor.chat_template,
        add_generation_prompt=True,
        enable_thinking=not text.endswith(NO_THINKING),
        return_dict=False,
    )
    return Prompt(tokens, images, seed)


def with_token_texts(groups: Sequence[RolloutGroup], processor: HunYuanVLMoTProcessor) -> list[RolloutGroup]:
    """The groups with the text of each token of their completions."""
    decode = processor.tokenizer.decode
    return filled(
        groups, token_texts=[tuple(decode([token]) for token in one.tokens) for one in all_completions(groups)]
    )
