"""The released vision-language model: the shared backbone with logits, loss, checkpoints and generation.

Letters: B rows, S tokens of a row, N rows of pixel values, n images, p patch side.

What `generate()` needs to know about images: which belong to which row.

Letters: B rows, M images, N rows of pixel values.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from algos.batch import TokenBatch
from algos.objective import NextTokens, TokenScores
from rl_lab.model.backbone import VisionLanguageModel, compare_tokens, initialize, next_tokens, token_scores
from rl_lab.model.layout import Layout
from rl_lab.model.loading import (
    IGNORED_KEYS,
    check_finite,
    check_generation,
    check_tied,
    check_values,
    check_weights,
    checkpoint_folder,
    checkpoint_shapes,
    complete_vlm_config,
    no_progress_bars,
)
from rl_lab.model.vlm_config import MERGE, VISUAL_ROLES, HyVLMConfig, refuse_unknown


def repeat_visual(pixels: Tensor, grids: Tensor, tokens: Tensor, times: int) -> tuple[Tensor, Tensor]:
    """Images of a batch whose every row is repeated `times` times: pixel values and grids, row after row.

    Takes pixel values [N, f], grids [M, 3] of the images (or videos) and their tokens in each row [B].
    """
    patches = grids.prod(-1).cpu()
    row_ends = tokens.cpu().cumsum(0) * MERGE**2
    row = torch.searchsorted(row_ends, patches.cumsum(0))
    images = torch.bincount(row, minlength=len(row_ends)).tolist()
    rows = zip(pixels.split((tokens.cpu() * MERGE**2).tolist()), grids.split(images), strict=True)
    repeated = [(own.repeat(times, 1), shapes.repeat(times, 1)) for own, shapes in rows]
    return torch.cat([own for own, _ in repeated]), torch.cat([shapes for _, shapes in repeated])


EMBEDDING = "model.language_model.model.embed_tokens.weight"

OUTPUT_EMBEDDING = "model.language_model.lm_head.weight"

TIED = (EMBEDDING, OUTPUT_EMBEDDING)

LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")
"""Options of transformers' loss of next tokens."""


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
        self.model = VisionLanguageModel(config.vlm_sizes, config.vision_sizes, config.special_token_ids)
        self.post_init()

    @classmethod
    def from_pretrained(  # type: ignore[override]  # weights are checked strictly: no other way to read them
        cls, name: str | Path, *, config: HyVLMConfig | None = None, **kwargs: Any
    ) -> Self:
        """Load a checkpoint folder or hub id, ours or released (`dtype=` as in transformers, default: as stored).

        ValueError, naming the tensors, if the weights do not fit the config or are not finite.
        """
        folder = checkpoint_folder(name, kwargs)
        config = cls.fitting_config(folder, config)
        with no_progress_bars():
            model = super().from_pretrained(folder, config=config, **kwargs)
        check_tied(model, TIED)
        check_finite(model.state_dict().items(), folder)
        return model

    @classmethod
    def fitting_config(cls, folder: Path, config: HyVLMConfig | None = None) -> HyVLMConfig:
        """The folder's config, or this one, completed. ValueError if the headers of the weights do not fit."""
        found = checkpoint_shapes(folder)
        config = complete_vlm_config(config or HyVLMConfig.from_pretrained(folder), found, folder)
        check_generation(folder)
        check_weights(found, lambda: cls(config), TIED)
        return config

    @classmethod
    def check_stored(cls, folder: Path) -> HyVLMConfig:
        """The folder's config; ValueError for what `from_pretrained` would refuse. The model is not made."""
        config = cls.fitting_config(folder)
        check_values(folder, TIED)
        return config

    def save_pretrained(self, folder: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json, generation_config.json and model.safetensors with the released names."""
        with no_progress_bars():
            super().save_pretrained(folder, **kwargs)

    def get_input_embeddings(self) -> nn.Embedding:
        """The token embedding."""
        return self.model.language_model.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding."""
        self.model.language_model.model.embed_tokens = cast(nn.Embedding, value)

    def get_output_embeddings(self) -> nn.Linear:
        """The output embedding, tied to the token embedding."""
        return self.model.language_model.lm_head

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the output embedding."""
        self.model.language_model.lm_head = cast(nn.Linear, value)

    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config.vlm_sizes.init_std)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, in groups: vision (tower and merger) and vlm."""
        return {
            "vision": list(self.model.visual.parameters()),
            "vlm": list(self.model.language_model.parameters()),
        }

    def token_logprobs(
        self, batch: TokenBatch, *, temperature: float | None = None, entropy: bool = False
    ) -> TokenScores:
        """`algos.objective.LanguagePolicy`; see `rl_lab.model.backbone`."""
        return token_scores(self.model, batch, temperature, entropy)

    def next_tokens(self, batch: TokenBatch) -> NextTokens:
        """`algos.objective.ComparablePolicy`; see `rl_lab.model.backbone`."""
        return next_tokens(self.model, batch)

    def compare_tokens(
        self, batch: TokenBatch, compare: Callable[..., tuple[Tensor, ...]], *given: Tensor
    ) -> tuple[Tensor, ...]:
        """`algos.objective.ComparablePolicy`; see `rl_lab.model.backbone`."""
        return compare_tokens(self.model, batch, compare, given)

    def layout(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        image_grid_thw: Any = None,
        video_grid_thw: Any = None,
    ) -> Layout:
        """Layout of a batch, on the CPU; made where batches are made, it spares `forward` waiting for the device."""
        return self.model.layout(input_ids, attention_mask, image_grid_thw, video_grid_thw)

    @can_return_tuple
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
        Hidden states are the residual stream before the first layer and after every one; the last is normed. Further
        options are those of the loss; ValueError for others, which would not be honoured. `mm_token_type_ids` say what
        the ids say.
        """
        refuse_unknown(kwargs, known=(*LOSS_OPTIONS, "mm_token_type_ids"))
        out = self.model(
            input_ids,
            attention_mask=attention_mask,
            pixel_values=pixel_values,
            image_grid_thw=image_grid_thw,
            pixel_values_videos=pixel_values_videos,
            video_grid_thw=video_grid_thw,
            past_key_values=past_key_values,
            use_cache=use_cache,
            layout=layout,
            output_hidden_states=output_hidden_states,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.language_model.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            options = {name: value for name, value in kwargs.items() if name in LOSS_OPTIONS}
            loss = self.loss_function(logits, labels, self.config.vlm_sizes.vocab, **options)
        return CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
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
