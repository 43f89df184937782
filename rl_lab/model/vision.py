"""Vision tower and merger: images to tokens of the language tower's width, with past frames where there is a memory.

Images of all sizes are packed into one sequence [N, W]: every product runs over all of it, and attention once per size.
Patches are kept in merge order, (h/2, w/2, 2, 2), from the start: blocks attend within one image without regard to
order, and the merger then reads four neighbours as one slice. Images of one size lie together, as a run.

The memory encoder is that of Hy-VLA (arXiv:2606.14409; released code): past frames inside the vision tower, no new
weights. Every `stride`-th block becomes space-time: each patch position attends causally over its K frames before the
usual attention inside each frame. Time 0 is the *oldest* frame.

Letters: M images, or groups of frames (observations times cameras), n patches of one image or frame, N patches of all
images, h x w patch grid of an image, p side of a patch in pixels, W tower width, D output width, H heads, d head size,
K frames of a history with the current one last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rl_lab.model.vlm_config import MERGE, VisionSizes


@dataclass(frozen=True)
class History:
    """How the vision tower reads groups of frames."""

    frames: int = 1
    """K; consecutive images, the current one last."""
    stride: int = 4
    """Blocks stride - 1, 2 * stride - 1, ... are space-time."""
    drop_layer: int | None = None
    """Only the current frame enters this block and the later ones; None: all frames run to the end."""

    def is_spacetime(self, block: int) -> bool:
        """Whether frames meet in this block; a single frame has none to meet."""
        return self.frames > 1 and block % self.stride == self.stride - 1

    def cut(self, depth: int) -> int:
        """Block of a tower of `depth` blocks before which the past frames are dropped.

        Frames meet in space-time blocks only, so after the last of those past frames are of no use: dropping them
        there, and not at the end, changes no number.
        """
        after_spacetime = depth // self.stride * self.stride
        return after_spacetime if self.drop_layer is None else min(self.drop_layer, after_spacetime)


NO_HISTORY = History()
"""Every image by itself."""


def time_embedding(frames: int, width: int, device: torch.device | None = None) -> Tensor:
    """Embedding of the frame's time t = 0 .. K - 1, float32 [K, W]; zero for the oldest frame.

    e(t)[2j] = sin(t w_j), e(t)[2j + 1] = cos(t w_j) - 1, w_j = 100^(-2j / W).
    """
    frequency = 100.0 ** (-torch.arange(0, width, 2, device=device).float() / width)
    angle = torch.arange(frames, device=device).float()[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos() - 1], dim=-1).flatten(1)


def add_time(x: Tensor, time: Tensor) -> Tensor:
    """Images [M * K, n, W] plus the embedding of each one's time, [K, W]."""
    return (x.unflatten(0, (-1, len(time))) + time[:, None].to(x.dtype)).flatten(0, 1)


