"""Config of the vision-language model, with the fields and names of the released `config.json`.

The released file may be nested (`text_config`, `vision_config`) or flat (text fields at the top). What its code
hard-codes or never reads (vision sizes, ids of the special tokens) is true in the files written here; of a released
file it is completed from tensor shapes and tokenizer (`rl_lab.model.vlm_loading`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any, ClassVar

from transformers import PretrainedConfig

from rl_lab.errors import UserError
from rl_lab.model.sizes import MERGE, RELEASED_VISION_HEADS, TowerSizes, VisionSizes, check_sizes, tower_sizes
from rl_lab.model.stored_config import StoredConfig

VISUAL_ROLES = ("image", "video", "row_end")
"""Special tokens that the model itself must know: patches of images and videos, and the separator of their rows."""


class HyVLMTextConfig(StoredConfig):
    """The language tower; the defaults are the released sizes."""

    model_type = "hunyuan_vl_mot_text"
    base_config_key = "text_config"

    vocab_size: int = 120818
    hidden_size: int = 2048
    intermediate_size: int = 6144
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: dict[str, Any] | None = None
    """`alpha` scales the base of the frequencies; the other entries are never read."""
    max_position_embeddings: int = 262144
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        newer = kwargs.pop("rope_parameters", None)
        if newer:
            self.rope_theta = newer.get("rope_theta", self.rope_theta)
            self.rope_scaling = {key: value for key, value in newer.items() if key != "rope_theta"}
        for stale in ("model_type", "architectures", "auto_map"):
            kwargs.pop(stale, None)
        self.architectures = None
        self.head_dim = (
            self.head_dim or kwargs.get("attention_head_dim") or self.hidden_size // max(self.num_attention_heads, 1)
        )
        super().__post_init__(**kwargs)


class HyVLMVisionConfig(StoredConfig):
    """The vision tower; the defaults are the released sizes."""

    model_type = "hunyuan_vl_mot_vision"
    base_config_key = "vision_config"

    hidden_size: int = 1152
    num_hidden_layers: int = 27
    num_attention_heads: int | None = None
    """None: those of the released tower if the width is its own; a config of another width must give them."""
    intermediate_size: int = 4304
    patch_size: int = 16
    position_grid: int | None = None
    """Side of the learned grid of positions; by default as many patches as `max_image_size` holds."""
    max_image_size: int = 2048
    spatial_merge_size: int = MERGE
    temporal_patch_size: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        kwargs.pop("model_type", None)
        self.position_grid = self.position_grid or self.max_image_size // self.patch_size
        super().__post_init__(**kwargs)


_TEXT_FIELDS = {item.name for item in fields(HyVLMTextConfig)} - {item.name for item in fields(PretrainedConfig)}
_TEXT_KEYS = (_TEXT_FIELDS | {"rope_parameters", "attention_head_dim"}) - {"tie_word_embeddings"}


class HyVLMConfig(StoredConfig):
    """Config of `HunYuanVLMoTForConditionalGeneration`, nested; a flat one is sorted into its sections."""

    model_type = "hunyuan_vl_mot"
    sub_configs = {"text_config": HyVLMTextConfig, "vision_config": HyVLMVisionConfig}
    keys_to_ignore_at_inference = ["past_key_values"]
    auto_map: ClassVar[dict[str, str]] = {}
    """No remote code; TRL asks every model that is not one of transformers' own."""

    text_config: HyVLMTextConfig | dict[str, Any] | None = None
    vision_config: HyVLMVisionConfig | dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    image_token_id: int | None = None
    video_token_id: int | None = None
    special_token_ids: dict[str, int] = field(default_factory=dict)
    """Ids by role (`rl_lab.model.tokenizer.ROLES`), looked up by name in the tokenizer."""

    def __post_init__(self, **kwargs: Any) -> None:
        flat = {key: kwargs.pop(key) for key in list(kwargs) if key in _TEXT_KEYS}
        if not isinstance(self.text_config, HyVLMTextConfig):
            self.text_config = HyVLMTextConfig(**(self.text_config or flat))
        if not isinstance(self.vision_config, HyVLMVisionConfig):
            self.vision_config = HyVLMVisionConfig(**(self.vision_config or {}))
        # Names code of the file's origin; ours is registered under the model type.
        kwargs.pop("auto_map", None)
        super().__post_init__(**kwargs)
        self.set_special_tokens(self.special_token_ids)
        self.check()

    @classmethod
    def check_stored(cls, content: Mapping[str, Any], where: str) -> None:
        """As of every config, and the same of its sections."""
        super().check_stored(content, where)
        for name in cls.sub_configs:
            if not isinstance(content.get(name, {}), dict | None):
                raise UserError(f"{where}: {name} is no object")
        HyVLMTextConfig.check_stored(content.get("text_config") or content, f"{where}, text_config")
        HyVLMVisionConfig.check_stored(content.get("vision_config") or {}, f"{where}, vision_config")

    def to_diff_dict(self) -> dict[str, Any]:
        """As in transformers, with the dtype in one place: loading would copy it into the sections."""
        written = super().to_diff_dict()
        for section in self.sub_configs:
            written[section].pop("dtype", None)
        return written

    def set_special_tokens(self, ids: dict[str, int]) -> None:
        """Take ids by role; the fields that other software reads follow them."""
        self.special_token_ids = dict(ids)
        self.image_token_id = ids.get("image", self.image_token_id)
        self.video_token_id = ids.get("video", self.video_token_id)

    @property
    def text(self) -> HyVLMTextConfig:
        """The language section."""
        assert isinstance(self.text_config, HyVLMTextConfig)
        return self.text_config

    @property
    def vision(self) -> HyVLMVisionConfig:
        """The vision section."""
        assert isinstance(self.vision_config, HyVLMVisionConfig)
        return self.vision_config

    @property
    def vlm_sizes(self) -> TowerSizes:
        """Sizes of the language tower."""
        return tower_sizes(vars(self.text))

    @property
    def vision_sizes(self) -> VisionSizes:
        """Sizes of the vision tower."""
        vision = self.vision
        assert vision.position_grid is not None
        return VisionSizes(
            width=vision.hidden_size,
            depth=vision.num_hidden_layers,
            num_heads=vision.num_attention_heads or RELEASED_VISION_HEADS.get(vision.hidden_size),
            mlp=vision.intermediate_size,
            patch_size=vision.patch_size,
            position_grid=vision.position_grid,
            output=self.text.hidden_size,
            init_std=self.text.initializer_range,
        )

    def check(self) -> None:
        """ValueError, naming the values, for sizes that cannot work together."""
        check_sizes(self.vlm_sizes, self.vision_sizes, self.special_token_ids)
        if self.text.hidden_act != "silu":
            raise ValueError(f"hidden_act is {self.text.hidden_act!r}; only 'silu' is implemented")
