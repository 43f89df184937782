"""The vision-language model that the released VLM and the policy share: vision tower, merger and language tower.

Of the tokens of a batch only those that are to be learned get logits, a part at a time. Rows may share their pictures:
the G answers to a prompt see its images, which are encoded once.

Letters: B rows, S tokens of a row, T packed tokens, Tv of them patches, Tt of them text, K tokens to learn, D hidden, V
vocabulary, N rows of pixel values, n images of a row, M pictures of the batch, p patch side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import can_return_tuple

from algos.auxiliary import whole_pictures
from algos.batch import TensorRecord, TokenBatch, indices, send
from algos.objective import NextTokens, SeenPictures, TokenScores
from rl_lab.model.chat import Grid, ImageProcessor, Picture
from rl_lab.model.layout import Layout, build_layout, frame_grids, text_layout
from rl_lab.model.mot import CausalLM, Past, Trace, continuation_mask, run_packed
from rl_lab.model.sharding import is_sharded
from rl_lab.model.vision import VisionTower, Visual
from rl_lab.model.vlm_config import MERGE, VISUAL_ROLES, TowerSizes, VisionSizes, refuse_unknown


class VisionLanguageModel(nn.Module):
    """Vision tower with merger, and language tower."""

    def __init__(
        self, tower: TowerSizes, vision: VisionSizes, special_token_ids: Mapping[str, int] | None = None
    ) -> None:
        """Without the ids of the special tokens by role, `forward` takes a layout only."""
        super().__init__()
        self.visual = Visual(vision)
        self.language_model = CausalLM(tower)
        self.special_token_ids = dict(special_token_ids or {})

    def embed(self, tokens: Tensor, layout: Layout, pixels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Embedded patches [Tv, D] and text [Tt, D] of ids [B, S], or of their embeddings [B, S, D], and pixels
        [N, 3 * p * p], images before videos.

        Pixels that hold no patch are those of rows without pictures, in a batch that has some elsewhere.
        """
        packed = layout.source.collect(tokens)[layout.num_patches :]
        text = packed if packed.is_floating_point() else self.language_model.model.embed_tokens(packed)
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
        tokens: Tensor,
        layout: Layout,
        pixels: Tensor | None = None,
        past: Past | None = None,
        trace: Trace | None = None,
    ) -> Tensor:
        """Residual stream [T, D] after the last layer, packed as `layout` says, before the final norm.

        Takes token ids [B, S], or their embeddings [B, S, D], and the patches [N, 3 * p * p] of all images, then of
        all videos, in reading order.
        """
        vision, text = self.embed(tokens, layout, pixels)
        return run_packed(self.language_model.model, vision, text, layout, past, trace)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocab] of residual streams [..., D], as `run` returns them."""
        return self.language_model.lm_head(self.language_model.model.norm(hidden))

    def layout(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
        position_ids: Tensor | None = None,
    ) -> Layout:
        """Layout of a batch, on the CPU; made where batches are made, it spares `forward` waiting for the device."""
        ids, grids = self.special_token_ids, (image_grid_thw, video_grid_thw)
        return build_layout(input_ids, attention_mask, ids, *grids, position_ids)

    def layout_after(
        self,
        past: int,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        grids: tuple[Any, Any],
        position_ids: Tensor | None = None,
    ) -> Layout:
        """Layout of the tokens that follow `past` cached ones; `attention_mask` covers both, `position_ids` the new."""
        count, new = input_ids.shape
        if position_ids is not None:
            position_ids = position_ids.expand(count, -1)
        if grids == (None, None) and past:
            if position_ids is not None:
                positions = position_ids
            elif attention_mask is None:
                positions = torch.arange(past, past + new, device=input_ids.device).expand(count, -1)
            else:
                positions = attention_mask.long().cumsum(1)[:, -new:] - 1
            return text_layout(count, new, positions)
        mask = attention_mask if attention_mask is None else attention_mask[:, -new:]
        layout = self.layout(input_ids, mask, *grids, position_ids)
        if not past or position_ids is not None:
            return layout
        before = torch.full((count,), past) if attention_mask is None else attention_mask[:, :past].sum(1).cpu()
        return layout.shifted(before)

    def ids_behind(self, embeddings: Tensor) -> Tensor:
        """Ids [B, S] of the visual tokens among embeddings [B, S, D], which choose the weights of layers; -1 for
        others."""
        table = self.language_model.model.embed_tokens
        ids = torch.full(embeddings.shape[:2], -1, device=embeddings.device)
        for role in VISUAL_ROLES:
            own = torch.tensor(self.special_token_ids[role], device=embeddings.device)
            ids[(embeddings == table(own).to(embeddings.dtype)).all(-1)] = own
        return ids

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        layout: Layout | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **unknown: Any,
    ) -> BaseModelOutputWithPast:
        """Normed last hidden state [B, S, D], zero at padding; as a base model of transformers.

        Token ids [B, S] or their embeddings [B, S, D]; `attention_mask` [B, S] marks the valid ones (with cached
        tokens, those before included); pixel values [N, 3 * p * p] and grids [n, 3] as the processor makes them;
        `layout` is `self.layout(...)` of the same batch. `position_ids` [B, S] that begin anew within a row pack
        several sequences into it. Hidden states are the residual stream before the first layer and after every one;
        the last is normed. Attentions [B, H, S, K] are computed beside the pass, which never forms them. ValueError
        for options that are not honoured (`refuse_unknown`).
        """
        refuse_unknown(unknown, known=("logits_to_keep",))  # there are no logits; TRL asks all the same
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        check_dimensions({"attention_mask": attention_mask, "position_ids": position_ids})
        tokens = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        length = int(past_key_values.get_seq_length()) if past_key_values is not None else 0
        pixels = join_pixels(pixel_values, pixel_values_videos)
        if layout is None:
            # While generating, the grids keep coming after their pixels.
            grids = (image_grid_thw, video_grid_thw) if pixels is not None else (None, None)
            ids = self.ids_behind(tokens) if input_ids is None else input_ids
            layout = self.layout_after(length, ids, attention_mask, grids, position_ids)
        layout = layout.to(tokens.device)
        past = None
        if past_key_values is not None:
            if layout.is_packed:
                raise ValueError(
                    "position_ids pack several sequences into a row, which no cache holds; use_cache=False"
                )
            new = tokens.shape[1]
            mask = continuation_mask(attention_mask, new, length + new, tokens.device) if length else None
            past = Past(past_key_values, length, mask)
        trace = Trace([] if output_hidden_states else None, [] if output_attentions else None)
        hidden = self.language_model.model.norm(self.run(tokens, layout, pixels, past, trace))
        last = layout.source.scatter(hidden)
        states = tuple(layout.source.scatter(state) for state in (trace.hidden or [])[:-1]) + (last,)
        return BaseModelOutputWithPast(
            last_hidden_state=cast(Any, last),
            past_key_values=past_key_values,
            hidden_states=cast(Any, states) if output_hidden_states else None,
            attentions=cast(Any, tuple(trace.weights)) if trace.weights is not None else None,
        )


def check_dimensions(given: Mapping[str, Tensor | None]) -> None:
    """ValueError, naming it, for a tensor of tokens that is not [B, S]."""
    for name, tensor in given.items():
        if tensor is not None and tensor.ndim != 2:
            raise ValueError(f"{name} has shape {list(tensor.shape)}; expected [rows, tokens]")


def join_pixels(images: Tensor | None, videos: Tensor | None) -> Tensor | None:
    """All patches [N, 3 * p * p], images first."""
    if images is None or videos is None:
        return videos if images is None else images
    return torch.cat([images, videos])


def initialize(module: nn.Module, std: float) -> None:
    """Decoder products, embeddings and positions normal(0, std); whatever has a bias keeps torch's default."""
    if isinstance(module, nn.Embedding) or (isinstance(module, nn.Linear) and module.bias is None):
        init.normal_(module.weight, std=std)
    elif isinstance(module, VisionTower):
        init.normal_(module.pos_embed, std=std)


