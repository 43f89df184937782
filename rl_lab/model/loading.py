"""Reading checkpoint folders: what the released config leaves out, and a strict check of keys and shapes.

A policy file written by the reference keeps the tied embedding under one of its two names and leaves out sizes that its
code hard-codes. Here the sizes come from the tensors, the token ids from the tokenizer, and a file that does not fit is
refused with everything that is wrong in one message; the reference would load it silently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from rl_lab.model.config import HyVLAConfig
from rl_lab.model.tokenizer import load_tokenizer, special_token_ids

IGNORED_KEYS = (
    r"\.visual\.vision_tower\.(attn_pool|norm)\b",
    r"\.expert\.(model\.embed_tokens|lm_head)\.",
)
"""Tensors that some published files hold and nothing uses: a pooling head and final norm of the vision tower, the text
embeddings of an untrained expert."""

_TOWER = "visual.vision_tower."
POLICY_PREFIX = "model.dual_tower.vlm.model."
"""Where a policy keeps its vision-language model."""
_EXPERT_LAYER = "model.dual_tower.expert.model.layers.0."
_HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "norm_stats.pkl"]
Shapes = dict[str, tuple[int, ...]]


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


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: the whole one, or the shards of the index. ValueError naming what is missing."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not index.is_file():
        raise ValueError(f"no weights in {folder}: {SAFE_WEIGHTS_NAME} is missing")
    shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    missing = [shard for shard in shards if not (folder / shard).is_file()]
    if missing:
        raise ValueError(f"no weights in {folder}: the index names {', '.join(missing)}, which is missing")
    return [folder / shard for shard in shards]


def checkpoint_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, from their headers."""
    shapes: Shapes = {}
    for file in weight_files(folder):
        try:
            with safe_open(file, framework="pt") as handle:
                shapes |= {key: tuple(handle.get_slice(key).get_shape()) for key in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is damaged: {error}; copy it again") from error
    return shapes


def vision_shapes(shapes: Shapes, prefix: str) -> dict[str, int]:
    """Sizes of the vision tower that tensor shapes determine (all but the heads), under the names of the policy config.

    `prefix` is that of the vision-language model. KeyError for the tensor that is missing.
    """
    tower = prefix + _TOWER
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
        expert = {"expert_intermediate_size": shapes[_EXPERT_LAYER + "mlp.gate_proj.weight"][0]}
        return vision_shapes(shapes, POLICY_PREFIX) | expert
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
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"no checkpoint in {folder}: config.json is missing")
    config = HyVLAConfig.from_pretrained(folder, **_unstated(json.loads(path.read_text()), shapes, folder))
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


NAMED = 12
"""Tensors that a message lists of each kind of trouble."""


def check_fit(found: Shapes, expected: Shapes, tied: tuple[str, str]) -> None:
    """ValueError naming missing, unexpected and wrongly shaped tensors. One name of the tied embedding is enough."""
    found = {key: shape for key, shape in found.items() if not any(re.search(rule, key) for rule in IGNORED_KEYS)}
    missing = sorted(expected.keys() - found.keys())
    if any(name in found for name in tied):
        missing = [key for key in missing if key not in tied]
    problems = {
        "missing": missing,
        "unexpected": sorted(found.keys() - expected.keys()),
        "of another shape": [
            f"{key} ({found[key]}, the config asks for {shape})"
            for key, shape in sorted(expected.items())
            if found.get(key, shape) != shape
        ],
    }
    lines = [f"{len(keys)} tensors {what}: {_named(keys)}" for what, keys in problems.items() if keys]
    if lines:
        raise ValueError("weights do not fit the model; " + "; ".join(lines))


def _named(keys: Sequence[str]) -> str:
    """The first of them, and how many more there are: another model's weights differ in every tensor."""
    more = len(keys) - NAMED
    return ", ".join(keys[:NAMED]) + (f" and {more} more" if more > 0 else "")


def check_tied(model: nn.Module, tied: tuple[str, str]) -> None:
    """ValueError if a loaded file held both names of the tied embedding with different values."""
    if model.get_parameter(tied[0]) is not model.get_parameter(tied[1]):
        raise ValueError(f"weights do not fit the model; {tied[0]} and {tied[1]} must be equal: the embedding is tied")


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
