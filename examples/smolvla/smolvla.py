"""LeRobot's SmolVLA as a policy of one's own: its `VLAFlowMatching`, run by the lab's data, objectives and evaluation.

python -m rl_lab.check policy examples/smolvla/smolvla.py:SmolVLA
python -m rl_lab.run examples/smolvla/smolvla.yaml

In an environment of its own, docs/policies.md. Letters: B observations, V cameras, T tokens of the
prefix, L layers, H heads, N rows, C commands of a chunk, D numbers of one, A of one with padding (32).
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import VLAFlowMatching, make_att_2d_masks, resize_with_pad
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, SmolVLMConfig, SmolVLMProcessor
from transformers.models.smolvlm.image_processing_smolvlm import SmolVLMImageProcessor
from transformers.models.smolvlm.video_processing_smolvlm import SmolVLMVideoProcessor

from algos.batch import ObservationBatch, TensorRecord, send
from algos.policy import FlowModel, PolicySpec
from rl_lab.model.tokenizer import load_tokenizer

CACHED = ("key_states", "value_states")
"""What LeRobot calls what it keeps of a layer."""


@dataclass
class Prefix(TensorRecord):
    """What the language model keeps of an observation."""

    keys: Tensor
    """[B, L, T, H, d]."""
    values: Tensor
    """As keys."""
    valid: Tensor
    """False at padding, bool [B, T]."""


class SmolVLA(FlowModel):
    """Without `vlm` (a folder or name of SmolVLM with its tokenizer) a small one; random weights, or those of the
    folder `weights` that LeRobot wrote."""

    def __init__(
        self, spec: PolicySpec, vlm: str = "", weights: str = "", layers: int = 2, image_size: int = 64
    ) -> None:
        super().__init__(spec)
        if spec.frames > 1:
            raise ValueError(f"SmolVLA sees one frame of each camera, but memory.frames is {spec.frames}")
        with tempfile.TemporaryDirectory() as folder:
            if not vlm:
                write_small(Path(folder), layers, image_size)
            self.model = VLAFlowMatching(
                SmolVLAConfig(
                    vlm_model_name=vlm or folder,
                    num_vlm_layers=layers,
                    resize_imgs_with_padding=(image_size, image_size),
                    chunk_size=spec.chunk_size,
                    n_action_steps=spec.chunk_size,
                    train_expert_only=False,
                    freeze_vision_encoder=False,
                    device="cpu",
                )
            )
        self.num_steps = self.model.config.num_steps
        self.tokenizer = self.model.vlm_with_expert.processor.tokenizer
        if weights:
            found = load_file(Path(weights) / "model.safetensors")
            own = {name.removeprefix("model."): value for name, value in found.items() if name.startswith("model.")}
            self.model.load_state_dict(own)
        for unused in (self._vlm.lm_head, self._vlm.model.text_model.norm):
            unused.requires_grad_(False)

    @property
    def _vlm(self) -> nn.Module:
        return self.model.vlm_with_expert.vlm

    @property
    def action_dim(self) -> int:
        """A: commands are padded, and the padding is part of the loss, as in LeRobot."""
        return self.model.config.max_action_dim

    def token_ids(self, instruction: str) -> list[int]:
        """Of its own tokenizer; instructions end with a new line."""
        return self.tokenizer(f"{instruction}\n").input_ids

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The projection of the state belongs to the language model, which reads it."""
        inner = self._vlm.model
        modules = {"vision": (inner.vision_model, inner.connector), "vlm": (inner.text_model, self.model.state_proj)}
        groups = {name: [one for module in group for one in module.parameters()] for name, group in modules.items()}
        taken = {id(one) for group in groups.values() for one in group}
        groups["expert"] = [one for one in self.parameters() if id(one) not in taken]
        return {name: [one for one in group if one.requires_grad] for name, group in groups.items()}

    def encode(self, observation: ObservationBatch) -> Prefix:
        """Keys and values of images, instruction and state."""
        pictures = observation.images  # [B, V, 3, S, S]
        if pictures.dtype == torch.uint8:
            pictures = pictures.float() / 255
        size = self.model.config.resize_imgs_with_padding
        views = [2 * resize_with_pad(view, *size, pad_value=0) - 1 for view in pictures.unbind(1)]
        seen = [torch.ones(len(view), dtype=torch.bool, device=view.device) for view in views]
        state = self._pad(observation.state, self.model.config.max_state_dim)
        embedded, valid, causal = self.model.embed_prefix(
            views, seen, observation.tokens, observation.token_mask, state=state
        )
        _, cache = self.model.vlm_with_expert.forward(
            attention_mask=make_att_2d_masks(valid, causal),
            position_ids=torch.cumsum(valid, dim=1) - 1,
            inputs_embeds=[embedded, None],
            use_cache=True,
            fill_kv_cache=True,
        )
        keys, values = (torch.stack([one[name] for one in cache.values()], dim=1) for name in CACHED)
        return Prefix(keys, values, valid)

    def velocity(self, prefix: Prefix, x_t: Tensor, time: Tensor) -> Tensor:
        """See `FlowModel`: x_t [N, C, A]. Time and sign are the lab's."""
        layers = zip(prefix.keys.unbind(1), prefix.values.unbind(1), strict=True)
        cache = {layer: dict(zip(CACHED, pair, strict=True)) for layer, pair in enumerate(layers)}
        return self.model.denoise_step(prefix.valid, cache, x_t, time)

    def flow_losses(
        self, prefix: Prefix, actions: Tensor, noise: Tensor, time: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """See `FlowPolicy`."""
        return super().flow_losses(prefix, self._pad(actions, self.action_dim), noise, time, rows)

    def sample_actions(self, prefix: Prefix, noise: Tensor) -> Tensor:
        """See `Policy`."""
        return super().sample_actions(prefix, noise)[..., : self.config.command_size]

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        """Beta(1.5, 1) between 0.001 and 1, by its inverse: LeRobot draws from the global generator."""
        uniform = torch.rand(num, generator=generator, device=generator.device)
        return send(uniform ** (1 / 1.5) * 0.999 + 0.001, self.device)

    @staticmethod
    def _pad(numbers: Tensor, size: int) -> Tensor:
        if numbers.shape[-1] > size:
            raise ValueError(f"SmolVLA has room for {size} numbers, but there are {numbers.shape[-1]}")
        return F.pad(numbers, (0, size - numbers.shape[-1]))


def write_small(folder: Path, layers: int, image_size: int) -> None:
    """A SmolVLM of two small towers, as a folder without weights: configuration, processor, the lab's words."""
    named = {"fake_image_token": "<fake_token_around_image>", "global_image_token": "<global-img>"}
    backend = load_tokenizer().backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", extra_special_tokens=named)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": layers, "num_attention_heads": 4}
    SmolVLMConfig(
        text_config={"model_type": "llama", **sizes, "num_key_value_heads": 2, "vocab_size": len(tokenizer)},
        vision_config={**sizes, "image_size": image_size, "patch_size": 16},
        pad_token_id=tokenizer.pad_token_id,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    ).save_pretrained(folder)
    SmolVLMProcessor(SmolVLMImageProcessor(), tokenizer, SmolVLMVideoProcessor()).save_pretrained(folder)
