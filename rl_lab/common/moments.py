"""Mean and deviation of rows that come in parts: the statistics by which states and commands are normalised."""

from __future__ import annotations

import numpy as np


class Moments:
    """Of rows [n, ...]: how many, their mean and their population deviation, each [...]."""

    def __init__(self, *parts: np.ndarray) -> None:
        self.count = 0
        self.mean = np.zeros(())
        self._squares = np.zeros(())
        for rows in parts:
            self.add(rows)

    def add(self, rows: np.ndarray) -> None:
        """Chan's update, which loses nothing where the mean is large. No rows change nothing."""
        if not len(rows):
            return
        mean, total = rows.mean(axis=0), self.count + len(rows)
        delta = mean - self.mean
        between = delta**2 * (self.count * len(rows) / total)
        self._squares = self._squares + ((rows - mean) ** 2).sum(axis=0) + between
        self.mean, self.count = self.mean + delta * (len(rows) / total), total

    @property
    def std(self) -> np.ndarray:
        """Population deviation."""
        return np.sqrt(self._squares / max(self.count, 1))
