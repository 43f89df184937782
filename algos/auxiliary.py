"""Auxiliary losses of a model's vision tokens, added to the loss of actions or of text by a weight, in training only.

`NextCode` and `GlobalFeature` are the losses of HY-Embodied-0.5's pre-training (arXiv:2604.07430), which minimises
L_llm + L_vision + L_global: L_vision is the cross-entropy of the next visual code, told by an MLP from a vision token,
L_global the negative cosine between the mapped latent token of an image and the teacher's CLS. `PoseProbe` is ours.
Differs from the paper, which has a teacher ViT, a codebook of 2,000 entries and one code for every 8 x 8 patch:
- codes are the nearest centres of a k-means over the pixels of patches, as many for a token as it merges;
- the global feature are the whitened principal components of thumbnails;
- the mean over an image's tokens stands for its latent token, which the prefix of a policy does not have.
A picture whose tokens are one has no next code: its loss is 0.
The tokens of an image see each other, here as in the released model: the next patch is hidden from none.
Letters: B rows, V cameras, M images, S their side, n = g x g tokens of one (row by row), p side of a patch, F = 3 p p,
K codes, D hidden, E components.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algos.batch import ObservationBatch, TokenBatch
from algos.objective import Objective, SeeingLanguagePolicy, SeenPictures, TokenScores

HEAD_CAMERA = 0
"""Index in `envs.types.CAMERAS`; wrist cameras often cannot see what is asked for, which would be irreducible loss."""
MERGED = 2
"""Patches along either side of a token."""
THUMBNAIL = 16
"""Pixels along either side of a picture whose principal components are the global feature."""
COMPONENTS = 32
"""E of them, where the pictures have as many."""
WEAKEST = 1e-3
"""Deviation of a component beside that of the first below which it is noise."""


def current_views(observation: ObservationBatch) -> Tensor:
    """What the cameras see now, in [0, 1]: uint8 or float [B, V, 3, S, S] or [B, V, K, 3, S, S] -> [B, V, 3, S, S]."""
    images = observation.images if observation.images.ndim == 5 else observation.images[:, :, -1]
    return images / 255 if images.dtype == torch.uint8 else images.float()


def token_patches(images: Tensor, patch_size: int) -> Tensor:
    """The 2 x 2 patches of every token, [..., 3, S, S] -> [..., n, 4, F]."""
    side = MERGED * patch_size
    if images.shape[-1] % side:
        raise ValueError(f"images of {images.shape[-1]} pixels do not divide into tokens of {side}")
    cut = images.unflatten(-1, (-1, MERGED, patch_size)).unflatten(-4, (-1, MERGED, patch_size))
    patches = cut.movedim((-6, -3, -5, -2), (-7, -6, -5, -4))  # [..., g, g, 2, 2, 3, p, p]
    return patches.flatten(-3).flatten(-3, -2).flatten(-4, -3)


def whole_pictures(patches: Tensor, rows: int) -> Tensor:
    """Inverse of `token_patches` for pictures of so many rows of tokens, [..., n, 4, F] -> [..., 3, H, W]."""
    side = math.isqrt(patches.shape[-1] // 3)
    cut = patches.unflatten(-1, (3, side, side)).unflatten(-4, (MERGED, MERGED)).unflatten(-6, (rows, -1))
    pixels = cut.movedim((-7, -6, -5, -4), (-6, -3, -5, -2))  # [..., 3, g, 2, p, g, 2, p]
    return pixels.flatten(-3).flatten(-4, -2)


def nearest_codes(patches: Tensor, centres: Tensor) -> Tensor:
    """Number of the centre [K, F] that is nearest to each patch, [..., F] -> int64 [...]."""
    return torch.cdist(patches.flatten(0, -2), centres).argmin(-1).view(patches.shape[:-1])


def next_code_loss(logits: Tensor, codes: Tensor) -> Tensor:
    """-log p(codes of token i + 1 | token i), mean over the n - 1 tokens that have a next and its codes.

    logits [..., n, 4, K], codes int64 [..., n, 4] -> [...], 0 where n is 1.
    """
    if logits.shape[-3] == 1:
        return 0.0 * logits.sum(dim=(-3, -2, -1))
    logprobs = logits[..., :-1, :, :].log_softmax(-1)
    return -logprobs.gather(-1, codes[..., 1:, :, None])[..., 0].mean(dim=(-2, -1))


def global_loss(mapped: Tensor, feature: Tensor) -> Tensor:
    """-cos(mapped, feature), from -1 to 1: [..., E], [..., E] -> [...]."""
    return -F.cosine_similarity(mapped, feature, dim=-1)


def thumbnails(images: Tensor) -> Tensor:
    """Pictures made small, [..., 3, S, S] -> [..., 3 * 16 * 16]."""
    small = F.adaptive_avg_pool2d(images.flatten(0, -4), THUMBNAIL)
    return small.flatten(1).unflatten(0, images.shape[:-3])


def fit_codebook(patches: Tensor, num_codes: int, seed: int) -> Tensor:
    """Centres [K, F] of a k-means over different patches [N, F]; ValueError where these are fewer."""
    from scipy.cluster.vq import kmeans2  # here, because models are trained where scipy is not installed

    different = np.unique(patches.numpy(), axis=0)  # else most codes would be spent on what never moves
    if len(different) < num_codes:
        raise ValueError(f"{num_codes} codes of {len(different)} different patches; use fewer")
    return torch.from_numpy(kmeans2(different, num_codes, minit="++", rng=seed)[0])


def fit_components(small: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [T] and basis [T, E] of thumbnails [N, T]: (x - mean) @ basis has variance 1 and no correlation on them.

    ValueError where all are alike.
    """
    mean = small.mean(0)
    _, scales, directions = torch.linalg.svd(small - mean, full_matrices=False)
    num = min(COMPONENTS, int((scales > max(WEAKEST * float(scales[0]), 1e-6)).sum()))
    if not num:
        raise ValueError("the pictures are all alike")
    return mean, directions[:num].T * (math.sqrt(len(small) - 1) / scales[:num])


