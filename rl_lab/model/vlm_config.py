"""Config of the vision-language model, with the fields and names of the released `config.json`, and its towers' sizes.

The released file may be nested (`text_config`, `vision_config`) or flat (text fields at the top). What its code
hard-codes or never reads (vision sizes, ids of the special tokens) is true in the files written here; of a released
file it is completed from tensor shapes and tokenizer (`rl_lab.model.loading`). A file may be damaged: every field has
its type, or is refused by its name, and so are options of transformers' callers that ours do not honour.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, create_model
from transformers import PretrainedConfig
from transformers.utils import CONFIG_NAME

from rl_lab.common.errors import UserError
from rl_lab.common.reading import fit, read_object

MAX_LAYERS = 1024
"""Of a tower; a config that asks for more is damaged, and would take minutes to find out."""

MAX_SIZE = 2**30
"""Of anything else; a product of two still fits 64 bits."""

MERGE = 2
"""The merger turns MERGE x MERGE patches into one token."""

MAX_ASPECT = 200
"""Longest side of a picture over its shortest; the Qwen2-VL processor refuses more."""

RELEASED_VISION_HEADS = {1152: 16}
"""Attention heads by width of the vision tower where a config is silent: the released code hard-codes them, and no
tensor's shape tells."""


def check_aspect(height: int, width: int) -> None:
    """ValueError for a picture that is too narrow to be cut into patches."""
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"image of {height} x {width} pixels is too narrow; keep the sides within 1:{MAX_ASPECT}")


_STATED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)
"""Fields of a language tower without a value of ours."""


@dataclass(frozen=True)
class TowerSizes:
    """One decoder tower."""

    hidden: int
    intermediate: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    rope_theta: float
    rope_alpha: float
    init_std: float

    @property
    def rope_base(self) -> float:
        """Base of the rotary frequencies, theta * alpha^(d / (d - 2)) (static NTK scaling, used at every length)."""
        return self.rope_theta * self.rope_alpha ** (self.head_dim / (self.head_dim - 2))


@dataclass(frozen=True)
class VisionSizes:
    """The vision tower; its merger writes tokens of width `output`."""

    width: int
    depth: int
    num_heads: int | None
    """None: not given; no model can be made."""
    mlp: int
    patch_size: int
    position_grid: int
    output: int
    init_std: float


