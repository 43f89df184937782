"""Measured spreads of paired differences, by which sweeps and studies say what they can find."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from envs.options import NonNegativeFloat, PositiveInt, Rounds
from rl_lab.config.section import Section


class SpreadConfig(Section):
    """Measured standard deviations of a paired difference; see `rl_lab.stats.Spread`."""

    items: NonNegativeFloat
    """Between held-out items, or episodes."""
    seeds: NonNegativeFloat
    """Between training seeds, of the mean over all items."""
    rest: NonNegativeFloat
    """What is left: of one item and one training seed."""
    n: PositiveInt
    """Held-out items, or episodes, on which they were measured."""
    replicates: Rounds
    """Training seeds on which they were measured; few seeds give a rough value."""
    source: str
    """The run that they come from."""


def read_spread(value: Any, file: str = "sweep.json") -> Any:
    """A path to an earlier sweep.json (or study.json), or its run folder, as the spread that it measured; anything else
    as it is.

    Of several comparisons the root mean square of each part. ValueError where none was measured.
    """
    if not isinstance(value, str):
        return value
    path = Path(value) / file if Path(value).is_dir() else Path(value)
    try:
        summary = json.loads(path.read_text())
        if "rows" in summary:  # of a study
            made = [one for row in summary["rows"] for one in row["methods"]]
        else:
            made = [row["verdict"] for row in summary["variants"] if row.get("verdict")]
        found = [one for one in made if one.get("spread")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} is no {file} ({type(error).__name__}); name one, or give the numbers") from error
    if not found:
        raise ValueError(f"{path} measured no spread: that takes two training seeds or more; give the numbers instead")
    parts = {
        name: math.sqrt(sum(one["spread"][name] ** 2 for one in found) / len(found))
        for name in ("items", "seeds", "rest")
    }
    basis = {"n": min(one["n"] for one in found), "replicates": min(one["seeds"] for one in found)}
    return parts | basis | {"source": f"{summary['name']}, {len(found)} comparisons, {path}"}
