"""Reading checkpoints of the vision-language model: what the released config leaves out or has wrong."""

from __future__ import annotations

from pathlib import Path

from transformers import GenerationConfig
from transformers.utils import GENERATION_CONFIG_NAME

from rl_lab.model.loading import vision_shapes
from rl_lab.model.tokenizer import load_tokenizer, special_token_ids
from rl_lab.model.vlm_config import VISUAL_ROLES, HyVLMConfig
from rl_lab.model.weights import Shapes
from rl_lab.reading import read_object


def check_generation(folder: Path) -> None:
    """ValueError for a folder's settings of generation that transformers cannot read; there may be none."""
    path = folder / GENERATION_CONFIG_NAME
    if not path.is_file():
        return
    read_object(path)
    try:
        GenerationConfig.from_pretrained(folder)
    except (TypeError, OSError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def complete_vlm_config(config: HyVLMConfig, shapes: Shapes, folder: Path) -> HyVLMConfig:
    """The config with the vision sizes of the tensors and the token ids of the folder's tokenizer, changed in place.

    The vision section of released files is not read by the released code and may be stale; its head count is believed
    only if its width is that of the tensors. ValueError if the tensors are not those of a VLM.
    """
    vision = config.vision
    try:
        sizes = vision_shapes(shapes, "model.")
    except KeyError as error:
        raise ValueError(f"not a checkpoint of the vision-language model: tensor {error.args[0]} is missing") from error
    if vision.hidden_size != sizes["vision_width"]:
        vision.num_attention_heads = None
    vision.hidden_size, vision.num_hidden_layers = sizes["vision_width"], sizes["vision_depth"]
    vision.intermediate_size, vision.patch_size = sizes["vision_mlp"], sizes["vision_patch_size"]
    vision.position_grid = sizes["vision_position_grid"]
    if not set(VISUAL_ROLES) <= config.special_token_ids.keys():
        config.set_special_tokens(special_token_ids(load_tokenizer(folder)))
    config.check()
    return config
