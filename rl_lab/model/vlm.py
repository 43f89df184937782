"""The vision-language model: the shared module of the released VLM and of the policy."""

from __future__ import annotations

from torch import nn

from rl_lab.model.mot import LanguageModel
from rl_lab.model.sizes import TowerSizes, VisionSizes
from rl_lab.model.vision import Visual


class VisionLanguageModel(nn.Module):
    """Vision tower with merger, and language tower."""

    def __init__(self, tower: TowerSizes, vision: VisionSizes) -> None:
        super().__init__()
        self.visual = Visual(vision)
        self.language_model = LanguageModel(tower)
