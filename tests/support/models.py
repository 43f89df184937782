"""Small models with random weights, their checkpoints and inputs, the same for the same seed."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BatchFeature

from algos.auxiliary import THUMBNAIL, GlobalFeature, NextCode, PoseProbe, VisionHead, fit_components
from algos.batch import ObservationBatch
from algos.chunks import Timing
from rl_lab.config.section import ModelConfig
from rl_lab.model.chat import HunYuanVLMoTProcessor, ImageProcessor
from rl_lab.model.checkpoint import CheckpointInfo, initial_language_model, save_policy, vlm_config
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.tokenizer import load_tokenizer, save_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.records.action_batches import fit_processor
from rl_lab.records.types import Completion
from tests.support.episodes import episode

VLM = HunYuanVLMoTForConditionalGeneration
HUB_ID = "some-owner/some-model"


def make_policy(seed: int = 0, **overrides: Any) -> HyVLAPolicy:
    """A nano policy with random weights."""
    torch.manual_seed(seed)
    return HyVLAPolicy(preset_config("nano", **overrides))


def vlm_from_policy(policy: HyVLAPolicy) -> VLM:
    """The policy's vision-language side as a model of its own. The weights are shared, not copied."""
    with torch.device("meta"):
        vlm = VLM(vlm_config(policy.config))
    vlm.model = policy.model.vlm
    return vlm.train(policy.training)


def gradients_of(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Those of a loss by the parameters' names, of parameters that have one."""
    model.zero_grad()
    loss.backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def make_observations(policy: HyVLAPolicy, num: int, seed: int = 0) -> ObservationBatch:
    """Random images, states, and instructions of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    config = policy.config
    size, length = config.image_size, config.tokenizer_max_length
    images = torch.randint(0, 256, (num, config.num_cameras, 3, size, size), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(100, config.vlm_sizes.vocab, (num, length), generator=generator)
    lengths = torch.randint(1, length + 1, (num, 1), generator=generator)
    return ObservationBatch(images, torch.randn(num, 20, generator=generator), tokens, torch.arange(length) < lengths)


def make_heads(policy: HyVLAPolicy, truth_size: int) -> list[VisionHead]:
    """Every auxiliary loss, of codes and components at random."""
    hidden, generator = policy.config.vlm_sizes.hidden, torch.Generator().manual_seed(0)
    components = fit_components(torch.rand(9, 3 * THUMBNAIL**2, generator=generator))
    centres = torch.rand(5, 3 * policy.config.vision_patch_size**2, generator=generator)
    return [PoseProbe(hidden, truth_size, 0.5), NextCode(hidden, centres), GlobalFeature(hidden, *components)]


def save_nano_policy(folder: Path, seeds: Sequence[int] = (0,), steps: int = 0) -> Path:
    """A checkpoint of a nano policy, with the statistics of the episodes of these seeds."""
    policy = make_policy()
    processor = fit_processor(policy.config, [episode(seed) for seed in seeds], Timing(policy.config.n_action_steps))
    save_policy(folder, policy, processor, CheckpointInfo(weight_version=1, steps=steps))
    return folder


def save_nano_language_model(folder: Path) -> Path:
    """A checkpoint of a nano VLM."""
    initial_language_model(ModelConfig(), seed=0).save(folder, CheckpointInfo(1, 7))
    return folder


def make_vlm(preset: str = "nano", seed: int = 0) -> VLM:
    """The language side of a preset with random weights, norms and biases included: all of them must be served."""
    torch.manual_seed(seed)
    model = VLM(vlm_config(preset_config(preset)))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def save_vlm(model: VLM, folder: Path) -> Path:
    """A checkpoint folder of the VLM, with tokenizer and image processor."""
    model.save_pretrained(folder)
    make_processor(model).save_pretrained(folder)
    return folder


def make_processor(model: VLM) -> HunYuanVLMoTProcessor:
    """Tokenizer, chat template and an image processor that keeps small pictures small."""
    images = ImageProcessor(model.config.vision.patch_size, min_pixels=32 * 32, max_pixels=128 * 128)
    return HunYuanVLMoTProcessor(images, load_tokenizer())


def save_policy_of(model: VLM, preset: str, folder: Path) -> Path:
    """A policy's checkpoint folder whose language side is this VLM."""
    policy = HyVLAPolicy(preset_config(preset))
    policy.model.vlm.load_state_dict(model.model.state_dict())
    policy.save_pretrained(folder)
    save_tokenizer(load_tokenizer(), folder)
    return folder


def put_into_cache(folder: Path, cache: Path) -> dict[str, Any]:
    """A hub cache that holds the folder under `HUB_ID`; the options that make transformers read it."""
    commit = "0" * 40
    home = cache / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(folder, home / "snapshots" / commit)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(commit)
    return {"cache_dir": cache, "local_files_only": True}


def image_prompt(ids: dict[str, int]) -> list[int]:
    """An image as the chat template writes it."""
    return [ids[role] for role in ("vision_start", "image", "latent", "vision_end")]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random, uint8 [height, width, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


class Drawer:
    """Random words and pictures, the same for the same seed."""

    def __init__(self, seed: int = 0) -> None:
        self.generator = np.random.default_rng(seed)

    def words(self, count: int) -> list[int]:
        """Ids of ordinary tokens."""
        return self.generator.integers(100, 2000, count).tolist()

    def picture(self, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3]."""
        return self.generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def training_logprobs(
    model: VLM, completion: Completion, images: Sequence[np.ndarray], temperature: float = 1.0
) -> torch.Tensor:
    """Log-probability of each sampled token, [T], by one pass of the training model over prompt and answer."""
    processor = make_processor(model).image_processor
    done = [processor(image) for image in images]
    visual = {}
    if done:
        pixels = torch.from_numpy(np.concatenate([patches for patches, _ in done]))
        visual = {"pixel_values": pixels.to(model.dtype), "image_grid_thw": torch.tensor([grid for _, grid in done])}
    tokens = torch.tensor([completion.prompt_tokens + completion.tokens])
    logits = model(tokens, **visual).logits[0].float() / temperature
    # The engine never draws a patch token.
    ids = model.config.special_token_ids
    logits[:, [ids["image"], ids["video"]]] = -torch.inf
    before = logits[len(completion.prompt_tokens) - 1 : -1].log_softmax(-1)
    return before.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]


def differences(
    model: VLM, completion: Completion, images: Sequence[np.ndarray], temperature: float = 1.0
) -> torch.Tensor:
    """Absolute differences of the engine's and the training model's log-probabilities, [T]."""
    return (training_logprobs(model, completion, images, temperature) - torch.tensor(completion.logprobs)).abs()


def training_token_logprobs(model: VLM, inputs: BatchFeature, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probability of each of `tokens` [T] after the prompt of `inputs`, without temperature or excluded tokens."""
    whole = torch.cat([inputs["input_ids"], torch.tensor([list(tokens)])], dim=1)
    visual = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    before = model(whole, **visual).logits[0, -len(tokens) - 1 : -1].log_softmax(-1)
    return before.gather(1, whole[0, -len(tokens) :, None])[:, 0]
