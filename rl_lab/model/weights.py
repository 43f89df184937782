"""What the safetensors files of a checkpoint folder hold, and whether that is what a model asks for.

A folder has one file, `model.safetensors`, or shards that `model.safetensors.index.json` names.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from rl_lab.reading import read_as

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


def weight_files(folder: Path) -> list[Path]:
    """The folder's safetensors files: the whole one, or the shards of the index. ValueError naming what is missing."""
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if (folder / SAFE_WEIGHTS_NAME).is_file():
        return [folder / SAFE_WEIGHTS_NAME]
    if not index.is_file():
        raise ValueError(f"no weights in {folder}: {SAFE_WEIGHTS_NAME} is missing")
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


def checkpoint_shapes(folder: Path) -> Shapes:
    """Shape of every tensor in the folder's safetensors files, from their headers. ValueError for integers."""
    shapes: Shapes = {}
    for file in weight_files(folder):
        with opened(file) as handle:
            for key in handle.keys():  # noqa: SIM118
                header = handle.get_slice(key)
                if header.get_dtype() not in FLOATS:
                    raise ValueError(f"tensor {key} of {file} is of type {header.get_dtype()}, not {', '.join(FLOATS)}")
                shapes[key] = tuple(header.get_shape())
    return shapes


def stored_tensors(folder: Path, names: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Name and values of the tensors in the folder's safetensors files, or of those named, one at a time in memory."""
    for file in weight_files(folder):
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