class VisionLanguageMixin:
    """A model around a vision-language model, by which it scores text: `algos.objective.ComparablePolicy`."""

    @property
    def vision_language_model(self) -> VisionLanguageModel:
        """The one inside."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding; PEFT looks for it."""
        return self.vision_language_model.language_model.model.embed_tokens

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False, pictures: bool = False
    ) -> TokenScores:
        """See `algos.objective.SeeingLanguagePolicy`; ValueError as `residual_before`."""
        model, trace = self.vision_language_model, Trace()
        before, targets, places = residual_before(model, batch, trace)
        logprobs, spread = score_in_parts(model, before, targets, temperature, entropy)
        return TokenScores(
            in_rows(batch, places, logprobs),
            None if spread is None else in_rows(batch, places, spread),
            seen_pictures(model, batch, trace) if pictures else (),
        )

    def next_tokens(self, batch: TokenBatch) -> NextTokens:
        """See `algos.objective.ComparablePolicy`; logits are yet to be made. ValueError as `residual_before`."""
        model = self.vision_language_model
        before, _, _ = residual_before(model, batch)
        return NextTokens(before, lambda some: model.logits(some).float(), model.language_model.lm_head.weight.shape[0])

    def compare_tokens(
        self, batch: TokenBatch, compare: Callable[..., tuple[Tensor, ...]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        """See `algos.objective.ComparablePolicy`; ValueError as `residual_before`.

        Logits are made in parts of at most half of `LOGITS_AT_ONCE`: `compare` may make as many of another model.
        """
        model = self.vision_language_model
        before, _, places = residual_before(model, batch)
        size = max(1, LOGITS_AT_ONCE // 2 // model.language_model.lm_head.weight.shape[0])

        def part(hidden: Tensor, *known: Tensor) -> tuple[Tensor, ...]:
            return compare(model.logits(hidden).float(), *known)

        if len(places) <= size:
            found = part(before, *given)
        else:
            parts = [
                checkpoint(part, *some, use_reentrant=False)
                for some in zip(before.split(size), *(known.split(size) for known in given), strict=True)
            ]
            found = tuple(torch.cat(values) for values in zip(*parts, strict=True))
        return tuple(in_rows(batch, places, values) for values in found)


LOGITS_AT_ONCE = 2**26
"""Logits in memory at a time, 256 MiB in float32; with more of them, each part is computed again going backward."""

NEVER_DRAWN = ("image", "video")
"""Tokens that stand for patches. The engine's samplers lower their logits by `NEVER_DRAWN_BIAS`."""

NEVER_DRAWN_BIAS = -100.0


def residual_before(
    model: VisionLanguageModel, batch: TokenBatch, trace: Trace | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Residual streams [K, D] that predict the tokens to learn, those tokens [K], and their flat places [K].

    ValueError for a model that does not know its visual tokens and for a row whose first token is to be learned:
    nothing predicts it.
    """
    if not set(VISUAL_ROLES) <= model.special_token_ids.keys():
        raise ValueError(f"the model's special_token_ids must hold {', '.join(VISUAL_ROLES)} to read text and images")
    valid, learned = batch.attention_mask.numpy(), batch.completion_mask.numpy()
    if (learned & ~(valid & (valid.cumsum(1) > 1))).any():
        raise ValueError("completion_mask marks padding or the first token of a row; mark tokens after the prompt")
    device = model.language_model.lm_head.weight.device
    layout, input_ids = batch_layout(batch, model.special_token_ids).to(device), send(batch.input_ids, device)
    pixels = None if batch.visual is None else batch.visual.pixels
    hidden = model.run(input_ids, layout, pixels if pixels is None or layout.num_patches else pixels[:0], trace=trace)
    places = indices(batch.completion_mask, device)
    return hidden[token_before(layout, places)], input_ids.flatten()[places], places


def seen_pictures(model: VisionLanguageModel, batch: TokenBatch, trace: Trace) -> list[SeenPictures]:
    """All that the rows show, by size, of the trace of their pass; of text alone none of one token."""
    layout, vision = batch_layout(batch, model.special_token_ids), trace.vision
    assert vision is not None
    if layout.patch_order is None:
        side = MERGE * model.visual.vision_tower.sizes.patch_size
        return [SeenPictures(torch.zeros(0, 3, side, side, device=vision.device), vision[:, None])]
    counts = [height * width // MERGE**2 for height, width in layout.grids]
    firsts, found = np.cumsum([0, *counts[:-1]]), []
    patches = batch.visual.pixels.unflatten(0, (-1, MERGE**2))
    for height, width in dict.fromkeys(layout.grids):
        own = [first for first, grid in zip(firsts, layout.grids, strict=True) if grid == (height, width)]
        starts = np.flatnonzero(np.isin(layout.patch_order.numpy(), own))
        places = torch.from_numpy(starts[:, None] + np.arange(height * width // MERGE**2))
        images = whole_pictures(patches[send(layout.patch_order[places], patches.device)], height // MERGE)
        found.append(SeenPictures((images + 1) / 2, vision[send(places, vision.device)]))
    return found


def token_before(layout: Layout, places: Tensor) -> Tensor:
    """Packed token just before each of the flat places [K] in the rows; that one predicts it."""
    return places - 1 if layout.source.token is None else layout.source.token[places - 1]


def score_in_parts(
    model: VisionLanguageModel, hidden: Tensor, targets: Tensor, temperature: float | None, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """`score_tokens` with at most `LOGITS_AT_ONCE` logits in memory."""
    size = max(1, LOGITS_AT_ONCE // model.language_model.lm_head.weight.shape[0])
    if len(targets) <= size:
        return score_tokens(model, hidden, targets, temperature, entropy)
    parts = [
        checkpoint(score_tokens, model, some, ids, temperature, entropy, use_reentrant=False)
        for some, ids in zip(hidden.split(size), targets.split(size), strict=True)
    ]
    logprobs, spread = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(spread) if entropy else None


def score_tokens(
    model: VisionLanguageModel, hidden: Tensor, targets: Tensor, temperature: float | None, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of targets [K], and entropy [K] of their distributions, of residual streams [K, D]; float32."""
    logits = model.logits(hidden).float()
    if temperature is not None:
        logits = (logits + sampling_bias(model)) / temperature
    logprobs = logits.log_softmax(-1)
    own = logprobs.gather(1, targets[:, None])[:, 0]
    if not entropy:
        return own, None
    with torch.no_grad():
        return own, -(logprobs.exp() * logprobs).sum(-1)


def sampling_bias(model: VisionLanguageModel) -> Tensor:
    """What the engine adds to the logits before it divides by the temperature, float32 [V]."""
    weight = model.language_model.lm_head.weight
    bias = torch.zeros(weight.shape[0], device=weight.device)
    for role in NEVER_DRAWN:
        bias[model.special_token_ids[role]] = NEVER_DRAWN_BIAS
    return bias


def in_rows(batch: TokenBatch, places: Tensor, values: Tensor) -> Tensor:
    """Values [K] at their flat places, 0 elsewhere, [B, S]."""
    return values.new_zeros(batch.input_ids.numel()).index_copy(0, places, values).view(batch.input_ids.shape)


@dataclass
class Pictures(TensorRecord):
    """M different images and videos, and which of them every row shows."""

    pixels: Tensor
    """Patches of all pictures, one after the other, float [N, 3 * p * p]."""
    grids: tuple[Grid, ...]
    """Frames, height and width in patches of each."""
    is_video: tuple[bool, ...]
    """A video has other tokens than an image, also one of a single frame."""
    shown: tuple[tuple[int, ...], ...]
    """Pictures of every row, in the order of their tokens."""

    @classmethod
    def of_images(cls, images: Sequence[Picture], shown: Sequence[Sequence[int]], processor: ImageProcessor) -> Self:
        """Images as a checkpoint's processor cuts them."""
        done = [processor(image) for image in images]
        return cls(
            pixels=torch.from_numpy(np.concatenate([patches for patches, _ in done])),
            grids=tuple(grid for _, grid in done),
            is_video=(False,) * len(done),
            shown=tuple(map(tuple, shown)),
        )

    @property
    def num_shown(self) -> int:
        """Images and frames in all rows, one that several show counted in each."""
        return sum(self.grids[index][0] for row in self.shown for index in row)

    def select(self, rows: Tensor) -> Self:
        """These rows and the pictures that they show."""
        shown = [self.shown[row] for row in rows.tolist()]
        kept = sorted({index for row in shown for index in row})
        parts = self.pixels.split([math.prod(grid) for grid in self.grids])
        return replace(
            self,
            pixels=torch.cat([parts[index] for index in kept]) if kept else self.pixels[:0],
            grids=tuple(self.grids[index] for index in kept),
            is_video=tuple(self.is_video[index] for index in kept),
            shown=tuple(tuple(kept.index(index) for index in row) for row in shown),
        )

    def _tokens_of(self, index: int) -> np.ndarray:
        """Place of the encoded patches of a picture among those of all, after merging."""
        counts = [math.prod(grid) // MERGE**2 for grid in self.grids]
        start = list(accumulate(counts, initial=0))[index]
        return np.arange(start, start + counts[index])

    def layout(self, input_ids: Tensor, attention_mask: Tensor, special_token_ids: dict[str, int]) -> Layout:
        """Layout of rows [B, S] that read each picture as often as they show it; see `build_layout`."""
        order = [index for row in self.shown for index in row]
        images = [index for index in order if not self.is_video[index]]
        videos = [index for index in order if self.is_video[index]]
        grids: list[Any] = [[self.grids[index] for index in part] or None for part in (images, videos)]
        layout = build_layout(input_ids, attention_mask, special_token_ids, *grids)
        if not order:
            return replace(layout, grids=())
        read = torch.from_numpy(np.concatenate([self._tokens_of(index) for index in images + videos]))
        return replace(
            layout,
            grids=frame_grids(self.grids, None),
            patch_order=read if layout.patch_order is None else read[layout.patch_order],
        )


def batch_layout(batch: TokenBatch, special_token_ids: dict[str, int]) -> Layout:
    """Layout of a batch and its pictures, on the CPU."""
    if batch.visual is None:
        return build_layout(batch.input_ids, batch.attention_mask, special_token_ids)
    return batch.visual.layout(batch.input_ids, batch.attention_mask, special_token_ids)
