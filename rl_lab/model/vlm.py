"""The vision-language model: the module that the released VLM and the policy share, and the VLM around it.

Letters: B rows, S tokens of a row, T packed tokens, Tv of them patches, D hidden, N rows of pixel values, p patch side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast

from rl_lab.model.generation import repeat_visual
from rl_lab.model.loading import IGNORED_KEYS, check_fit, check_tied, checkpoint_folder, checkpoint_shapes
from rl_lab.model.mot import LanguageModel
from rl_lab.model.packing import Layout, build_layout, text_layout
from rl_lab.model.routing import Past, continuation_mask, run_packed
from rl_lab.model.sizes import TowerSizes, VisionSizes
from rl_lab.model.vision import VisionTower, Visual
from rl_lab.model.vlm_config import VISUAL_ROLES, HyVLMConfig
from rl_lab.model.vlm_loading import complete_vlm_config

EMBEDDING = "model.language_model.model.embed_tokens.weight"
OUTPUT_EMBEDDING = "model.language_model.lm_head.weight"


class VisionLanguageModel(nn.Module):
    """Vision tower with merger, and language tower."""

    def __init__(self, tower: TowerSizes, vision: VisionSizes) -> None:
        super().__init__()
        self.visual = Visual(vision)
        self.language_model = LanguageModel(tower)

    def embed(self, input_ids: Tensor, layout: Layout, pixels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedded patches [Tv, D] and text [Tt, D] of ids [B, S] and pixels [N, 3 * p * p], images before videos."""
        tokens = input_ids.flatten()
        if layout.source.place is not None:
            tokens = tokens.index_select(0, layout.source.place)
        table = self.language_model.model.embed_tokens
        text = table(tokens[layout.num_patches :])
        if pixels is None:
            return text[:0], text
        vision = self.visual.encode_patches(pixels.to(text.dtype), layout.grids)
        return (vision if layout.patch_order is None else vision.index_select(0, layout.patch_order)), text

    def forward(
        self,
        input_ids: Tensor,
        layout: Layout,
        pixels: Tensor | None = None,
        past: Past | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Residual stream [T, D] after the last layer, packed as `layout` says, before the final norm.

        Takes token ids [B, S] and the patches [N, 3 * p * p] of all images, then of all videos, in reading order.
        """
        vision, text = self.embed(input_ids, layout, pixels)
        return run_packed(self.language_model.model, vision, text, layout, past, record)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of residual streams [..., D]."""
        return self.language_model.lm_head(self.language_model.model.norm(hidden))


def join_pixels(images: Tensor | None, videos: Tensor | None) -> Tensor | None:
    """All patches [N, 3 * p * p], images first."""
    if images is None or videos is None:
        return videos if images is None else images
    return torch.cat([images, videos])


def released_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Loss of the released code, for parity: labels [B, S] are first reduced to the valid ones (>= 0) and shifted then.

    So a row's first label is never predicted, and answers are chained across gaps and rows. Train with the loss of
    `HunYuanVLMoTForConditionalGeneration`, which shifts within the row.
    """
    valid = labels.flatten() >= 0
    kept, targets = logits.flatten(0, 1)[valid], labels.flatten()[valid]
    return F.cross_entropy(kept[:-1].float(), targets[1:])


def initialize(module: nn.Module, std: float) -> None:
    """Decoder products, embeddings and positions normal(0, std); whatever has a bias keeps torch's default."""
    if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module.bias is None):
        init.normal_(module.weight, std=std)
    elif isinstance(module, VisionTower):
        init.normal_(module.pos_embed, std=std)


class HunYuanVLMoTForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """Text, images of any sizes and videos to text. The name is the released one."""

    config_class = HyVLMConfig
    config: HyVLMConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _no_split_modules = ["DecoderLayer", "VisionBlock"]
    _tied_weights_keys = {OUTPUT_EMBEDDING: EMBEDDING}
    _keys_to_ignore_on_load_unexpected = list(IGNORED_KEYS)

    def __init__(self, config: HyVLMConfig) -> None:
        super().__init__(config)
        if not set(VISUAL_ROLES) <= config.special_token_ids.keys():
            raise ValueError(
                f"special_token_ids must hold {', '.join(VISUAL_ROLES)}, not {sorted(config.special_token_ids)}; "
                "look them up with rl_lab.model.tokenizer.special_token_ids"
            )
        self.model = VisionLanguageModel(config.vlm_sizes, config.vision_sizes)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # weights are checked strictly: no other way to read them
        cls, name: str | Path, *, config: HyVLMConfig | None = None, **kwargs: Any
    ) -> Self:
        """Load a checkpoint folder or hub id, ours or released (`dtype=` as in transformers, default: as stored).

        ValueError, listing the tensors, if the weights do not fit the config.
        """
        folder = checkpoint_folder(name, kwargs)
        found = checkpoint_shapes(folder)
        config = complete_vlm_config(config or HyVLMConfig.from_pretrained(folder), found, folder)
        with torch.device("meta"):
            expected = {key: tuple(value.shape) for key, value in cls(config).state_dict().items()}
        check_fit(found, expected, (EMBEDDING, OUTPUT_EMBEDDING))
        model = super().from_pretrained(folder, config=config, **kwargs)
        check_tied(model, (EMBEDDING, OUTPUT_EMBEDDING))
        return model

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.language_model.model.embed_tokens = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Linear:
        """The output embedding, tied to the token embedding."""
        return self.model.language_model.lm_head

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config.vlm_sizes.init_std)

    def layout(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
    ) -> Layout:
        """Layout of a batch, on the CPU; made where batches are made, it spares `forward` waiting for the device."""
        return build_layout(input_ids, attention_mask, self.config.special_token_ids, image_grid_thw, video_grid_thw)

    def _layout_after(
        self, past: int, input_ids: Tensor, attention_mask: Tensor | None, grids: tuple[Any, Any]
    ) -> Layout:
        """Layout of the tokens that follow `past` cached ones; `attention_mask` covers both."""
        count, new = input_ids.shape
        if grids == (None, None) and past:
            if attention_mask is None:
                positions = torch.arange(past, past + new, device=input_ids.device).expand(count, -1)
            else:
                positions = attention_mask.long().cumsum(1)[:, -new:] - 1
            return text_layout(count, new, positions)
        mask = attention_mask if attention_mask is None else attention_mask[:, -new:]
        layout = self.layout(input_ids, mask, *grids)
        if not past:
            return layout
        before = torch.full((count,), past) if attention_mask is None else attention_mask[:, :past].sum(1).cpu()
        return layout.shifted(before)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        layout: Layout | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, vocab], or of the last `logits_to_keep` tokens or those listed; with labels also the loss.

        Token ids [B, S]; `attention_mask` [B, S] marks the valid ones (with cached tokens, those before included);
        pixel values [N, 3 * p * p] and grids [n, 3] as the processor makes them; `layout` is `self.layout(...)` of the
        same batch. Labels [B, S] are shifted within the row; -100 is not trained. Padding has meaningless logits.
        Hidden states are the residual stream before the first layer and after every one; the last is normed.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        length = past_key_values.get_seq_length() if past_key_values is not None else 0
        pixels = join_pixels(pixel_values, pixel_values_videos)
        if layout is None:
            # While generating, the grids keep coming after their pixels.
            grids = (image_grid_thw, video_grid_thw) if pixels is not None else (None, None)
            layout = self._layout_after(length, input_ids, attention_mask, grids)
        layout = layout.to(input_ids.device)
        past = None
        if past_key_values is not None:
            new = input_ids.shape[1]
            mask = continuation_mask(attention_mask, new, length + new, input_ids.device) if length else None
            past = Past(past_key_values, length, mask)
        record: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.model(input_ids, layout, pixels, past, record)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(layout.source.scatter(hidden)[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vlm_sizes.vocab, **kwargs)
        if record:
            record[-1] = self.model.language_model.model.norm(record[-1])
        return CausalLMOutputWithPast(
            loss=loss,
            logits=cast(Any, logits),
            past_key_values=past_key_values,
            hidden_states=cast(Any, tuple(layout.source.scatter(state) for state in record) if record else None),
        )

    def _expand_inputs_for_generation(  # type: ignore[override]  # as the parent, which types only some tensors
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat every row `expand_size` times, and with it the images and videos that belong to it."""
        visual: dict[str, Any] = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            pixels, grids = kwargs.pop(f"pixel_values{suffix}", None), kwargs.pop(f"{kind}_grid_thw", None)
            if pixels is not None and input_ids is not None:
                tokens = (input_ids == self.config.special_token_ids[kind]).sum(1)
                pixels, grids = repeat_visual(pixels, grids, tokens, expand_size)
            visual |= {f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grids}
        expand = cast(Any, super())._expand_inputs_for_generation
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | {name: value for name, value in visual.items() if value is not None}
