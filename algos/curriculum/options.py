"""Settings of a curriculum. None is in the paper: it gives the idea (keep partial success, balance) and no number."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from envs.by_name import OwnName
from envs.options import Fraction, Named, NonNegativeInt, Number, Options, PositiveFloat, PositiveInt, Rows, nearest

Scheme = Literal["frontier", "uniform", "dynamic", "difficulty_pools"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
Share = Annotated[float, Field(ge=0, le=1, description="easy_fraction and hard_fraction must be shares of a batch")]


class OwnScheme(Options):
    """A scheme of one's own; see docs/schemes.md."""

    code: OwnName
    """A class of one's own, FILE.py:CLASS or MODULE:CLASS (`algos.curriculum.own.ItemWeights`)."""
    settings: Named[str, bool | int | float | str] = {}
    """Its arguments, by name."""
    refills: bool = False
    """Whether groups without signal are replaced within their step."""


class CurriculumOptions(Options):
    """Defaults are engineering choices; the schemes are described in `algos.curriculum.curriculum`."""

    batch_size: Rows = 8
    """Items (groups of rollouts) of a selection."""
    scheme: str = "frontier"
    """How items are chosen: frontier, uniform, dynamic, difficulty_pools (`algos.curriculum.curriculum`), or a name of
    `own`."""
    own: Named[str, OwnScheme] = {}
    """Schemes of one's own, by names of letters, digits and _."""
    mode: Literal["online", "stage"] = "online"
    """online: chosen anew at every selection. stage: probe candidates, keep partial success, train on that set."""
    low: Number = 0.1
    """Lower edge of the frontier, the band of pass rates or mean rewards."""
    high: Number = 0.9
    """The frontier band of pass rates or mean rewards."""
    min_spread: Annotated[float, Field(ge=0, lt=0.5)] = 0.05
    """Standard deviation that dense rewards must exceed to count as a signal."""
    prior: tuple[PositiveFloat, PositiveFloat] = Field(
        default=(1.0, 1.0), strict=False, description="give two finite numbers above 0"
    )
    """Beta prior of every pass rate; (1, 1) is uniform."""
    half_life: PositiveFloat = 20.0
    """Weight versions after which evidence counts half."""
    sharpness: PositiveFloat = 4.0
    """Frontier items are drawn with weight (probability of being in the band) ** sharpness."""
    explore: Fraction = 0.2
    """Least share of a batch for items never observed, while there are any; by what their task and level promise."""
    reprobe: Fraction = 0.1
    """Share for items not observed for `stale_after` weight versions, while there are any."""
    stale_after: PositiveInt = 50
    """Weight versions without an observation after which an item is asked again."""
    cooldown: NonNegativeInt | None = Field(
        default=None, description="it must be at least 0, or null for a pass over the frontier"
    )
    """Steps that a selected item rests before it is drawn again, unless nothing else is left; None: as many as it takes
    to read once all items of its category that probably lie in the frontier."""
    pinned_share: Fraction = 0.5
    """Largest share of a batch that pinned items may take; beyond that they take turns."""
    stage_candidates: PositiveInt | None = Field(default=None, description="give at least 1, or null for all")
    """Items probed at the start of a stage; None: all."""
    stage_size: PositiveInt = 50_000
    """Items kept for a stage at most, balanced over the categories (paper: 50K)."""
    stage_epochs: PositiveInt = 5
    """Passes over the kept items of a stage (paper: 5)."""
    easy_border: Number = 0.8
    """Difficulty pools: an item whose newest group has a mean reward above this is easy."""
    hard_border: Number = 0.2
    """Difficulty pools: below this it is hard."""
    easy_fraction: Share = 0.1
    """Difficulty pools: share of a batch for easy items."""
    hard_fraction: Share = 0.1
    """Difficulty pools: by the mean reward of the newest group; shares of a batch, the rest is normal or unseen."""

    @property
    def refills(self) -> bool:
        """Whether groups without signal are replaced within their step: frontier, dynamic, and own ones that say so."""
        own = self.own.get(self.scheme)
        return self.scheme in ("frontier", "dynamic") if own is None else own.refills

    def with_scheme(self, name: str) -> Self:
        """The same with another of the schemes, and without the code of those that are not it."""
        return self.replace(scheme=name, own={key: own for key, own in self.own.items() if key == name})

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        known = (*SCHEMES, *self.own)
        if self.scheme not in known:
            hint = nearest(self.scheme, known)
            raise ValueError(f"scheme is {self.scheme!r}; choose one of {', '.join(known)}{hint}")
        for name in self.own:
            if name in (*SCHEMES, "base") or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name):
                raise ValueError(f"own.{name}: a scheme of one's own needs a name of its own: letters, digits and _")
        if self.mode == "stage" and self.scheme != "frontier":
            raise ValueError(f"mode stage keeps partial success, which scheme {self.scheme} does not; use mode online")
        if not 0 < self.low < self.high < 1:
            raise ValueError(f"the band ({self.low}, {self.high}) must satisfy 0 < low < high < 1")
        if not 0 <= self.hard_border < self.easy_border <= 1:
            borders = f"hard_border {self.hard_border} must lie below easy_border {self.easy_border}"
            raise ValueError(f"{borders}, both in [0, 1]")
        if self.explore + self.reprobe > 1:
            raise ValueError(f"explore {self.explore} + reprobe {self.reprobe} exceed 1; lower one of them")
        if self.easy_fraction + self.hard_fraction > 1:
            shares = f"easy_fraction {self.easy_fraction} and hard_fraction {self.hard_fraction}"
            raise ValueError(f"{shares} must be shares of a batch")
        return self
