"""A policy of one's own: small networks for pictures, state and words, and a flow that is an MLP over whole chunks.

python -m rl_lab.check policy examples/flow_mlp.py:FlowMLP
python -m rl_lab.run examples/flow_mlp.yaml

Letters: B observations, V cameras, S image side, E state, T tokens, N rows, C commands of a chunk, D numbers of one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algos.batch import ObservationBatch
from algos.flow_matching import velocity_from_clean
from algos.policy import FlowModel, PolicySpec

TIMES, WORDS = 16, 32
"""Numbers that a time becomes, and a word."""


class FlowMLP(FlowModel):
    """Predicts the clean chunk, which a small network learns sooner than the velocity."""

    loss_weight_clip = 0.3

    def __init__(self, spec: PolicySpec, width: int = 256) -> None:
        super().__init__(spec)
        patches = 32 * (spec.image_size // 8) ** 2
        self.vision = nn.Sequential(*_convolutions(3, 16, 32, 32), nn.Flatten(1), nn.Linear(patches, width))
        self.vlm = nn.ModuleDict(
            {
                "words": nn.Embedding(spec.vocabulary, WORDS),
                "joined": nn.Linear(spec.num_cameras * width + spec.state_size + WORDS, width),
            }
        )
        chunk = spec.chunk_size * spec.command_size
        self.flow = nn.Sequential(
            *(nn.Linear(width + chunk + TIMES, 2 * width), nn.SiLU()),
            *(nn.Linear(2 * width, 2 * width), nn.SiLU()),
            nn.Linear(2 * width, chunk),
        )

    def encode(self, observation: ObservationBatch) -> Tensor:
        """Features of each observation, [B, width]."""
        pictures = observation.images  # [B, V, 3, S, S]
        if pictures.dtype == torch.uint8:
            pictures = pictures.float() / 255
        seen = self.vision(pictures.flatten(0, 1)).unflatten(0, pictures.shape[:2]).flatten(1)
        valid = observation.token_mask[..., None].float()
        words = (self.vlm["words"](observation.tokens) * valid).sum(1) / valid.sum(1)
        return F.silu(self.vlm["joined"](torch.cat([seen, observation.state, words], dim=1)))

    def velocity(self, prefix: Tensor, x_t: Tensor, time: Tensor) -> Tensor:
        """See `FlowModel`: prefix [N, width], x_t [N, C, D], time [N]."""
        angles = time[:, None] * 2.0 ** torch.arange(TIMES // 2, device=time.device)
        inputs = torch.cat([prefix, x_t.flatten(1), angles.sin(), angles.cos()], dim=1)
        return velocity_from_clean(x_t, self.flow(inputs).view_as(x_t), time)


def _convolutions(*channels: int) -> list[nn.Module]:
    """Each halves the side of the picture."""
    layers: list[nn.Module] = []
    for before, after in zip(channels, channels[1:], strict=False):
        layers += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.SiLU()]
    return layers