def values_over_time(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Values mixed over time: at each patch and head, softmax(q k^T / sqrt(d)) v over this and earlier frames.

    q, k, v and the result are [M * K, H, n, d]. Written out because the sequences are K long: fused attention kernels
    pad them to whole tiles and limit how many there may be.
    """
    q, k, v = (heads.unflatten(0, (-1, frames)).movedim(1, -2) for heads in (q, k, v))  # [M, H, n, K, d]
    scores = q.float() @ k.float().transpose(-1, -2) * q.shape[-1] ** -0.5
    later = torch.ones(frames, frames, dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1).to(v.dtype)
    return (weights @ v).movedim(-2, 1).flatten(0, 1)


@dataclass(frozen=True)
class Run:
    """Consecutive images of one size in a packed sequence of patches."""

    count: int
    """Images."""
    height: int
    """Patches in a column."""
    width: int
    """Patches in a row."""

    @property
    def length(self) -> int:
        """Patches of one image."""
        return self.height * self.width

    def __len__(self) -> int:
        return self.count * self.length


def split_runs(x: Tensor, runs: Sequence[Run]) -> list[Tensor]:
    """Packed [N, ...] to one view [count, length, ...] per run."""
    parts = x.split([len(run) for run in runs])
    return [part.unflatten(0, (run.count, run.length)) for part, run in zip(parts, runs, strict=True)]


def pack_runs(parts: Sequence[Tensor]) -> Tensor:
    """Inverse of `split_runs`; a single run is not copied."""
    return parts[0].flatten(0, 1) if len(parts) == 1 else torch.cat([part.flatten(0, 1) for part in parts])


def keep_current(x: Tensor, runs: Sequence[Run], frames: int) -> tuple[Tensor, Sequence[Run]]:
    """The last image of every `frames` consecutive ones, packed [N / K, W], and their runs."""
    if frames == 1:
        return x, runs
    current = [part[frames - 1 :: frames] for part in split_runs(x, runs)]
    return pack_runs(current), [replace(run, count=run.count // frames) for run in runs]


def merge_order(grid: Tensor) -> Tensor:
    """[M, h, w, c] of a patch grid to [M, h * w, c] in merge order."""
    images, height, width, channels = grid.shape
    cells = grid.view(images, height // MERGE, MERGE, width // MERGE, MERGE, channels)
    return cells.permute(0, 1, 3, 2, 4, 5).reshape(images, height * width, channels)


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """Images [M, 3, S, S] to patches [M, n, 3 * p * p] in merge order, features ordered (channel, row, column)."""
    count, channels, height, width = images.shape
    p, side = patch_size, MERGE * patch_size
    cells = images.view(count, channels, height // side, MERGE, p, width // side, MERGE, p)
    return cells.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, height * width // p**2, channels * p * p)


def scale_pixels(images: Tensor, dtype: torch.dtype) -> Tensor:
    """uint8 in [0, 255] or float in [0, 1] to [-1, 1]."""
    if images.dtype == torch.uint8:
        return images.to(dtype).div_(255).mul_(2).sub_(1)
    return images.to(dtype) * 2 - 1


def reorder(packed: Tensor, lengths: Sequence[int], order: Sequence[int]) -> Tensor:
    """Images of a packed sequence in another order: the i-th of the result is image `order[i]`."""
    if list(order) == sorted(order):
        return packed
    parts = packed.split(list(lengths))
    return torch.cat([parts[image] for image in order])


class SplitLinear(nn.Linear):
    """A product of [x; shared(x)] in two halves: that of `shared(x)`, the same along an axis of x, is made once."""

    def forward(self, x: Tensor, shared: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Of x [..., n, W] and shared(x) [..., 1, E], or of both joined as x [..., n, W + E]."""
        if shared is None:
            return super().forward(x)
        own, other = self.weight.split([x.shape[-1], self.in_features - x.shape[-1]], dim=1)
        return F.linear(x, own) + F.linear(shared(x), other, self.bias)


def joined(layer: nn.Module, x: Tensor, shared: Callable[[Tensor], Tensor]) -> Tensor:
    """`layer` of [x; shared(x)]: in two halves, or whole where an adapter wraps the layer."""
    if isinstance(layer, SplitLinear):
        return layer(x, shared)
    return layer(torch.cat([x, shared(x).expand(*x.shape[:-1], -1)], dim=-1))


class PatchProjection(nn.Conv2d):
    """A convolution over patches that are cut already, as one matrix product."""

    def forward(self, patches: Tensor) -> Tensor:
        """[N, 3 * p * p] -> [N, W]."""
        return F.linear(patches, self.weight.flatten(1), self.bias)


class PatchEmbed(nn.Module):
    """Patch projection; the weight has the shape of the released convolution, [W, 3, p, p]."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.proj = PatchProjection(3, sizes.width, sizes.patch_size, stride=sizes.patch_size)

    def forward(self, patches: Tensor) -> Tensor:
        """[N, 3 * p * p] -> [N, W]."""
        return self.proj(patches)


class VisionAttention(nn.Module):
    """Full attention within each image, packed q, k, v projection."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        assert sizes.num_heads is not None
        self.num_heads = sizes.num_heads
        self.qkv = nn.Linear(sizes.width, 3 * sizes.width)
        self.proj = nn.Linear(sizes.width, sizes.width)

    def forward(self, x: Tensor, runs: Sequence[Run], frames: int = 1) -> Tensor:
        """[N, W] -> [N, W]; with `frames` above 1 the values are first mixed over the frames of each group."""
        attended = [self._attend(part, frames) for part in split_runs(self.qkv(x), runs)]
        return self.proj(pack_runs(attended))

    def _attend(self, qkv: Tensor, frames: int) -> Tensor:
        """[M, n, 3 W] -> [M, n, W]."""
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if frames > 1:
            v = values_over_time(q, k, v, frames)
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class VisionMLP(nn.Module):
    """Linear, GELU (erf), linear."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.fc1 = nn.Linear(sizes.width, sizes.mlp)
        self.fc2 = nn.Linear(sizes.mlp, sizes.width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, W] -> [N, W]."""
        return self.fc2(F.gelu(self.fc1(x)))


class VisionBlock(GradientCheckpointingLayer):
    """Pre-norm transformer block without layer scale."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.attn = VisionAttention(sizes)
        self.norm2 = nn.LayerNorm(sizes.width, eps=1e-6)
        self.mlp = VisionMLP(sizes)

    def forward(self, x: Tensor, runs: Sequence[Run], time: Tensor | None = None) -> Tensor:
        """[N, W] -> [N, W]; a space-time block if the embedding of the frames' times, [K, W], is given."""
        if time is None:
            x = x + self.attn(self.norm1(x), runs)
        else:
            timed = pack_runs([add_time(part, time) for part in split_runs(x, runs)])
            x = x + self.attn(self.norm1(timed), runs, len(time))
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """Patch embedding, learned positions, blocks; no class token and no final norm, as released."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.patch_embed = PatchEmbed(sizes)
        self.pos_embed = nn.Parameter(torch.empty(1, sizes.position_grid**2, sizes.width))
        self.blocks = nn.ModuleList(VisionBlock(sizes) for _ in range(sizes.depth))

    def positions(self, height: int, width: int) -> Tensor:
        """Position embedding resampled bilinearly (align_corners=False) to a patch grid, [1, height * width, W]."""
        side = self.sizes.position_grid
        grid = self.pos_embed.view(1, side, side, -1)
        if (height, width) != (side, side):
            resampled = F.interpolate(grid.permute(0, 3, 1, 2).float(), (height, width), mode="bilinear")
            grid = resampled.permute(0, 2, 3, 1).to(self.pos_embed.dtype)
        return merge_order(grid)

    def embed(self, patches: Tensor, runs: Sequence[Run]) -> Tensor:
        """Patches [N, 3 * p * p] in merge order to [N, W], with the position embedding of each size."""
        parts = split_runs(self.patch_embed(patches), runs)
        return pack_runs([part + self.positions(run.height, run.width) for part, run in zip(parts, runs, strict=True)])

    def forward(self, patches: Tensor, runs: Sequence[Run], history: History = NO_HISTORY) -> Tensor:
        """Patches [N, 3 * p * p] of images in [-1, 1], in merge order, to features [N, W] in merge order.

        With a history of K frames every K consecutive images are one group, whose last image alone has features:
        [N / K, W].
        """
        x = self.embed(patches, runs)
        blocks, cut = list(self.blocks), history.cut(len(self.blocks))
        time = time_embedding(history.frames, self.sizes.width, x.device) if history.frames > 1 else None
        for index, block in enumerate(blocks[:cut]):
            x = block(x, runs, time if history.is_spacetime(index) else None)
        x, runs = keep_current(x, runs, history.frames)
        for block in blocks[cut:]:
            x = block(x, runs)
        return x


class MergerPooler(nn.Module):
    """Scores of the four merged patches from [patch; mean of the four]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = {"0": SplitLinear(2 * width, width), "2": nn.Linear(width, width)}
        self.predictor = nn.ModuleDict(layers)

    def forward(self, y: Tensor) -> Tensor:
        """[..., 4, D] -> softmax over the four, per channel, weighted sum [..., D]."""
        mixed = joined(self.predictor["0"], y, lambda four: four.mean(dim=-2, keepdim=True))
        return (self.predictor["2"](F.gelu(mixed)).softmax(dim=-2) * y).sum(dim=-2)


class Merger(nn.Module):
    """2x2 patches to one token: proj2(GELU(pool(proj1 x)))."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.proj1 = nn.Linear(sizes.width, sizes.output)
        self.pooler = MergerPooler(sizes.output)
        self.proj2 = nn.Linear(sizes.output, sizes.output)

    def forward(self, features: Tensor) -> Tensor:
        """[N, W] in merge order -> [N / 4, D], each image row-major."""
        y = self.proj1(features)
        return self.proj2(F.gelu(self.pooler(y.unflatten(0, (-1, MERGE * MERGE)))))


class Visual(nn.Module):
    """Vision tower and merger under their released names."""

    def __init__(self, sizes: VisionSizes) -> None:
        super().__init__()
        self.vision_tower = VisionTower(sizes)
        self.merger = Merger(sizes)

    def forward(self, images: Tensor, history: History = NO_HISTORY) -> Tensor:
        """Images [M, 3, S, S] in [-1, 1] -> tokens [M / K, n / 4, D], row-major; K consecutive images are a history."""
        patch_size = self.vision_tower.sizes.patch_size
        run = Run(len(images), images.shape[-2] // patch_size, images.shape[-1] // patch_size)
        patches = patchify(images, patch_size).flatten(0, 1)
        features = self.vision_tower(patches, [run], history)
        return self.merger(features).unflatten(0, (len(images) // history.frames, -1))

    def encode_patches(self, patches: Tensor, grids: Sequence[tuple[int, int]]) -> Tensor:
        """Tokens [N / 4, D] of images of any sizes, in the order of the images, each row-major.

        `patches` [N, 3 * p * p] holds the images one after the other, each in merge order (the rows of `pixel_values`
        of the Qwen2-VL image processor), in [-1, 1]; `grids` their (height, width) in patches. Attention stays within
        an image. ValueError if the grids do not fit the patches or cannot be merged.
        """
        lengths = [height * width for height, width in grids]
        odd = [grid for grid in grids if grid[0] % MERGE or grid[1] % MERGE]
        if odd or sum(lengths) != len(patches):
            raise ValueError(
                f"{len(patches)} patches for image grids {list(grids)} that hold {sum(lengths)}; the sums must be "
                f"equal and every side a multiple of {MERGE}"
            )
        order = sorted(range(len(grids)), key=lambda image: grids[image])
        runs = [Run(grids.count(grid), *grid) for grid in sorted(set(grids))]
        tokens = self.merger(self.vision_tower(reorder(patches, lengths, order), runs))
        back = sorted(range(len(order)), key=order.__getitem__)
        return reorder(tokens, [lengths[image] // MERGE**2 for image in order], back)
