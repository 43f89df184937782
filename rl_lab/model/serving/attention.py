"""Attention in which an image attends to exactly itself, on top of any of vLLM's ordinary causal backends.

A segment is an image's patches and row separators, from the first patch to the last separator. Its tokens see all of
the segment and nothing else, so their attention needs only keys and values of the step itself as long as the step holds
the whole segment. Hence two passes: the backend's causal kernel over everything, which is right for text and fills the
cache, then plain attention over each segment, which replaces the kernel's rows. No backend has to know segments, and
none can silently ignore them; the layout of its cache does not matter either (AMX machines pack it differently). On
CUDA this is the same code around another kernel; it has not been run there.

The scheduler never begins within an image, so that all its tokens are in one step. vLLM cuts prompts at two places. A
step ends when its budget of tokens is used up; that is switched off (`rl_lab.model.serving.processor`), because
`disable_chunked_mm_input` does not help a step that begins at an image's first token. And a prefix that is found in the
cache ends at a multiple of the block size, wherever that is; here it is cut back to before the image, so that no hit
ends inside a segment.

Letters: N tokens of a step, M images of one length, n tokens of an image, H heads, G key/value heads, d head size.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata
from vllm.v1.attention.selector import get_attn_backend
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

BACKENDS = ("CPU_ATTN", "FLASH_ATTN", "TRITON_ATTN", "FLEX_ATTENTION")
"""Backends whose kernels are called with queries, keys and values of the step, as the second pass needs them."""


def step_segments(
    ranges: Mapping[int, Sequence[tuple[int, int]]], starts: Sequence[int], lengths: Sequence[int]
) -> dict[int, list[int]]:
    """First row of every segment of a step, by the length of the segment.

    `ranges` holds first and last position of each image of a request, `starts` [requests + 1] the rows of a request in
    the step, `lengths` its tokens up to the end of the step. Images of earlier and later steps are left out.
    RuntimeError for an image of which the step holds a part only.
    """
    found: dict[int, list[int]] = defaultdict(list)
    for request, images in ranges.items():
        rows = starts[request + 1] - starts[request]
        past = lengths[request] - rows
        for first, last in images:
            if last < past or first >= past + rows:
                continue
            if first < past or last >= past + rows:
                raise RuntimeError(
                    f"an image at tokens {first}..{last} is split by a step over {past}..{past + rows - 1}; "
                    "use the scheduler rl_lab.model.serving.attention.SegmentScheduler"
                )
            found[last - first + 1].append(starts[request] + first - past)
    return dict(found)


def segment_rows(common: CommonAttentionMetadata, device: torch.device) -> list[Tensor]:
    """Rows of the step's segments, one int64 [M, n] for each length."""
    ranges = {request: images for request, images in (common.mm_req_doc_ranges or {}).items() if images}
    if not ranges or common.max_query_len <= 1:
        return []
    assert common.seq_lens_cpu_upper_bound is not None
    found = step_segments(ranges, common.query_start_loc_cpu.tolist(), common.seq_lens_cpu_upper_bound.tolist())
    firsts = {length: torch.tensor(rows)[:, None] for length, rows in found.items()}
    return [(rows + torch.arange(length)).to(device, non_blocking=True) for length, rows in firsts.items()]


def attend_within(query: Tensor, key: Tensor, value: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Full attention of each row of `rows` [M, n] over itself: [M, n, H, d] of query [N, H, d], key and value
    [N, G, d]."""
    q, k, v = (part[rows].transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True).transpose(1, 2)


@cache
def isolated(backend: type[AttentionBackend]) -> type[AttentionBackend]:
    """The backend with a second pass over the segments of each step. ValueError for one that is not in `BACKENDS`."""
    if backend.get_name() not in BACKENDS:
        raise ValueError(
            f"attention backend {backend.get_name()} is not known to attend within images as this model must; "
            f"choose one of {', '.join(BACKENDS)} (--attention-backend)"
        )
    base: Any = backend
    builder: Any = backend.get_builder_cls()
    impl: Any = backend.get_impl_cls()

    class IsolatedBuilder(builder):
        def build(
            self, common_prefix_len: int, common_attn_metadata: CommonAttentionMetadata, fast_build: bool = False
        ) -> Any:
            # The ranges are kept from the backend, which would let images see the text before them as well.
            causal = replace(common_attn_metadata, mm_req_doc_ranges=None)
            metadata = super().build(common_prefix_len, causal, fast_build)
            metadata.segments = segment_rows(common_attn_metadata, self.device)
            return metadata

    class IsolatedImpl(impl):
        def forward(
            self,
            layer: Any,
            query: Tensor,
            key: Tensor,
            value: Tensor,
            kv_cache: Tensor,
            attn_metadata: Any,
            output: Tensor,
            *args: Any,
            **kwargs: Any,
        ) -> Tensor:
            result = super().forward(layer, query, key, value, kv_cache, attn_metadata, output, *args, **kwargs)
            rows_of = output.view(query.shape)
            for rows in attn_metadata.segments if attn_metadata is not None else ():
                rows_of[rows] = attend_within(query, key, value, rows, self.scale).to(output.dtype)
            return result

    class IsolatedBackend(base):
        get_builder_cls = staticmethod(lambda: IsolatedBuilder)
        get_impl_cls = staticmethod(lambda: IsolatedImpl)

    return IsolatedBackend


def segment_backend(head_dim: int, dtype: torch.dtype, kv_cache_dtype: Any) -> type[AttentionBackend]:
    """The backend that vLLM would choose for an ordinary causal model here, with segments. ValueError as `isolated`."""
    return isolated(get_attn_backend(head_dim, dtype, kv_cache_dtype))


def before_image(features: Iterable[MultiModalFeatureSpec], end: int) -> int:
    """`end` (a number of tokens), or the beginning of the image that it would cut in two."""
    spans = [(item.mm_position.offset, item.mm_position.length) for item in features]
    return min([start for start, length in spans if start < end < start + length], default=end)


class SegmentCacheManager(KVCacheManager):
    """The cache manager, whose hits end outside of images and at the end of a block."""

    def get_computed_blocks(self, request: Request) -> tuple[KVCacheBlocks, int, int]:
        """As in the base class: blocks, number of tokens they hold, and a number that only other models use."""
        blocks, found, boundary = super().get_computed_blocks(request)
        if not found:
            return blocks, found, boundary
        block_size = found // len(blocks.blocks[0])
        hit = found
        while (cut := before_image(request.mm_features, hit) // block_size * block_size) < hit:
            hit = cut
        if hit == found:
            return blocks, found, boundary
        return KVCacheBlocks(tuple(group[: hit // block_size] for group in blocks.blocks)), hit, boundary


class SegmentScheduler(Scheduler):
    """vLLM's scheduler with those hits; set through `scheduler_cls`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The base class makes its cache manager itself; the subclass adds a rule and no state.
        self.kv_cache_manager.__class__ = SegmentCacheManager
