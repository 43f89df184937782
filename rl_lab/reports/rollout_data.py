"""A stored rollout as the scripts of pages read it."""

from __future__ import annotations

import math
from typing import Any

from rl_lab.language.rollout_store import Row


def finite(value: Any, digits: int = 4) -> float | None:
    """A number as JSON can hold it."""
    return round(float(value), digits) if value is not None and math.isfinite(value) else None


def selection_text(row: Row) -> str:
    """What a selection for fine-tuning (`rl_lab.language.rft_selection`) made of a rollout; empty if there was none."""
    if row.get("kept") is None:
        return ""
    fate = "kept for fine-tuning" if row["kept"] else f"dropped: {str(row.get('why_dropped')).replace('_', ' ')}"
    score = row.get("judge_score")
    return fate if score is None else f"{fate}, judge score {score:.3g}"


def rollout_data(row: Row) -> dict[str, Any]:
    """Step, weight version, rewards by part, fate in a selection, and each token with its log-probability."""
    return {
        "step": row["step"],
        "version": row["weight_version"],
        "finished": row["finished"],
        "completion": row["completion"],
        "reward": finite(row["reward"], 3),
        "rewards": [[name, finite(value, 3)] for name, value in row["rewards"].items()],
        "selection": selection_text(row),
        "tokens": row["token_texts"],
        "logprobs": [finite(value, 3) for value in row["logprobs"]],
    }
