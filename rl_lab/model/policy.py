"""The policy: `algos.objective.FlowPolicy` on the released weights' names.

`predict_action` leads from a batch as on the released model cards to a chunk of actions.

Letters: B observations, V cameras, S image side, T language tokens, N rows of actions, C chunk, A padded action size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput, can_return_tuple

from algos.batch import ObservationBatch, send
from algos.flow_matching import chunk_loss, interpolate, loss_weight, velocity_from_clean, velocity_target
from rl_lab.model import action_expert
from rl_lab.model.action_expert import ActionModel, Prefix
from rl_lab.model.backbone import VisionLanguageMixin, VisionLanguageModel, initialize
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.layout import (
    TEXT_ROLES,
    PrefixLayout,
    let_padding_see_itself,
    prefix_layout,
    prefix_mask,
    prefix_positions,
    prefix_valid,
    token_ids,
)
from rl_lab.model.loading import CheckedModel, Shapes, complete_config, read_config
from rl_lab.model.mot import attention_bias, run_prefix
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.vision import History, scale_pixels

EMBEDDING = "model.dual_tower.vlm.model.language_model.model.embed_tokens.weight"

OUTPUT_EMBEDDING = "model.dual_tower.vlm.model.language_model.lm_head.weight"


@dataclass
class FlowOutput(ModelOutput):
    """What the policy's forward pass returns."""

    loss: Tensor | None = None
    """Mean over the batch."""
    losses: Tensor | None = None
    """Of each row, float32 [B]."""