class VisionHead(nn.Module):
    """Reads something off the vision tokens of a policy, whose learning to tell it is the loss. No policy keeps it."""

    name: str
    """Of its metric, `flow/NAME` or `vision/NAME`."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight

    def target(self, batch: Any) -> Tensor:
        """What is to be told, of a `FlowBatch` with its observation. ValueError where the batch does not have it."""
        raise NotImplementedError

    def losses(self, vision: Tensor, target: Tensor) -> Tensor:
        """Of each row: vision tokens [B, V, n, D] and targets -> [B]."""
        raise NotImplementedError

    def group_losses(self, groups: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """`losses` of groups of rows that differ in size, one after the other. One call of the module: its weights may
        be shards, and ranks meet in each call, so `losses` use `forward` itself."""
        return torch.cat([self.losses(vision, target) for vision, target in groups])


class PictureHead(VisionHead):
    """A head that tells what a teacher would say about the pictures themselves."""

    def target(self, batch: Any) -> Tensor:
        """Of what is seen now."""
        return self.target_of(current_views(batch.observation))

    def target_of(self, images: Tensor) -> Tensor:
        """Of pictures in [0, 1], [B, V, 3, H, W]."""
        raise NotImplementedError


class PoseProbe(VisionHead):
    """Auxiliary pose loss: every vision token of the head camera must tell where the objects are, in training only.

    A stand-in for the spatial pre-training that a small policy lacks: it speeds up the vision tower's first steps with
    the simulator's ground truth. The policy itself never sees that truth, and the probe is not saved with it. RMSNorm
    and a linear map lead from each token to the standardised truth vector.
    """

    name = "probe"

    def __init__(self, hidden_size: int, truth_size: int, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.linear = nn.Linear(hidden_size, truth_size)

    def forward(self, vision: Tensor) -> Tensor:
        """Prediction of each head-camera token: vision tokens [B, V, n, hidden] -> [B, n, truth]."""
        return self.linear(self.norm(vision[:, HEAD_CAMERA].float()))

    def target(self, batch: Any) -> Tensor:
        """The simulator's truth, standardised, [B, truth]."""
        if batch.truth is None:
            raise ValueError("the probe needs FlowBatch.truth; leave the probe out for other batches")
        return batch.truth

    def losses(self, vision: Tensor, truth: Tensor) -> Tensor:
        """Mean squared error of each row over its tokens and truth dims: [B, V, n, hidden], [B, truth] -> [B]."""
        return (self.forward(vision) - truth[:, None]).square().mean(dim=(1, 2))


