"""Images of a recorded episode that stay in its file until some of them are asked for."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from envs.types import CAMERAS
from rl_lab.formats import lerobot_read, robotwin


@dataclass(frozen=True)
class StoredImages:
    """Stands for `Episode.images`, uint8 [N, 3, S, S, 3]: has a length, can be indexed, and becomes an array."""

    format: str
    """"robotwin" or "lerobot"."""
    path: str
    """The HDF5 file, or the folder of the dataset."""
    episode: int
    """Index in the dataset; 0 in a file of its own."""
    count: int
    """N."""
    image_size: int
    """S; views of another shape are scaled to fit and centred on black."""

    def __len__(self) -> int:
        return self.count

    @property
    def shape(self) -> tuple[int, ...]:
        """As of the array."""
        return (self.count, len(CAMERAS), self.image_size, self.image_size, 3)

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """The frames of these numbers, read now; BrokenEpisodeError if they are no longer there."""
        numbers = np.atleast_1d(np.arange(self.count)[numbers])
        wanted, places = np.unique(numbers, return_inverse=True)
        if self.format == "robotwin":
            return robotwin.read_images(Path(self.path), wanted, self.image_size)[places]
        return lerobot_read.read_images(Path(self.path), self.episode, wanted, self.image_size)[places]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[np.arange(self.count)]

    def labels(self) -> dict[str, Any]:
        """The fields, as JSON holds them."""
        return asdict(self)
