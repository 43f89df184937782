"""Reading checkpoints of the vision-language model: hub ids, and what the released config leaves out or has wrong."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from rl_lab.model.loading import Shapes
from rl_lab.model.tokenizer import load_tokenizer, special_token_ids
from rl_lab.model.vlm_config import VISUAL_ROLES, HyVLMConfig

_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]
_TOWER = "model.visual.vision_tower."


def checkpoint_folder(name: str | Path, options: dict[str, Any]) -> Path:
    """Folder of a checkpoint: `name` itself, or the local copy of a hub id, which is fetched where it is missing.

    Takes the options of the hub out of `options` (`cache_dir`, `revision`, `local_files_only`, ...).
    """
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    if Path(name).is_dir():
        return Path(name)
    return Path(snapshot_download(str(name), allow_patterns=_FILES, **hub))


def complete_vlm_config(config: HyVLMConfig, shapes: Shapes, folder: Path) -> HyVLMConfig:
    """The config with the vision sizes of the tensors and the token ids of the folder's tokenizer, changed in place.

    The vision section of released files is not read by the released code and may be stale; its head count is believed
    only if its width is that of the tensors. ValueError if the tensors are not those of a VLM.
    """
    vision = config.vision
    try:
        width, _, patch_size, _ = shapes[_TOWER + "patch_embed.proj.weight"]
        if vision.hidden_size != width:
            vision.num_attention_heads = type(vision).num_attention_heads
        vision.hidden_size, vision.patch_size = width, patch_size
        vision.intermediate_size = shapes[_TOWER + "blocks.0.mlp.fc1.weight"][0]
        vision.position_grid = math.isqrt(shapes[_TOWER + "pos_embed"][1])
    except KeyError as error:
        raise ValueError(f"not a checkpoint of the vision-language model: tensor {error.args[0]} is missing") from error
    blocks = {match[1] for key in shapes if (match := re.match(re.escape(_TOWER) + r"blocks\.(\d+)\.", key))}
    vision.num_hidden_layers = len(blocks)
    if not set(VISUAL_ROLES) <= config.special_token_ids.keys():
        config.set_special_tokens(special_token_ids(load_tokenizer(folder)))
    config.check()
    return config
