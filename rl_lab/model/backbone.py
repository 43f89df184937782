"""The vision-language model that the released VLM and the policy share: vision tower, merger and language tower.

Letters: B rows, S tokens of a row, T packed tokens, Tv of them patches, Tt of them text, D hidden, N rows of pixel
values, n images, p patch side.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from rl_lab.model.mot import LanguageModel
from rl_lab.model.options import refuse_unknown
from rl_lab.model.packing import Layout, build_layout, text_layout
from rl_lab.model.routing import Past, continuation_mask, run_packed
from rl_lab.model.sharding import is_sharded
from rl_lab.model.sizes import MERGE, TowerSizes, VisionSizes
from rl_lab.model.vision import VisionTower, Visual


def join_pixels(images: Tensor | None, videos: Tensor | None) -> Tensor | None:
    """All patches [N, 3 * p * p], images first."""
    if images is None or videos is None:
        return videos if images is None else images
    return torch.cat([images, videos])


class VisionLanguageModel(nn.Module):
    """Vision tower with merger, and language tower."""

    def __init__(
        self, tower: TowerSizes, vision: VisionSizes, special_token_ids: Mapping[str, int] | None = None
    ) -> None:
        """Without the ids of the special tokens by role, `forward` takes a layout only."""
        super().__init__()
        self.visual = Visual(vision)
        self.language_model = LanguageModel(tower)
        self.special_token_ids = dict(special_token_ids or {})

    def embed(self, input_ids: Tensor, layout: Layout, pixels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedded patches [Tv, D] and text [Tt, D] of ids [B, S] and pixels [N, 3 * p * p], images before videos.

        Pixels that hold no patch are those of rows without pictures, in a batch that has some elsewhere.
        """
        tokens = input_ids.flatten()
        if layout.source.place is not None:
            tokens = tokens.index_select(0, layout.source.place)
        table = self.language_model.model.embed_tokens
        text = table(tokens[layout.num_patches :])
        if pixels is not None and not len(pixels) and is_sharded(self.visual.vision_tower.blocks[0]):
            text = text + self._unseen(text)
        if pixels is None or not len(pixels):
            return text[:0], text
        vision = self.visual.encode_patches(pixels.to(text.dtype), layout.grids)
        return (vision if layout.patch_order is None else vision.index_select(0, layout.patch_order)), text

    def _unseen(self, text: Tensor) -> Tensor:
        """0, by way of the vision tower, whose weights are shards: ranks whose rows show pictures wait there for this
        one. Added to what enters the layers, so that these have a gradient on all ranks or on none."""
        weight = self.visual.vision_tower.patch_embed.proj.weight
        patches = text.new_zeros(MERGE**2, weight[0].numel())
        return 0.0 * self.visual.encode_patches(patches, [(MERGE, MERGE)]).sum()

    def run(
        self,
        input_ids: Tensor,
        layout: Layout,
        pixels: Tensor | None = None,
        past: Past | None = None,
        record: list[Tensor] | None = None,
    ) -> Tensor:
        """Residual stream [T, D] after the last layer, packed as `layout` says, before the final norm.

        Takes token ids [B, S] and the patches [N, 3 * p * p] of all images, then of all videos, in reading order.
        `record` receives the residual stream before the first layer and after each.
        """
        vision, text = self.embed(input_ids, layout, pixels)
        return run_packed(self.language_model.model, vision, text, layout, past, record)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of residual streams [..., D], as `run` returns them."""
        return self.language_model.lm_head(self.language_model.model.norm(hidden))

    def layout(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
    ) -> Layout:
        """Layout of a batch, on the CPU; made where batches are made, it spares `forward` waiting for the device."""
        return build_layout(input_ids, attention_mask, self.special_token_ids, image_grid_thw, video_grid_thw)

    def layout_after(
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
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        layout: Layout | None = None,
        output_hidden_states: bool | None = None,
        **unknown: Any,
    ) -> BaseModelOutputWithPast:
        """Normed last hidden state [B, S, D], zero at padding; as a base model of transformers.

        Token ids [B, S]; `attention_mask` [B, S] marks the valid ones (with cached tokens, those before included);
        pixel values [N, 3 * p * p] and grids [n, 3] as the processor makes them; `layout` is `self.layout(...)` of the
        same batch. Hidden states are the residual stream before the first layer and after every one; the last is
        normed. ValueError for options that are not honoured (`refuse_unknown`).
        """
        refuse_unknown(unknown, known=("return_dict", "logits_to_keep"))  # there are no logits; TRL asks all the same
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        length = past_key_values.get_seq_length() if past_key_values is not None else 0
        pixels = join_pixels(pixel_values, pixel_values_videos)
        if layout is None:
            # While generating, the grids keep coming after their pixels.
            grids = (image_grid_thw, video_grid_thw) if pixels is not None else (None, None)
            layout = self.layout_after(length, input_ids, attention_mask, grids)
        layout = layout.to(input_ids.device)
        past = None
        if past_key_values is not None:
            new = input_ids.shape[1]
            mask = continuation_mask(attention_mask, new, length + new, input_ids.device) if length else None
            past = Past(past_key_values, length, mask)
        record: list[Tensor] | None = [] if output_hidden_states else None
        hidden = self.language_model.model.norm(self.run(input_ids, layout, pixels, past, record))
        last = layout.source.scatter(hidden)
        states = tuple(layout.source.scatter(state) for state in (record or [])[:-1]) + (last,)
        return BaseModelOutputWithPast(
            last_hidden_state=cast(Any, last),
            past_key_values=past_key_values,
            hidden_states=cast(Any, states) if output_hidden_states else None,
        )


def initialize(module: nn.Module, std: float) -> None:
    """Decoder products, embeddings and positions normal(0, std); whatever has a bias keeps torch's default."""
    if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module.bias is None):
        init.normal_(module.weight, std=std)
    elif isinstance(module, VisionTower):
        init.normal_(module.pos_embed, std=std)
