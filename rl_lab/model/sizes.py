"""Sizes of the towers, read from the language-model section of either config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