class HyVLAPolicy(VisionLanguageMixin, CheckedModel[HyVLAConfig]):
    """Vision tower, language tower and action expert in one model."""

    config_class = HyVLAConfig
    config: HyVLAConfig
    # The released policy files keep the tied weight under the output embedding's name.
    _tied_weights_keys = {EMBEDDING: OUTPUT_EMBEDDING}
    tied = (EMBEDDING, OUTPUT_EMBEDDING)

    def __init__(self, config: HyVLAConfig) -> None:
        super().__init__(config)
        if not set(TEXT_ROLES) <= config.special_token_ids.keys():
            raise ValueError(
                f"special_token_ids must hold {', '.join(TEXT_ROLES)}, not {sorted(config.special_token_ids)}; "
                "look them up with rl_lab.model.tokenizer.special_token_ids"
            )
        self.model = ActionModel(config)
        self.post_init()
        self._freeze()

    @classmethod
    def complete(cls, config: HyVLAConfig | None, shapes: Shapes, folder: Path) -> HyVLAConfig:
        """See `CheckedModel`."""
        return complete_config(config, folder, shapes) if config else read_config(folder, shapes)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Self:
        """See `CheckedModel`; what is in no group is frozen."""
        policy = super().from_pretrained(*args, **kwargs)
        policy._freeze()  # loading replaces the parameters
        return policy

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config.vlm_sizes.init_std)

    def _freeze(self) -> None:
        """Freeze what is in no group: what the config's flags rule out, and what is kept for round trips only."""
        trainable = {id(parameter) for group in self.parameter_groups().values() for parameter in group}
        for parameter in self.parameters():
            if id(parameter) not in trainable:
                parameter.requires_grad_(False)

    @property
    def vision_language_model(self) -> VisionLanguageModel:
        """See `VisionLanguageMixin`."""
        return self.model.vlm

    def resize_token_embeddings(self, *_: Any, **__: Any) -> nn.Embedding:
        """Refused: ValueError."""
        raise ValueError(
            "a policy keeps the vocabulary of its checkpoint; resize the embedding of a "
            "HunYuanVLMoTForConditionalGeneration and make the policy from it (rl_lab.model.checkpoint)"
        )

    @property
    def chunk_size(self) -> int:
        """Action tokens C."""
        return self.config.n_action_steps

    @property
    def action_dim(self) -> int:
        """Padded action size A."""
        return self.config.max_action_dim

    @property
    def used_dim(self) -> int:
        """Numbers of an encoded command, of A: 20 of two arms."""
        return self.config.layout.encoded_action_dim

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters that the config lets train, in groups: vision (tower and merger), vlm, expert (with the
        projections).

        The expert's text route and its query and key norms are in no group: nothing reads them. A group that
        `train_expert_only` or `freeze_vision_encoder` rules out is empty; without `train_state_proj` the projection of
        the state is left out.
        """
        model, config = self.model, self.config
        see = not (config.freeze_vision_encoder or config.train_expert_only)
        held = {"dual_tower"} if config.train_state_proj else {"dual_tower", "state_proj"}
        projections = [child for name, child in model.named_children() if name not in held]
        used = [parameter for name, parameter in model.expert.layers.named_parameters() if "_v." in name]
        return {
            "vision": list(model.vlm.visual.parameters()) if see else [],
            "vlm": [] if config.train_expert_only else list(model.vlm.language_model.parameters()),
            "expert": used
            + list(model.expert.norm.parameters())
            + [parameter for module in projections for parameter in module.parameters()],
        }

    def _layout(self, tokens: Tensor) -> PrefixLayout:
        return prefix_layout(self.config.num_cameras, self.config.token_grid, tokens.shape[1], tokens.device)

    def embed_images(self, images: Tensor) -> Tensor:
        """Tokens [B, V * g * g, D] of images [B, <= V, 3, S, S] or [B, <= V, K, 3, S, S] with the current frame last.

        uint8 or in [0, 1]. Absent cameras are black. Without the memory encoder only the current frame is read.
        """
        present, size = images.shape[1], self.config.image_size
        absent = self.config.num_cameras - present
        fits = images.ndim in (5, 6) and images.shape[-3:] == (3, size, size)
        if not fits or not 0 <= absent <= self.config.empty_cameras:
            raise ValueError(
                f"images have shape {tuple(images.shape)}; expected [B, {self.config.num_cameras}, 3, {size}, {size}] "
                f"or [B, {self.config.num_cameras}, K, 3, {size}, {size}] "
                f"with at most {self.config.empty_cameras} trailing cameras absent"
            )
        frames = images if images.ndim == 6 else images[:, :, None]
        if not self.config.use_video_encoder:
            frames = frames[:, :, -1:]
        pixels = scale_pixels(frames, self.dtype)
        if absent:
            pixels = F.pad(pixels, (0, 0) * 4 + (0, absent), value=-1.0)
        history = History(pixels.shape[2], self.config.spacetime_layer_stride, self.config.past_drop_layer)
        return self.model.vlm.visual(pixels.flatten(0, 2), history).unflatten(0, (len(images), -1)).flatten(1, 2)

    def embed_text(self, layout: PrefixLayout, tokens: Tensor) -> Tensor:
        """Embeddings [B, Pt, D] of the prefix tokens with text weights, in stored order; `tokens` is [B, T]."""
        ids = self.config.special_token_ids
        fixed = token_ids(tuple(ids[role] for role in layout.text_roles), tokens.device)
        return self.model.vlm.language_model.model.embed_tokens(
            torch.cat([fixed.expand(len(tokens), -1), tokens], dim=1)
        )

    @overload
    def encode(self, observation: ObservationBatch, return_vision: Literal[False] = False) -> Prefix: ...

    @overload
    def encode(self, observation: ObservationBatch, return_vision: Literal[True]) -> tuple[Prefix, Tensor]: ...

    def encode(self, observation: ObservationBatch, return_vision: bool = False) -> Prefix | tuple[Prefix, Tensor]:
        """Vision tower and language tower, once: keys and values of every layer.

        With `return_vision` also the input of the last language layer at the patch tokens, [B, V, g * g, D], for
        auxiliary losses.
        """
        layout = self._layout(observation.tokens)
        vision = self.embed_images(observation.images)
        text = self.embed_text(layout, observation.tokens)
        valid = prefix_valid(layout, observation.token_mask, observation.images.shape[1])
        mask = let_padding_see_itself(prefix_mask(layout, valid, self.config.visual_segment_isolation))
        cache, features = run_prefix(
            self.model.vlm.language_model.model,
            vision,
            text,
            prefix_positions(layout, valid),
            attention_bias(mask, vision.dtype),
        )
        keys, values = cache.stacked()
        prefix = Prefix(keys, values, valid, observation.state)
        return (prefix, features.unflatten(1, (self.config.num_cameras, -1))) if return_vision else prefix

    def _velocity(self, past: Prefix, x_t: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
        output = self.model.expert_output(past, x_t, time, rows)
        if self.config.prediction == "velocity":
            return output
        # Padding is zero in every action, so the clean chunk is known there and sampling stays on the trained path.
        used = self.used_dim
        clean = F.pad(output[..., :used], (0, self.action_dim - used))
        return velocity_from_clean(x_t, clean, time, action_expert.SMALLEST_TIME)

    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor, rows: Tensor | None = None) -> Tensor:
        """v(x_t, t) of noisy chunks [N, C, A] at times [N], float32 [N, C, A]; row i reads prefix row `rows[i]`."""
        return self._velocity(self.model.with_state(prefix), x_t, time, rows)

    def flow_losses(
        self, prefix: Prefix, actions: Tensor, noise: Tensor, time: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """Flow-matching loss of each row, float32 [N]: the weighted squared error, mean over chunk and the D used dims.

        Normalised actions [N, C, D], noise [N, C, A], time [N]; row i reads prefix row `rows[i]` (default i).
        """
        padded = F.pad(actions, (0, self.action_dim - actions.shape[-1]))
        past = self.model.with_state(prefix)
        output = self.model.expert_output(past, interpolate(padded, noise, time), time, rows)
        clip = self.config.loss_weight_clip
        if self.config.prediction == "velocity":
            return chunk_loss(output, velocity_target(padded, noise), loss_weight(time, clip), self.used_dim)
        return chunk_loss(output, padded, action_expert.clean_loss_weight(time, clip), self.used_dim)

    @can_return_tuple
    def forward(
        self,
        images: Tensor,
        state: Tensor,
        tokens: Tensor,
        token_mask: Tensor,
        actions: Tensor,
        noise: Tensor | None = None,
        time: Tensor | None = None,
    ) -> FlowOutput:
        """Flow-matching loss of a batch, for what wraps a module: transformers' Trainer, DDP, PEFT.

        The fields of an `algos.batch.ObservationBatch` on the model's device and the chunks to imitate, normalised
        [B, C, 20]. Noise [B, C, A] and time [B] that are not given are drawn from torch's own random state.
        """
        rows, generator = len(actions), torch.default_generator
        noise = self.sample_noise(rows, generator) if noise is None else noise
        time = self.sample_time(rows, generator) if time is None else time
        prefix = self.encode(ObservationBatch(images, state, tokens, token_mask))
        losses = self.flow_losses(prefix, actions, noise, time)
        return FlowOutput(loss=losses.mean(), losses=losses)

    @property
    def num_steps(self) -> int:
        """Euler steps of the sampler, where no other number is given."""
        return self.config.num_steps

    @torch.no_grad()
    def sample_actions(self, prefix: Prefix, noise: Tensor, num_steps: int | None = None) -> Tensor:
        """Euler steps from `noise` [B, C, A] at t = 1 to a normalised chunk [B, C, D]."""
        num_steps = num_steps or self.num_steps
        past = self.model.with_state(prefix)
        x_t = noise
        for time in action_expert.euler_times(num_steps):
            x_t = x_t - self._velocity(past, x_t, torch.full((len(x_t),), time, device=x_t.device)) / num_steps
        return x_t[..., : self.used_dim]

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        """Training times of the config's density, [num]."""
        return send(action_expert.sample_time(self.config.time_density, num, generator), self.device)

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        """Standard normal noise of all padded dims, [num, C, A]; of a host generator the same on every device."""
        shape = (num, self.chunk_size, self.action_dim)
        return send(torch.randn(shape, generator=generator, device=generator.device), self.device)