def tower_sizes(text: Mapping[str, Any]) -> TowerSizes:
    """Sizes of the language tower from the fields of its config, with the rope scaling under either spelling.

    ValueError for a field that is missing; `check_sizes` looks at what is there.
    """
    missing = [name for name in _STATED if name not in text]
    if missing:
        raise ValueError(f"the config of the language tower lacks {', '.join(missing)}")
    # Both may be there: vLLM adds `rope_parameters` without the alpha that it does not know.
    rope = (text.get("rope_scaling") or {}) | (text.get("rope_parameters") or {})
    hidden, heads = text["hidden_size"], text["num_attention_heads"]
    return TowerSizes(
        hidden=hidden,
        intermediate=text["intermediate_size"],
        num_layers=text["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=text["num_key_value_heads"],
        head_dim=text.get("head_dim") or text.get("attention_head_dim") or hidden // max(heads, 1),
        vocab=text["vocab_size"],
        eps=text.get("rms_norm_eps", 1e-5),
        rope_theta=rope.get("rope_theta") or text.get("rope_theta", 10000.0),
        rope_alpha=rope.get("alpha") or 1.0,
        init_std=text.get("initializer_range", 0.02),
    )


def check_sizes(tower: TowerSizes, vision: VisionSizes, token_ids: Mapping[str, int]) -> None:
    """ValueError, naming the values, for sizes that no model has, or that cannot work together."""
    if vision.num_heads is None:
        raise ValueError(
            f"the config does not give the attention heads of its vision tower of width {vision.width}, which no "
            "tensor tells; add vision_heads (num_attention_heads in vision_config) to config.json"
        )
    for where, sizes in (("language", vars(tower)), ("vision", vars(vision))):
        for name, value in sizes.items():
            check_size(f"{where} size {name}", value, MAX_LAYERS if name in ("num_layers", "depth") else MAX_SIZE)
    for role, number in token_ids.items():
        if not 0 <= number < tower.vocab:
            raise ValueError(f"special_token_ids has {role} = {number}, but the vocabulary has {tower.vocab} tokens")
    problems = {
        f"{vision.num_heads} vision heads do not divide the vision width {vision.width}; choose a divisor": (
            vision.width % vision.num_heads != 0
        ),
        f"{tower.num_kv_heads} KV heads do not divide {tower.num_heads} heads; choose a divisor": (
            tower.num_heads % tower.num_kv_heads != 0
        ),
        f"head_dim {tower.head_dim} must be even and above 2": tower.head_dim % 2 != 0 or tower.head_dim <= 2,
    }
    for message, wrong in problems.items():
        if wrong:
            raise ValueError(message)


def check_size(name: str, value: Any, most: int) -> None:
    """ValueError for a size, or a positive number such as a base, that is none or above `most`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= most:
        raise ValueError(f"{name} is {value!r}; use a number above 0, at most {most}")


Dtype = Literal["float32", "bfloat16", "float16", "float64"]


class _Stored(BaseModel):
    """What a config may say beside its own fields, and is read."""

    model_config = ConfigDict(protected_namespaces=())

    model_type: str | None = None
    dtype: Dtype | None = None
    torch_dtype: Dtype | None = None
    attention_head_dim: int | None = None
    rope_parameters: dict[str, Any] | None = None


def read_config_file(folder: Path) -> dict[str, Any]:
    """The object in a checkpoint folder's config.json. UserError where there is none, or it is no object."""
    return read_object(Path(folder) / CONFIG_NAME)


@lru_cache
def _own_fields(kind: type[PretrainedConfig]) -> type[BaseModel]:
    """The fields that a config adds to those of transformers, but for its sections, as a model that checks types."""
    inherited = {item.name for item in fields(PretrainedConfig)} | {*kind.sub_configs}
    hints = inspect.get_annotations(kind, eval_str=True)
    own: dict[str, Any] = {item.name: (hints[item.name], None) for item in fields(kind) if item.name not in inherited}
    return create_model(kind.__name__, __base__=_Stored, **own)


SHIM = "rl_lab_auto"
"""Module that a checkpoint names for transformers' Auto classes."""

SHIM_TEXT = '''"""For transformers' Auto classes, where rl_lab is installed; no code of its own."""

from rl_lab.model import HunYuanVLMoTProcessor, HyVLAConfig, HyVLMConfig

__all__ = ["HunYuanVLMoTProcessor", "HyVLAConfig", "HyVLMConfig"]
'''
"""The module. Importing rl_lab.model registers the models, so a folder names its config and its processor alone."""


class StoredConfig(PretrainedConfig):
    """A config that checks what it reads."""

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Nothing: `save_pretrained` would copy the lab's sources into the folder."""

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:  # type: ignore[override]
        """Write config.json and the module that it names, `SHIM_TEXT`."""
        super().save_pretrained(save_directory, **kwargs)
        (Path(save_directory) / f"{SHIM}.py").write_text(SHIM_TEXT)

    def to_diff_dict(self) -> dict[str, Any]:
        """As in transformers, and where to find the config's class when nothing has imported rl_lab."""
        named = {} if self.base_config_key else {"auto_map": {"AutoConfig": f"{SHIM}.{type(self).__name__}"}}
        return super().to_diff_dict() | named

    @classmethod
    def from_pretrained(  # type: ignore[override]  # no other way to read
        cls, pretrained_model_name_or_path: str | Path, **kwargs: Any
    ) -> Self:
        """Read a folder or hub id. UserError, naming the field, for a file of a folder that does not hold this."""
        folder = Path(pretrained_model_name_or_path) / (kwargs.get("subfolder") or "")
        if folder.is_dir():
            cls.check_stored(read_config_file(folder), str(folder / CONFIG_NAME))
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs)

    @classmethod
    def check_stored(cls, content: Mapping[str, Any], where: str) -> None:
        """UserError, in the name of `where`, for a field of another type; unknown fields are others' affair."""
        known = _own_fields(cls)  # type: ignore[arg-type]  # classes can be hashed
        fit({key: value for key, value in content.items() if key in known.model_fields}, known, where)


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
    use_cache: bool | None = None
    """Whether a forward pass that is not asked returns its cache; null: no. Generation has a setting of its own."""
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


_REASONS = {
    "size": "give min_pixels and max_pixels",
    **{f"{kind}_kwargs": "give what it holds directly" for kind in ("text", "images", "videos", "common")},
}


def refuse_unknown(options: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """ValueError, naming it, for an option that would change nothing.

    None and False ask for nothing; names that begin with an underscore are messages of transformers to itself.
    """
    for name, value in options.items():
        if value is not None and value is not False and name not in known and not name.startswith("_"):
            raise ValueError(f"{name} is not an option here: {_REASONS.get(name, 'it would change nothing')}")
