"""Reading checkpoint folders: what the released config leaves out or has wrong, and models whose weights fit.

A folder has one file, `model.safetensors`, or shards that `model.safetensors.index.json` names. A policy file written
by the reference keeps the tied embedding under one of its two names and leaves out sizes that its code hard-codes. Here
the sizes come from the tensors, the token ids from the tokenizer, and a file that does not fit is refused with
everything that is wrong in one message; the reference would load it silently.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, logging

from rl_lab.common.reading import read_as, read_object
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.tokenizer import load_tokenizer, special_token_ids
from rl_lab.model.vlm_config import VISUAL_ROLES, HyVLMConfig, read_config_file

IGNORED_KEYS = (
    r"\.visual\.vision_tower\.(attn_pool|norm)\b",
    r"\.expert\.(model\.embed_tokens|lm_head)\.",
)
"""Tensors that some published files hold and nothing uses: a pooling head and final norm of the vision tower, the text
embeddings of an untrained expert."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Types that weights may have, as safetensors names them."""

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class ShardIndex:
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]
    """Tensor -> file of the folder."""
    metadata: dict[str, Any] = field(default_factory=dict)


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """The folder's safetensors files: the whole one, or the shards of the index. ValueError naming what is missing.

    A `variant` is a part of the files' names, `model.VARIANT.safetensors`.
    """
    whole, index = (
        folder / (name if variant is None else f"{Path(name).stem}.{variant}{Path(name).suffix}")
        for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    )
    if whole.is_file():
        return [whole]
    if not index.is_file():
        raise ValueError(f"no weights in {folder}: {whole.name} is missing")
    shards = sorted(set(read_as(index, ShardIndex).weight_map.values()))
    missing = [shard for shard in shards if Path(shard).name != shard or not (folder / shard).is_file()]
    if missing or not shards:
        named = ", ".join(missing) or "no file"
        raise ValueError(f"no weights in {folder}: the index names {named}, which is missing")
    return [folder / shard for shard in shards]


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, its header read and checked against its length. ValueError for one that is damaged."""
    try:
        with safe_open(file, framework="pt") as handle:
            yield handle
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is damaged: {error}; copy it again") from error


def check_headers(folder: Path) -> None:
    """ValueError for safetensors files that are missing or damaged, of any model."""
    for file in weight_files(folder):
        with opened(file):
            pass


def checkpoint_shapes(folder: Path, variant: str | None = None) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, from their headers. ValueError for integers."""
    shapes: Shapes = {}
    for file in weight_files(folder, variant):
        with opened(file) as handle:
            for key in handle.keys():  # noqa: SIM118
                header = handle.get_slice(key)
                if header.get_dtype() not in FLOATS:
                    raise ValueError(f"tensor {key} of {file} is of type {header.get_dtype()}, not {', '.join(FLOATS)}")
                shapes[key] = tuple(header.get_shape())
    return shapes


def stored_tensors(
    folder: Path, names: Container[str] | None = None, variant: str | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Name and values of the tensors in the folder's safetensors files, or of those named, one at a time in memory."""
    for file in weight_files(folder, variant):
        with opened(file) as handle:
            for key in handle.keys():  # noqa: SIM118
                if names is None or key in names:
                    yield key, handle.get_tensor(key)


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: Path | str) -> None:
    """ValueError, naming the tensor, for weights that are not finite."""
    for name, tensor in tensors:
        if not tensor.is_floating_point():
            continue
        # An extreme that is finite says the same of all numbers, and needs no copy of them.
        if tensor.numel() and not all(bool(torch.isfinite(end)) for end in torch.aminmax(tensor.detach())):
            count = int((~torch.isfinite(tensor)).sum())
            raise ValueError(
                f"weights in {where} are not finite: {name} has {count} of {tensor.numel()} numbers that are NaN or "
                "infinite; copy the file again, or take an earlier checkpoint"
            )