@torch.inference_mode()
def predict_action(
    policy: HyVLAPolicy,
    processor: PolicyProcessor,
    batch: Mapping[str, Any],
    *,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Normalised action chunks [B, C, D], float32, of a batch with the released names (`PolicyProcessor.observe`).

    Starts from `noise` [B, C, A], else from `generator`, else from torch's own random state. The batch may be on any
    device. ValueError for a batch with other keys.

        policy = HyVLAPolicy.from_pretrained(folder).to("cuda", torch.bfloat16).eval()
        processor = PolicyProcessor.from_pretrained(folder)
        views = torch.zeros(1, 6, 3, 480, 640)  # [B, K, C, H, W] in [0, 1]; K = 6 frames, the current one last
        batch = {
            "observation.images.top_head": views,
            "observation.images.hand_left": views,
            "observation.images.hand_right": views,
            "observation.state": processor.normalize_state(poses),  # poses [B, 16]: xyz, quaternion wxyz, gripper
            "task": ["pick up the bottle"],
        }
        chunk = predict_action(policy, processor, batch)
        commands = processor.decode(chunk.cpu().numpy(), poses)  # absolute poses [B, H, 16]
    """
    observation = processor.observe(batch).to(policy.device)
    if noise is None:
        noise = policy.sample_noise(len(observation), generator or torch.default_generator)
    return policy.sample_actions(policy.encode(observation), noise.to(policy.device))
