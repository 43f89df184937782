"""Options that callers of a transformers class may pass: honoured by ours, or refused by name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_REASONS = {
    "position_ids": "positions follow from the attention mask; give every packed conversation a row of its own",
    "output_attentions": "attention weights are never formed",
    "inputs_embeds": "tokens choose the weights of their layers by id; give input_ids",
    "size": "give min_pixels and max_pixels",
    **{f"{kind}_kwargs": "give what it holds directly" for kind in ("text", "images", "videos", "common")},
}


def refuse_unknown(options: Mapping[str, Any], known: Collection[str] = ()) -> None:
    """ValueError, naming it, for an option that would change nothing.

    None and False ask for nothing; names that begin with an underscore are messages of transformers to itself.
    """
    for name, value in options.items():
        if value is not None and value is not False and name not in known and not name.startswith("_"):
            raise ValueError(f"{name} is not an option here: {_REASONS.get(name, 'it would change nothing')}")
