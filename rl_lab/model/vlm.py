"""The released vision-language model: the shared backbone with logits, loss, checkpoints and generation.

Letters: B rows, S tokens of a row, N rows of pixel values, n images of a row, M of all rows, p patch side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.generic import can_return_tuple

from rl_lab.model.backbone import VisionLanguageMixin, VisionLanguageModel, initialize
from rl_lab.model.layout import Layout
from rl_lab.model.loading import CheckedModel, Shapes, check_generation, complete_vlm_config
from rl_lab.model.vlm_config import MERGE, VISUAL_ROLES, HyVLMConfig, refuse_unknown

EMBEDDING = "model.language_model.model.embed_tokens.weight"

OUTPUT_EMBEDDING = "model.language_model.lm_head.weight"

LOSS_OPTIONS = ("num_items_in_batch", "ignore_index", "shift_labels")
"""Options of transformers' loss of next tokens."""

GENERATION_OPTIONS = ("tokenizer", "assistant_tokenizer")
"""Options of `generate`, for strings that end an answer, which transformers hands on to the model as well."""


class HunYuanVLMoTForConditionalGeneration(VisionLanguageMixin, CheckedModel[HyVLMConfig], GenerationMixin):
    """Text, images of any sizes and videos to text. The name is the released one."""

    config_class = HyVLMConfig
    config: HyVLMConfig
    base_model_prefix = "model"
    _no_split_modules = ["DecoderLayer", "VisionBlock"]
    _tied_weights_keys = {OUTPUT_EMBEDDING: EMBEDDING}
    tied = (EMBEDDING, OUTPUT_EMBEDDING)

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
    def complete(cls, config: HyVLMConfig | None, shapes: Shapes, folder: Path) -> HyVLMConfig:
        """See `CheckedModel`; settings of generation are checked, too."""
        config = complete_vlm_config(config or HyVLMConfig.from_pretrained(folder), shapes, folder)
        check_generation(folder)
        return config

    @property
    def vision_language_model(self) -> VisionLanguageModel:
        """See `VisionLanguageMixin`."""
        return self.model

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

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
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
        output_attentions: bool | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, vocab], or of the last `logits_to_keep` tokens or those listed; with labels also the loss.

        Options are those of `VisionLanguageModel.forward`; what is None is as the config says. Labels [B, S] are
        shifted within the row; -100 is not trained. Padding has meaningless logits. Further options are those of the
        loss; ValueError for others, which would not be honoured. `mm_token_type_ids` say what the ids say.
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
            use_cache=self.config.use_cache if use_cache is None else use_cache,
            layout=layout,
            output_hidden_states=(
                self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
            ),
            output_attentions=self.config.output_attentions if output_attentions is None else output_attentions,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.language_model.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            options = {name: value for name, value in kwargs.items() if name in LOSS_OPTIONS}
            loss = self.loss_function(logits, labels, self.config.vlm_sizes.vocab, **options)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=out.past_key_values,
            hidden_states=out.hidden_states,
            attentions=out.attentions,
        )

    @staticmethod
    def create_masks_for_generate(attention_mask: Tensor | None, **_: Any) -> Tensor | None:
        """The mask of valid tokens as it is, for static caches too: which of them see each other, the layout says."""
        return attention_mask

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """As of transformers, but the pass before which nothing is cached is the first, so that an assistant's pictures
        go in with it, and what `generate` alone is about goes no further."""
        begins = is_first_iteration or past_key_values is None or not past_key_values.get_seq_length()
        options = {name: value for name, value in kwargs.items() if name not in GENERATION_OPTIONS}
        prepare = cast(Any, super()).prepare_inputs_for_generation
        return prepare(
            input_ids, next_sequence_length, past_key_values, attention_mask, inputs_embeds, begins, **options
        )

    def _expand_inputs_for_generation(  # type: ignore[override]  # as the parent, which types only some tensors
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor | None, dict[str, Any]]:
        """Repeat every row `expand_size` times, and with it the images and videos that belong to it."""
        visual: dict[str, Any] = {}
        for kind, suffix in (("image", ""), ("video", "_videos")):
            pixels, grids = kwargs.pop(f"pixel_values{suffix}", None), kwargs.pop(f"{kind}_grid_thw", None)
            if pixels is not None and input_ids is not None:
                embeds = kwargs.get("inputs_embeds")
                ids = input_ids if embeds is None else self.model.ids_behind(embeds)
                tokens = (ids == self.config.special_token_ids[kind]).sum(1)
                pixels, grids = repeat_visual(pixels, grids, tokens, expand_size)
            visual |= {f"pixel_values{suffix}": pixels, f"{kind}_grid_thw": grids}
        expand = cast(Any, super())._expand_inputs_for_generation
        input_ids, kwargs = expand(expand_size, is_encoder_decoder, input_ids, **kwargs)
        return input_ids, kwargs | {name: value for name, value in visual.items() if value is not None}


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
