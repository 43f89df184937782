"""The golden set of numbers: outputs of the reference implementation on tiny random weights (see its README).

`MOT_GOLDEN` points the same tests at another set, of other sizes. A missing folder fails; it never skips.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from algos.batch import ObservationBatch
from rl_lab.benchmarks.direct import padded
from rl_lab.common.files import ROOT
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.processor import PolicyProcessor, resize_with_padding
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration

FOLDER = Path(os.environ.get("MOT_GOLDEN") or ROOT / "tests" / "golden" / "mot")
SINGLE_FRAME = ("policy_k1_patchmask", "policy_k1_isolation", "policy_k1_missing_camera")
HISTORY = ("policy_k6_isolation", "policy_k6_patchmask")
FULL = ("policy_k1_patchmask", "policy_k6_isolation")
"""Cases that record every intermediate tensor, and the gradients."""
LANGUAGE = ("vlm_text", "vlm_image2", "vlm_image2_adjacent", "vlm_video", "vlm_batch2_leftpad")
VISUAL = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
HIDDEN: dict[str, Any] = {"atol": 1e-4, "rtol": 1e-4}
ACTIONS: dict[str, Any] = {"atol": 2e-5, "rtol": 0.0}
LOSS: dict[str, Any] = {"atol": 0.0, "rtol": 1e-5}


@dataclass(frozen=True)
class Case:
    """One policy case: the model with the case's switches, its inputs as a batch, and the expected tensors."""

    name: str
    policy: HyVLAPolicy
    overrides: dict[str, Any]
    """The case's switches of the policy's config."""
    batch: ObservationBatch
    tensors: dict[str, Tensor]
    task: list[str]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def golden_path(name: str) -> Path:
    """A file of the set; FileNotFoundError if the set is not there."""
    path = FOLDER / name
    if not path.exists():
        raise FileNotFoundError(f"golden data {path} is missing; set MOT_GOLDEN to a folder that holds it")
    return path


def load_policy(**overrides: Any) -> HyVLAPolicy:
    """The golden policy in float32 with config fields replaced."""
    policy = HyVLAPolicy.from_pretrained(golden_path("policy"), dtype=torch.float32)
    for name, value in overrides.items():
        setattr(policy.config, name, value)
    return policy.eval()


def load_processor() -> PolicyProcessor:
    """The processor of the golden policy (it comes without statistics)."""
    return PolicyProcessor.from_pretrained(golden_path("policy"))


def fit(images: Tensor, size: int) -> Tensor:
    """uint8 images [..., 3, H, W] in the policy's square, in [0, 1]."""
    fitted = resize_with_padding(images.flatten(0, -4).float() / 255, size, size)
    return fitted.unflatten(0, images.shape[:-3])


@cache
def load_case(name: str) -> Case:
    """A policy case, read once; gradients are off because the model is shared."""
    tensors = load_file(golden_path(f"{name}.safetensors"))
    about = json.loads(golden_path(f"{name}.json").read_text())
    overrides = about["config_overrides"]
    policy = load_policy(**overrides).requires_grad_(False)
    processor = load_processor()
    cameras = [key.removeprefix("observation.images.") for key in policy.config.image_features]
    present = [tensors[f"in.image_uint8.{camera}"] for camera in cameras if f"in.image_uint8.{camera}" in tensors]
    size = policy.config.image_size
    images = torch.stack([fit(image, size) for image in present], dim=1)
    tokens, mask = processor.tokenize(about["task"])
    batch = ObservationBatch(images, tensors["in.state"], tokens, mask)
    batch = padded(batch, policy.config.tokenizer_max_length, processor.tokenizer.pad_token_id)
    return Case(name, policy, overrides, batch, tensors, about["task"])


@cache
def load_language_model() -> HunYuanVLMoTForConditionalGeneration:
    """The golden vision-language model in float32, read once; gradients are off because it is shared."""
    found = HunYuanVLMoTForConditionalGeneration.from_pretrained(golden_path("vlm"), dtype=torch.float32)
    return found.eval().requires_grad_(False)


@cache
def language_tensors(name: str) -> dict[str, Tensor]:
    """Inputs and expected tensors of one of `LANGUAGE`, read once."""
    return load_file(golden_path(f"{name}.safetensors"))


def language_inputs(case: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of the language model's `forward` that a case holds."""
    names = ("input_ids", "attention_mask", *VISUAL)
    given = {name: case[f"in.{name}"] for name in names if f"in.{name}" in case}
    return {name: x.float() if x.dtype == torch.float16 else x for name, x in given.items()}


def valid_tokens(case: Mapping[str, Tensor]) -> Tensor:
    """bool [B, S]."""
    return case.get("in.attention_mask", torch.ones_like(case["in.input_ids"])).bool()


def load_transforms() -> dict[str, np.ndarray]:
    """Arrays of `transforms.npz`."""
    with np.load(golden_path("transforms.npz")) as arrays:
        return dict(arrays)
