"""Reading checkpoint folders: what the released config leaves out, and models whose weights fit.

A policy file written by the reference keeps the tied embedding under one of its two names and leaves out sizes that its
code hard-codes. Here the sizes come from the tensors, the token ids from the tokenizer, and a file that does not fit is
refused with everything that is wrong in one message; the reference would load it silently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn
from transformers.utils import CONFIG_NAME, logging

from rl_lab.model.config import HyVLAConfig
from rl_lab.model.stored_config import read_config_file
from rl_lab.model.tokenizer import load_tokenizer, special_token_ids
from rl_lab.model.weights import Shapes, check_finite, check_fit, stored_tensors

_TOWER = "visual.vision_tower."
_SIZED = {"patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2, "pos_embed": 3}
"""Tensors of the tower that sizes are read from, and their dimensions."""
POLICY_PREFIX = "model.dual_tower.vlm.model."
"""Where a policy keeps its vision-language model."""
_EXPERT_LAYER = "model.dual_tower.expert.model.layers.0."
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "norm_stats.pkl"]


def checkpoint_folder(name: str | Path, options: dict[str, Any]) -> Path:
    """Folder of a checkpoint: `name` itself, or the local copy of a hub id, which is fetched where it is missing.

    Takes the options of the hub out of `options` (`cache_dir`, `revision`, `local_files_only`, ...). ValueError for
    something that is neither a folder nor a hub id, or not in the cache when the hub may not be asked.
    """
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    if Path(name).is_dir():
        return Path(name)
    try:
        return Path(snapshot_download(str(name), allow_patterns=_HUB_FILES, **hub))
    except HFValidationError as error:
        raise ValueError(f"no checkpoint in {name}: give an existing folder or a hub id (owner/name)") from error
    except LocalEntryNotFoundError as error:
        raise ValueError(
            f"no checkpoint {name}: no such folder, and not in the hub cache; download it first"
        ) from error


def vision_shapes(shapes: Shapes, prefix: str) -> dict[str, int]:
    """Sizes of the vision tower that tensor shapes determine (all but the heads), under the names of the policy config.

    `prefix` is that of the vision-language model. KeyError for the tensor that is missing, ValueError for one that has
    another number of dimensions.
    """
    tower = prefix + _TOWER
    for name, rank in _SIZED.items():
        if len(shapes[tower + name]) != rank:
            raise ValueError(f"tensor {tower + name} has shape {shapes[tower + name]}; expected {rank} dimensions")
    width, _, patch_size, _ = shapes[tower + "patch_embed.proj.weight"]
    blocks = {match[1] for key in shapes if (match := re.match(re.escape(tower) + r"blocks\.(\d+)\.", key))}
    return {
        "vision_width": width,
        "vision_depth": len(blocks),
        "vision_mlp": shapes[tower + "blocks.0.mlp.fc1.weight"][0],
        "vision_patch_size": patch_size,
        "vision_position_grid": math.isqrt(shapes[tower + "pos_embed"][1]),
    }


def sizes_from_shapes(shapes: Shapes) -> dict[str, int]:
    """Config fields that tensor shapes determine: the vision tower (not its heads) and the expert's MLP."""
    try:
        expert, *_ = shapes[_EXPERT_LAYER + "mlp.gate_proj.weight"] or (0,)
        return vision_shapes(shapes, POLICY_PREFIX) | {"expert_intermediate_size": expert}
    except KeyError as error:
        raise ValueError(f"not a policy checkpoint: tensor {error.args[0]} is missing") from error


def _unstated(stated: Mapping[str, Any], shapes: Shapes, folder: Path) -> dict[str, Any]:
    """Config fields that a config with the fields `stated` leaves to tensor shapes and tokenizer."""
    fields: dict[str, Any] = dict(sizes_from_shapes(shapes))
    # The vision section of released configs is not read by the released code and may be stale: believe its head count
    # only if its width is that of the tensors.
    vision = (stated.get("vlm_config_dict") or {}).get("vision_config") or {}
    if vision.get("hidden_size") == fields["vision_width"] and "num_attention_heads" in vision:
        fields["vision_heads"] = vision["num_attention_heads"]
    if not stated.get("special_token_ids"):
        fields["special_token_ids"] = special_token_ids(load_tokenizer(folder))
    return {key: value for key, value in fields.items() if not stated.get(key)}


def read_config(folder: Path, shapes: Shapes) -> HyVLAConfig:
    """The folder's config, completed from tensor shapes and tokenizer where the file is silent."""
    stated = read_config_file(folder)
    HyVLAConfig.check_stored(stated, str(folder / CONFIG_NAME))
    config = HyVLAConfig.from_pretrained(folder, **_unstated(stated, shapes, folder))
    config.check()
    return config


def complete_config(config: HyVLAConfig, folder: Path, shapes: Shapes) -> HyVLAConfig:
    """A copy of the caller's config, completed likewise: fields at their default count as silent."""
    default = HyVLAConfig().to_dict()
    stated = {name: value for name, value in config.to_dict().items() if value != default.get(name)}
    completed = deepcopy(config)
    for name, value in _unstated(stated, shapes, folder).items():
        setattr(completed, name, value)
    completed.check()
    return completed


def check_weights(shapes: Shapes, make: Callable[[], nn.Module], tied: tuple[str, str]) -> None:
    """ValueError, listing the tensors, unless the model that `make` makes has these; it is made without memory."""
    with torch.device("meta"):
        expected = {key: tuple(value.shape) for key, value in make().state_dict().items()}
    check_fit(shapes, expected, tied)


def check_values(folder: Path, tied: tuple[str, str]) -> None:
    """ValueError for weights in files that are not finite, or hold two embeddings where the model has one."""
    check_finite(stored_tensors(folder), folder)
    both: list[Tensor] = [tensor for _, tensor in stored_tensors(folder, tied)]
    if len(both) == 2 and not torch.equal(*both):
        raise _untied(tied)


def _untied(tied: tuple[str, str]) -> ValueError:
    return ValueError(f"weights do not fit the model; {tied[0]} and {tied[1]} must be equal: the embedding is tied")


def check_tied(model: nn.Module, tied: tuple[str, str]) -> None:
    """ValueError if a loaded file held both names of the tied embedding with different values."""
    if model.get_parameter(tied[0]) is not model.get_parameter(tied[1]):
        raise _untied(tied)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Workers load weights often; one bar each time would bury the run's own."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