NAMED = 4
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

    Takes the options of the hub out of `options` (`cache_dir`, `revision`, `local_files_only`, ...), and the
    `subfolder` that the files are in. ValueError for something that is neither a folder nor a hub id, or not in the
    cache when the hub may not be asked.
    """
    hub = {key: options.pop(key) for key in _HUB_OPTIONS if key in options}
    subfolder = options.pop("subfolder", None) or "."
    if Path(name).is_dir():
        return Path(name) / subfolder
    try:
        files = [(Path(subfolder) / pattern).as_posix() for pattern in _HUB_FILES]
        return Path(snapshot_download(str(name), allow_patterns=files, **hub)) / subfolder
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


def read_config(folder: Path, shapes: Shapes) -> HyVLAConfig:
    """The folder's config, completed from tensor shapes and tokenizer where the file is silent."""
    stated = read_config_file(folder)
    HyVLAConfig.check_stored(stated, str(folder / CONFIG_NAME))
    config = HyVLAConfig.from_pretrained(folder, **_unstated(stated, shapes, folder))
    config.check()
    return config


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


Config = TypeVar("Config", bound=PreTrainedConfig)


class CheckedModel(PreTrainedModel, Generic[Config]):
    """A model whose checkpoints must fit it, tensor by tensor, and be finite."""

    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _keys_to_ignore_on_load_unexpected = list(IGNORED_KEYS)
    tied: ClassVar[tuple[str, str]]
    """Names of the tied embedding."""

    @classmethod
    def complete(cls, config: Config | None, shapes: Shapes, folder: Path) -> Config:
        """The folder's config, or this one, completed from what the folder holds."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(  # type: ignore[override]  # weights are checked strictly: no other way to read them
        cls, pretrained_model_name_or_path: str | Path, *, config: Config | str | Path | None = None, **kwargs: Any
    ) -> Any:
        """Load a checkpoint folder or hub id, ours or released (`dtype=` as in transformers, default: as stored).

        Options are transformers'; `output_loading_info` gives the model and what was found, fields of the config
        replace those of the file. ValueError, naming the tensors, if the weights do not fit or are not finite.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path, kwargs)
        variant, fields, kind = kwargs.get("variant"), cls._config_fields(kwargs), cast(Any, cls.config_class)
        given = kind.from_pretrained(config) if isinstance(config, str | Path) else config
        fitting = cls.fitting_config(folder, given, variant, fields)
        with no_progress_bars():
            loaded: Any = super().from_pretrained(folder, config=fitting, **kwargs)
        model = loaded[0] if kwargs.get("output_loading_info") else loaded
        check_tied(model, cls.tied)
        tensors = model.state_dict()
        offloaded = {name for name, tensor in tensors.items() if tensor.is_meta}
        check_finite(((name, tensors[name]) for name in tensors if name not in offloaded), folder)
        check_finite(stored_tensors(folder, offloaded, variant), folder)
        return loaded

    @classmethod
    def _config_fields(cls, options: dict[str, Any]) -> dict[str, Any]:
        """Options that are fields of the config, taken out of `options`; loading itself reads the dtype."""
        fields = vars(cast(Any, cls.config_class)()).keys() | {"output_attentions"}
        return {name: options.pop(name) for name in list(options) if name in fields - {"dtype"}}

    @classmethod
    def fitting_config(
        cls,
        folder: Path,
        config: Config | None = None,
        variant: str | None = None,
        fields: dict[str, Any] | None = None,
    ) -> Config:
        """The folder's config, or this one, completed, with other values of `fields`. ValueError if the headers of the
        weights do not fit."""
        found = checkpoint_shapes(folder, variant)
        config = cls.complete(config, found, folder)
        for name, value in (fields or {}).items():
            setattr(config, name, value)
        check_weights(found, lambda: cls(config), cls.tied)
        return config

    @classmethod
    def check_stored(cls, folder: Path) -> Config:
        """The folder's config; ValueError for what `from_pretrained` would refuse. The model is not made."""
        config = cls.fitting_config(folder)
        check_values(folder, cls.tied)
        return config

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, generation_config.json (where it generates) and model.safetensors, with released names."""
        with no_progress_bars():
            super().save_pretrained(folder, **kwargs)
