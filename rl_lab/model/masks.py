"""Token layout, positions and attention masks of the policy, bit-equal to those of the released code.

Letters: B rows, V cameras, g side of an image's token grid, T language tokens, P prefix tokens, C action tokens.

In sequence order the prefix is `bos user`, then per camera `start (g patches, row_end) x g end`, then the language
tokens. The towers never need that order: attention only knows positions and masks. So the prefix is *stored* with all
patches first (vision weights) and everything else after them (text weights), and routing by modality is a slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

TEXT_ROLES = ("bos", "user", "vision_start", "row_end", "vision_end")
"""Special tokens of the fixed part of the prefix."""


@dataclass(frozen=True)
class PrefixLayout:
    """The prefix in stored order; the same for every row of a batch, except for language padding."""

    num_cameras: int
    grid: int
    num_language: int
    sequence: Tensor
    """Sequence position of each stored token, int64 [P]."""
    stored: Tensor
    """Inverse of `sequence`: where each token of the sequence is stored, int64 [P]."""
    segment: Tensor
    """Camera whose visual segment (patches and row separators) holds the token, -1 outside, int64 [P]."""
    text_roles: tuple[str, ...]
    """Role of each stored text token before the language tokens."""

    @property
    def num_patches(self) -> int:
        """Stored tokens with vision weights; they come first."""
        return self.num_cameras * self.grid * self.grid

    def __len__(self) -> int:
        return len(self.sequence)


def _camera_roles(camera: int, grid: int) -> list[tuple[str, int]]:
    row = [("patch", camera)] * grid + [("row_end", camera)]
    return [("vision_start", -1), *(row * grid), ("vision_end", -1)]


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def prefix_layout(num_cameras: int, grid: int, num_language: int, device: torch.device) -> PrefixLayout:
    """Layout of `num_cameras` images of grid x grid tokens followed by `num_language` language tokens.

    Cached, hence built outside inference mode: a later training step may save these tensors for its backward pass.
    """
    tokens = [("bos", -1), ("user", -1)]
    for camera in range(num_cameras):
        tokens += _camera_roles(camera, grid)
    tokens += [("language", -1)] * num_language
    patches = [index for index, (role, _) in enumerate(tokens) if role == "patch"]
    order = patches + [index for index, (role, _) in enumerate(tokens) if role != "patch"]
    sequence = torch.tensor(order, device=device)
    roles = tuple(tokens[index][0] for index in order[len(patches) :])
    return PrefixLayout(
        num_cameras=num_cameras,
        grid=grid,
        num_language=num_language,
        sequence=sequence,
        stored=torch.argsort(sequence),
        segment=torch.tensor([tokens[index][1] for index in order], device=device),
        text_roles=roles[: len(roles) - num_language],
    )


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def token_ids(ids: tuple[int, ...], device: torch.device) -> Tensor:
    """int64 ids on a device, copied there once: a copy in every step would make the host wait."""
    return torch.tensor(ids, device=device)


def prefix_valid(layout: PrefixLayout, token_mask: Tensor, num_present: int) -> Tensor:
    """Which stored tokens exist, bool [B, P]: padding of the language (`token_mask` [B, T]) and the visual segments of
    cameras from `num_present` on do not; their start and end tokens do."""
    fixed = layout.segment[: len(layout) - layout.num_language] < num_present
    return torch.cat([fixed.expand(len(token_mask), -1), token_mask], dim=1)


def prefix_positions(layout: PrefixLayout, valid: Tensor) -> Tensor:
    """Rotary positions of the stored tokens, int64 [B, P]: cumulative count of valid tokens - 1, in sequence order."""
    return position_ids(valid[:, layout.stored])[:, layout.sequence]


def position_ids(valid: Tensor) -> Tensor:
    """cumsum(valid) - 1 along the sequence, [B, S]; padding repeats the last position."""
    return torch.cumsum(valid.long(), dim=1) - 1


def prefix_mask(layout: PrefixLayout, valid: Tensor, isolation: bool) -> Tensor:
    """Who sees whom among the stored prefix tokens, bool [B, P, P], row = query.

    Causal between valid tokens; then the rows of visual tokens are rewritten. With `isolation` patches and row
    separators see exactly their own camera's. Without it only patch-patch entries change: same camera yes, other
    cameras never. The rewrite ignores validity, as in the released code: nobody valid sees an absent camera.
    """
    causal = layout.sequence[None, :] <= layout.sequence[:, None]
    mask = causal & valid[:, None, :] & valid[:, :, None]
    same = (layout.segment[None, :] == layout.segment[:, None]) & (layout.segment[:, None] >= 0)
    if isolation:
        return torch.where((layout.segment >= 0)[:, None], same, mask)
    patch = torch.arange(len(layout), device=valid.device) < layout.num_patches
    return torch.where(patch[:, None] & patch[None, :], same, mask)


def joint_mask(layout: PrefixLayout, valid: Tensor, isolation: bool, num_actions: int) -> Tensor:
    """The mask of the whole policy in sequence order, [prefix; state; actions], bool [B, P+1+C, P+1+C].

    Three kinds of block: a prefix token, the state, all actions; a block sees itself and earlier blocks.
    """
    prefix = prefix_mask(layout, valid, isolation)[:, layout.stored][:, :, layout.stored]
    batch, length = valid.shape
    size = length + 1 + num_actions
    mask = torch.zeros(batch, size, size, dtype=torch.bool, device=valid.device)
    mask[:, :length, :length] = prefix
    mask[:, length:, :length] = valid[:, layout.stored][:, None, :]
    mask[:, length:, length] = True
    mask[:, length + 1 :, length + 1 :] = True
    return mask


def let_padding_see_itself(mask: Tensor) -> Tensor:
    """Open the diagonal of a square mask, so that no row is empty.

    Softmax over an empty row is NaN in some kernels, and NaN times a zero weight would reach valid rows a layer later.
    """
    return mask | torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