class NextCode(PictureHead):
    """L_vision: the codes of the next token's patches, by RMSNorm and an MLP from every vision token."""

    name = "code"
    centres: Tensor

    def __init__(self, hidden_size: int, centres: Tensor, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.register_buffer("centres", centres)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        outputs = MERGED**2 * len(centres)
        self.mlp = nn.Sequential(nn.Linear(hidden_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, outputs))

    def forward(self, vision: Tensor) -> Tensor:
        """Logits of the next token's codes, [B, V, n, D] -> [B, V, n, 4, K]."""
        return self.mlp(self.norm(vision.float())).unflatten(-1, (MERGED**2, -1))

    def target_of(self, images: Tensor) -> Tensor:
        """Their codes, int64 [B, V, n, 4]."""
        patch_size = math.isqrt(self.centres.shape[1] // 3)
        return nearest_codes(token_patches(images, patch_size), self.centres)

    def losses(self, vision: Tensor, codes: Tensor) -> Tensor:
        """`next_code_loss`, mean over the cameras that there are: [B, V, n, D], [B, V, n, 4] -> [B]."""
        return next_code_loss(self.forward(vision[:, : codes.shape[1]]), codes).mean(1)


class GlobalFeature(PictureHead):
    """L_global: the mean of an image's tokens, by RMSNorm and a linear map, has the direction of its feature."""

    name = "global"
    mean: Tensor
    basis: Tensor

    def __init__(self, hidden_size: int, mean: Tensor, basis: Tensor, weight: float = 1.0) -> None:
        super().__init__(weight)
        self.register_buffer("mean", mean)
        self.register_buffer("basis", basis)
        self.norm = nn.RMSNorm(hidden_size, eps=1e-6)
        self.linear = nn.Linear(hidden_size, basis.shape[1])

    def forward(self, vision: Tensor) -> Tensor:
        """Mapped images, [B, V, n, D] -> [B, V, E]."""
        return self.linear(self.norm(vision.float().mean(2)))

    def target_of(self, images: Tensor) -> Tensor:
        """Their features, [B, V, E]."""
        return (thumbnails(images) - self.mean) @ self.basis

    def losses(self, vision: Tensor, features: Tensor) -> Tensor:
        """`global_loss`, mean over the cameras that there are: [B, V, n, D], [B, V, E] -> [B]."""
        return global_loss(self.forward(vision[:, : features.shape[1]]), features).mean(1)


def add_losses(
    total: Tensor,
    metrics: dict[str, Tensor],
    family: str,
    heads: Sequence[VisionHead],
    losses: Sequence[Tensor],
    count: int,
) -> Tensor:
    """`total` with the weighted sums of every head's losses [N] over `count`; their means become metrics
    `FAMILY/NAME`."""
    for head, of_head in zip(heads, losses, strict=True):
        loss = of_head.sum() / count
        total = total + head.weight * loss
        if len(of_head):
            metrics[f"{family}/{head.name}"] = loss.detach() * (count / len(of_head))
    return total


class SeeingText(Objective):
    """An objective on text, plus the heads' losses of the pictures that its rows show: L + sum_heads weight * mean.

    The mean is over all pictures of all rows, frames of videos among them.
    """

    def __init__(self, text: Any, heads: Sequence[PictureHead]) -> None:
        self.text, self.heads, self.groups = text, tuple(heads), text.groups

    def parameters(self) -> Iterable[nn.Parameter]:
        """The heads' weights; they are not part of the model."""
        return [parameter for head in self.heads for parameter in head.parameters()]

    def denominator(self, batch: TokenBatch) -> tuple[int, int]:
        """What the loss of the text of this whole batch is divided by, and those of its pictures."""
        return self.text.denominator(batch), max(1, batch.num_pictures)

    def metric_count(self, name: str, batch: TokenBatch) -> int:
        """See `Objective`."""
        return batch.num_pictures if name.startswith("vision/") else self.text.metric_count(name, batch)

    def loss(  # type: ignore[override]  # there are two counts
        self,
        policy: SeeingLanguagePolicy,
        batch: TokenBatch,
        generator: torch.Generator,
        denominator: tuple[int, int] | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and the text's metrics with `vision/NAME` of every head; see `Objective.loss`."""
        of_text, of_pictures = denominator or self.denominator(batch)
        watched = _Watched(policy)
        total, metrics = self.text.loss(watched, batch, generator, of_text)
        losses = [
            head.group_losses([(one.vision[:, None], head.target_of(one.images[:, None])) for one in watched.pictures])
            for head in self.heads
        ]
        return add_losses(total, metrics, "vision", self.heads, losses, of_pictures), metrics


class _Watched:
    """A language policy, and the pictures of the text that it has just scored."""

    def __init__(self, policy: SeeingLanguagePolicy) -> None:
        self.policy = policy
        self.pictures: Sequence[SeenPictures] = ()

    def token_logprobs(self, batch: TokenBatch, **options: Any) -> TokenScores:
        """See `SeeingLanguagePolicy`."""
        scores = self.policy.token_logprobs(batch, **options, pictures=True)
        self.pictures = scores.pictures
        return scores
