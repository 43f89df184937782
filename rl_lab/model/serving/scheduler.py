"""A scheduler that never begins within an image: no hit in the prefix cache ends inside a segment.

Attention within an image needs all its tokens in one step (`rl_lab.model.serving.attention`). vLLM cuts prompts at two
places. A step ends when its budget of tokens is used up; that is switched off (`rl_lab.model.serving.config`), because
`disable_chunked_mm_input` does not help a step that begins at an image's first token. And a prefix that is found in the
cache ends at a multiple of the block size, wherever that is; here it is cut back to before the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vllm.multimodal.inputs import MultiModalFeatureSpec
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request


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
