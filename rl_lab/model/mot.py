"""Decoder tower of the Mixture-of-Transformers: text and vision weights per layer, one attention over both.

A layer is given to its callers in two halves, `project` (norm and q, k, v) and `finish` (output projection, residual,
MLP), because attention happens between them over tokens of different modality or of different towers. Both halves take
the route whose weights they use, so no token ever passes through weights that are not its own.

A packed batch goes through the tower without a stored mask. Rows are causal. The rows of visual segments
(`rl_lab.model.layout`) are then computed again by full attention inside their own segment: they see nothing else, so
the first result is replaced, and no S x S mask is ever made. Only a continuation of a cache uses a mask, of its new
tokens by all cached ones; it hides the padding on the left.

Letters: B rows, S tokens of a row, P prefix tokens, T packed tokens, Tv of them patches, Tt of them text, D hidden, H
heads, G key/value heads, d head size, K cached tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_lab.model.layout import Layout, visible
from rl_lab.model.vlm_config import TowerSizes

Route = Literal["text", "vision"]

SUFFIX: dict[Route, str] = {"text": "", "vision": "_v"}
"""Ending of the released names of a route's weights."""


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last axis, computed in float32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Same shape and dtype as `x`."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


def rotary(positions: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosine and signed sine of position * base^(-2i/d), float32 [B, S, 1, d], to broadcast over heads.

    The frequencies fill both halves; the sine is negative in the first, as `rotate` wants it.
    """
    exponent = torch.arange(0, head_dim, 2, device=positions.device).float() / head_dim
    angle = positions[..., None, None].float() * (1.0 / base**exponent)
    sin = angle.sin()
    return angle.cos().repeat(1, 1, 1, 2), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding with half-split pairs (i, i + d/2): [B, S, heads, d], in the dtype of x."""
    cos, sin = rope
    return (x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Projections of both routes and the query/key norms they share."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.sizes = sizes
        queries, keys = sizes.num_heads * sizes.head_dim, sizes.num_kv_heads * sizes.head_dim
        for suffix in SUFFIX.values():
            self.add_module(f"q_proj{suffix}", nn.Linear(sizes.hidden, queries, bias=False))
            self.add_module(f"k_proj{suffix}", nn.Linear(sizes.hidden, keys, bias=False))
            self.add_module(f"v_proj{suffix}", nn.Linear(sizes.hidden, keys, bias=False))
            self.add_module(f"o_proj{suffix}", nn.Linear(queries, sizes.hidden, bias=False))
        self.query_layernorm = RMSNorm(sizes.head_dim, sizes.eps)
        self.key_layernorm = RMSNorm(sizes.head_dim, sizes.eps)

    def heads(self, name: str, x: Tensor, route: Route) -> Tensor:
        """Projection `name` (q, k or v) of x, [B, S, heads, d]."""
        projected = getattr(self, f"{name}_proj{SUFFIX[route]}")(x)
        return projected.unflatten(-1, (-1, self.sizes.head_dim))

    def queries(self, q: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary embedding first, then the query norm (the order of the released model)."""
        return self.query_layernorm(rotate(q, rope))

    def keys(self, k: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """Rotary embedding first, then the key norm."""
        return self.key_layernorm(rotate(k, rope))


class MLP(nn.Module):
    """down(silu(gate x) * up x)."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.up_proj = nn.Linear(sizes.hidden, sizes.intermediate, bias=False)
        self.down_proj = nn.Linear(sizes.intermediate, sizes.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(GradientCheckpointingLayer):
    """One layer of a tower with the weights of both routes, under the released names."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        for suffix in SUFFIX.values():
            self.add_module(f"input_layernorm{suffix}", RMSNorm(sizes.hidden, sizes.eps))
            self.add_module(f"post_attention_layernorm{suffix}", RMSNorm(sizes.hidden, sizes.eps))
            self.add_module(f"mlp{suffix}", MLP(sizes))

    def forward(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function(layer, *arguments)` as one call of the module, which `gradient_checkpointing_enable` can repeat."""
        return function(self, *arguments)

    def project(self, x: Tensor, route: Route, needs: str = "qkv") -> list[Tensor]:
        """Those of q [B, S, H, d], k and v [B, S, G, d] that are asked for, before rotary embedding and norms."""
        normed = getattr(self, f"input_layernorm{SUFFIX[route]}")(x)
        return [self.self_attn.heads(name, normed, route) for name in needs]

    def finish(self, x: Tensor, attended: Tensor, route: Route) -> Tensor:
        """The residual stream [B, S, D] after attention output [B, S, H * d] and MLP."""
        suffix = SUFFIX[route]
        x = x + getattr(self.self_attn, f"o_proj{suffix}")(attended)
        normed = getattr(self, f"post_attention_layernorm{suffix}")(x)
        return x + getattr(self, f"mlp{suffix}")(normed)


class Tower(nn.Module):
    """Layers and the final norm; the language tower also holds the token embedding."""

    def __init__(self, sizes: TowerSizes, *, embeds_tokens: bool) -> None:
        super().__init__()
        self.sizes = sizes
        if embeds_tokens:
            self.embed_tokens = nn.Embedding(sizes.vocab, sizes.hidden)
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.num_layers))
        self.norm = RMSNorm(sizes.hidden, sizes.eps)

    def __iter__(self) -> Iterator[DecoderLayer]:
        """The layers in order."""
        return cast(Iterator[DecoderLayer], iter(self.layers))


class CausalLM(nn.Module):
    """The language tower with its output embedding, tied to the input embedding."""

    def __init__(self, sizes: TowerSizes) -> None:
        super().__init__()
        self.model = Tower(sizes, embeds_tokens=True)
        self.lm_head = nn.Linear(sizes.hidden, sizes.vocab, bias=False)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention [B, S, H * d] of q [B, S, H, d] over k and v [B, G, K, d]; bias [B, S, K] is 0 or -inf."""
    attended = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=bias[:, None], enable_gqa=True)
    return attended.transpose(1, 2).flatten(2)


def attention_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is True, -inf elsewhere; made once and used in every layer."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))


@dataclass
class LayerCache:
    """Keys (rotated and normed) and values of a stretch of tokens, one entry [B, G, S, d] per layer."""

    keys: list[Tensor]
    values: list[Tensor]

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Keys and values with a layer axis, [B, L, G, S, d]."""
        return torch.stack(self.keys, dim=1), torch.stack(self.values, dim=1)


def prefix_layer(
    layer: DecoderLayer, vision: Tensor, text: Tensor, rope: tuple[Tensor, Tensor], bias: Tensor, last: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys and values [B, G, P, d] of a layer and its output, vision [B, Pv, D] and text [B, Pt, D].

    Of the last layer only keys and values are computed; its input is returned.
    """
    num_vision, needs = vision.shape[1], "kv" if last else "qkv"
    heads = zip(layer.project(vision, "vision", needs), layer.project(text, "text", needs), strict=True)
    *q, k, v = (torch.cat(pair, dim=1) for pair in heads)
    keys, values = layer.self_attn.keys(k, rope).transpose(1, 2), v.transpose(1, 2)
    if not last:
        attended = attend(layer.self_attn.queries(q[0], rope), keys, values, bias)
        vision = layer.finish(vision, attended[:, :num_vision], "vision")
        text = layer.finish(text, attended[:, num_vision:], "text")
    return keys, values, vision, text


def run_prefix(
    tower: Tower, vision: Tensor, text: Tensor, positions: Tensor, bias: Tensor
) -> tuple[LayerCache, Tensor]:
    """Run vision tokens [B, Pv, D] and text tokens [B, Pt, D], stored in this order, through the language tower.

    `positions` [B, P] and `bias` [B, P, P] follow the stored order. Returns keys and values of every layer and the
    vision tokens before the last layer, whose output nothing reads.
    """
    rope = rotary(positions, tower.sizes.head_dim, tower.sizes.rope_base)
    cache = LayerCache([], [])
    for index, layer in enumerate(tower):
        last = index == tower.sizes.num_layers - 1
        keys, values, vision, text = layer(prefix_layer, vision, text, rope, bias, last)
        cache.keys.append(keys)
        cache.values.append(values)
    return cache, vision


Rope = tuple[Tensor, Tensor]


@dataclass
class Trace:
    """What a pass leaves for those who look at it, of every layer; the pass itself computes nothing otherwise."""

    hidden: list[Tensor] | None = None
    """Residual stream [T, D] before the first layer and after each."""
    weights: list[Tensor] | None = None
    """Attention weights [B, H, S, K]; 0 at padding."""
    vision: Tensor | None = None
    """Patches [Tv, D] as they enter the last layer that ran."""


@dataclass
class Past:
    """Keys and values to write to and, if they hold anything, to read from."""

    cache: Cache
    length: int
    """Tokens of a row that are cached before this call."""
    mask: Tensor | None = None
    """bool [B, 1, S, K], which of all cached tokens each new one sees; None: all of them."""


def continuation_mask(attention_mask: Tensor | None, new: int, cached: int, device: torch.device) -> Tensor | None:
    """Which of `cached` tokens (the new ones are the last of them) the `new` ones see: valid, and not later ones.

    `attention_mask` is [B, K] or None without padding. A padded token sees itself, so that no row is empty.
    """
    if attention_mask is None and new == 1:
        return None
    own = torch.arange(cached - new, cached, device=device)[:, None]
    column = torch.arange(cached, device=device)
    mask = (column <= own)[None, None]
    if attention_mask is not None:
        mask = mask & attention_mask.bool()[:, None, None, :]
    return mask | (column == own)


def attend_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
    """Attention [B, S, H * d] of q [B, S, H, d] over k and v [B, G, K, d]."""
    if q.shape[1] == 1:
        # One query: the heads of a group become its queries, so that no kernel has to repeat keys.
        folded = q.unflatten(2, (k.shape[1], -1)).squeeze(1)
        return F.scaled_dot_product_attention(folded, k, v, attn_mask=mask).flatten(1).unsqueeze(1)
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, is_causal=causal, enable_gqa=True
    )
    return attended.transpose(1, 2).flatten(2)


def attend_segments(attended: Tensor, q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Packed attention [T, H * d] with the tokens of visual segments attending to their own segment alone."""
    if not layout.segments:
        return attended
    results = []
    for members in layout.segments:
        taken = (x.index_select(0, members.flatten()).unflatten(0, members.shape) for x in (q, k, v))
        queries, keys, values = taken
        results.append(attend_rows(queries, keys.transpose(1, 2), values.transpose(1, 2)).flatten(0, 1))
    everyone = torch.cat([members.flatten() for members in layout.segments])
    return attended.index_copy(0, everyone, torch.cat(results))


def attention_weights(q: Tensor, keys: Tensor, layout: Layout, past: Past | None) -> Tensor:
    """Weights [B, H, S, K] of packed q [T, H, d] over keys [B, G, K, d]: the present ones, or all those of a past."""
    queries = layout.source.spread(q).unflatten(2, (keys.shape[1], -1)).permute(0, 2, 3, 1, 4)
    mask = visible(layout)
    if past is not None and past.length:
        before = keys.new_ones(mask.shape[:2] + (past.length,), dtype=torch.bool)
        if past.mask is not None:
            before &= past.mask[:, 0, :, : past.length]
        for row, spans in enumerate(layout.spans):
            for start, end in spans:
                before[row, start:end] = False
        mask = torch.cat([before, mask], dim=2)
    scores = queries @ keys[:, :, None].transpose(-1, -2) * q.shape[-1] ** -0.5
    weights = scores.masked_fill(~mask[:, None, None], float("-inf")).softmax(dim=-1).nan_to_num()
    return weights.flatten(1, 2)


def attend_packed(
    q: Tensor, k: Tensor, v: Tensor, layout: Layout, index: int, past: Past | None, trace: Trace
) -> Tensor:
    """Attention [T, H * d] of layer `index` over packed q [T, H, d], k and v [T, G, d] and the past, if any."""
    if trace.weights is not None and past is None:
        trace.weights.append(attention_weights(q, layout.source.spread(k).transpose(1, 2), layout, past))
    if past is not None:
        keys, values = (layout.source.spread(x).transpose(1, 2) for x in (k, v))
        # A static cache gives its whole length, of which this much is written.
        written = past.length + keys.shape[2]
        keys, values = (x[:, :, :written] for x in past.cache.update(keys, values, index))
        if trace.weights is not None:
            trace.weights.append(attention_weights(q, keys, layout, past))
    if past is not None and past.length:
        attended = layout.source.collect(attend_rows(layout.source.spread(q), keys, values, mask=past.mask))
    else:
        queries, keys, values = (layout.causal.spread(x) for x in (q, k, v))
        rows = attend_rows(queries, keys.transpose(1, 2), values.transpose(1, 2), causal=True)
        attended = layout.causal.collect(rows)
    return attend_segments(attended, q, k, v, layout)


def packed_layer(
    layer: DecoderLayer,
    vision: Tensor,
    text: Tensor,
    index: int,
    layout: Layout,
    rope: Rope,
    past: Past | None,
    trace: Trace,
) -> tuple[Tensor, Tensor]:
    """One layer over patches [Tv, D] and text [Tt, D]."""
    parts = _routes(vision, text)
    heads = [layer.project(x, route) for x, route in parts]
    q, k, v = (group[0] if len(group) == 1 else torch.cat(group) for group in zip(*heads, strict=True))
    attn = layer.self_attn
    attended = attend_packed(attn.queries(q, rope), attn.keys(k, rope), v, layout, index, past, trace)
    split = attended.split([len(x) for x, _ in parts])
    done = {route: layer.finish(x, own, route) for (x, route), own in zip(parts, split, strict=True)}
    return done.get("vision", vision), done.get("text", text)


def _routes(vision: Tensor, text: Tensor) -> list[tuple[Tensor, Route]]:
    """Both routes, without an empty one unless gradients are on: ranks of a sharded model must agree on who has one."""
    parts: list[tuple[Tensor, Route]] = [(vision, "vision"), (text, "text")]
    return [(x, route) for x, route in parts if len(x) or torch.is_grad_enabled()]


def run_packed(
    tower: Tower,
    vision: Tensor,
    text: Tensor,
    layout: Layout,
    past: Past | None = None,
    trace: Trace | None = None,
) -> Tensor:
    """Residual stream [T, D] after the last layer, packed and not normed, from patches [Tv, D] and text [Tt, D]."""
    trace = trace or Trace()
    cos, sin = rotary(layout.positions[None], tower.sizes.head_dim, tower.sizes.rope_base)
    rope = cos[0], sin[0]
    for index, layer in enumerate(tower):
        if trace.hidden is not None:
            trace.hidden.append(torch.cat([vision, text]))
        trace.vision = vision
        vision, text = layer(packed_layer, vision, text, index, layout, rope, past, trace)
    hidden = torch.cat([vision, text]) if len(vision) else text
    if trace.hidden is not None:
        trace.hidden.append(hidden)
    return hidden
