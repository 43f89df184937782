"""Settings of a curriculum. None is in the paper: it gives the idea (keep partial success, balance) and no number."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEMES = ("frontier", "uniform", "dynamic", "difficulty_pools")
MODES = ("online", "stage")


@dataclass(frozen=True)
class CurriculumOptions:
    """Defaults are engineering choices; the schemes are described in `algos.curriculum.curriculum`."""

    batch_size: int
    """Items (groups of rollouts) of a selection."""
    scheme: str = "frontier"
    mode: str = "online"
    """online: chosen anew at every selection. stage: probe candidates, keep partial success, train on that set."""
    low: float = 0.1
    high: float = 0.9
    """The frontier band of pass rates or mean rewards."""
    min_spread: float = 0.05
    """Standard deviation that dense rewards must exceed to count as a signal."""
    prior: tuple[float, float] = (1.0, 1.0)
    """Beta prior of every pass rate; (1, 1) is uniform."""
    half_life: float = 20.0
    """Weight versions after which evidence counts half."""
    sharpness: float = 4.0
    """Frontier items are drawn with weight (probability of being in the band) ** sharpness."""
    explore: float = 0.2
    """Least share of a batch for items never observed, while there are any; by what their task and level promise."""
    reprobe: float = 0.1
    """Share for items not observed for `stale_after` weight versions, while there are any."""
    stale_after: int = 50
    cooldown: int | None = None
    """Steps that a selected item rests before it is drawn again, unless nothing else is left; None: as many as it takes
    to read once all items of its category that probably lie in the frontier."""
    pinned_share: float = 0.5
    """Largest share of a batch that pinned items may take; beyond that they take turns."""
    stage_candidates: int | None = None
    """Items probed at the start of a stage; None: all."""
    stage_size: int = 50_000
    """Items kept for a stage at most, balanced over the categories (paper: 50K)."""
    stage_epochs: int = 5
    """Passes over the kept items of a stage (paper: 5)."""
    easy_border: float = 0.8
    hard_border: float = 0.2
    easy_fraction: float = 0.1
    hard_fraction: float = 0.1
    """Difficulty pools: by the mean reward of the newest group; shares of a batch, the rest is normal or unseen."""

    @property
    def refills(self) -> bool:
        """Whether groups without signal are replaced within their step: frontier and dynamic."""
        return self.scheme in ("frontier", "dynamic")

    def __post_init__(self) -> None:
        """ValueError for settings that cannot work, naming the first."""
        problem = next((text for wrong, text in self._problems() if wrong), None)
        if problem:
            raise ValueError(problem)

    def _problems(self) -> list[tuple[bool, str]]:
        shares = {name: getattr(self, name) for name in ("explore", "reprobe", "pinned_share")}
        bad_share = next((name for name, value in shares.items() if not 0 <= value <= 1), None)
        sizes = {"batch_size": self.batch_size, "stage_size": self.stage_size, "stage_epochs": self.stage_epochs}
        bad_size = next((name for name, value in sizes.items() if value < 1), None)
        return [
            (self.scheme not in SCHEMES, f"scheme is {self.scheme!r}; choose one of {', '.join(SCHEMES)}"),
            (self.mode not in MODES, f"mode is {self.mode!r}; choose one of {', '.join(MODES)}"),
            (
                self.mode == "stage" and self.scheme != "frontier",
                f"mode stage keeps partial success, which scheme {self.scheme} does not; use mode online",
            ),
            (bad_size is not None, f"{bad_size} is {sizes.get(bad_size or '')}; it must be at least 1"),
            (
                not 0 < self.low < self.high < 1,
                f"the band ({self.low}, {self.high}) must satisfy 0 < low < high < 1",
            ),
            (
                not 0 <= self.hard_border < self.easy_border <= 1,
                f"hard_border {self.hard_border} must lie below easy_border {self.easy_border}, both in [0, 1]",
            ),
            (bad_share is not None, f"{bad_share} is {shares.get(bad_share or '')}; it must be in [0, 1]"),
            (
                not self.explore + self.reprobe <= 1,
                f"explore {self.explore} + reprobe {self.reprobe} exceed 1; lower one of them",
            ),
            (
                not (min(self.easy_fraction, self.hard_fraction) >= 0 and self.easy_fraction + self.hard_fraction <= 1),
                f"easy_fraction {self.easy_fraction} and hard_fraction {self.hard_fraction} must be shares of a batch",
            ),
            (
                min(self.prior) <= 0 or not math.isfinite(sum(self.prior)),
                f"prior is {self.prior}; give two finite numbers above 0",
            ),
            (not self.half_life > 0, f"half_life is {self.half_life}; it must be above 0"),
            (not 0 < self.sharpness < math.inf, f"sharpness is {self.sharpness}; it must be above 0"),
            (not 0 <= self.min_spread < 0.5, f"min_spread is {self.min_spread}; it must be in [0, 0.5)"),
            (
                self.cooldown is not None and self.cooldown < 0,
                f"cooldown is {self.cooldown}; it must be at least 0, or null for a pass over the frontier",
            ),
            (self.stale_after < 1, f"stale_after is {self.stale_after}; it must be at least 1"),
            (
                self.stage_candidates is not None and self.stage_candidates < 1,
                f"stage_candidates is {self.stage_candidates}; give at least 1, or null for all",
            ),
        ]
