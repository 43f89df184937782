"""What records hold beside arrays, as JSON lines and tables store it; its types are checked when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, field, fields, make_dataclass
from typing import Any, get_type_hints

from envs.types import BIMANUAL, Candidates, Episode, PreferencePair
from rl_lab.common.reading import fit

Labels = dict[str, Any]
SEGMENTS, BEFORE = ("winner", "loser"), "before"
"""`before`: frames before a pair or a state; missing where the policy has no memory."""
ARRAYS: dict[type, tuple[str, ...]] = {
    Episode: ("poses", "actions", "frame_steps", "images", "truth", "paths"),
    PreferencePair: (*SEGMENTS, BEFORE),
    Candidates: ("poses", "actions", "images", "after", "expert", "progress", "success", BEFORE),
}
"""Fields of records that are no labels."""


def label_names(kind: type) -> list[str]:
    """Fields of a kind of record that are labels, in order."""
    return [item.name for item in fields(kind) if item.name not in ARRAYS[kind]]


def labels_of(record: Any) -> Labels:
    """Everything about a record that is not an array, plain as JSON holds it; without a layout it is `BIMANUAL`."""
    found = {name: getattr(record, name) for name in label_names(type(record))}
    layout = found.pop("layout", BIMANUAL)
    return found if layout == BIMANUAL else found | {"layout": asdict(layout)}


def read_labels(kind: type, stored: Mapping[str, Any], where: str) -> Labels:
    """The labels of a record from JSON; UserError with the one that is missing, unknown or of another type."""
    return dict(vars(fit(dict(stored), _CLASSES[kind], where)))


def _class(kind: type) -> type:
    hints = get_type_hints(kind)
    own = {item.name: item for item in fields(kind)}
    return make_dataclass("Labels", [(name, hints[name], _default(own[name])) for name in label_names(kind)])


def _default(item: Field) -> Any:
    if item.default_factory is not MISSING:
        return field(default_factory=item.default_factory)
    return field(default=item.default)


_CLASSES = {kind: _class(kind) for kind in ARRAYS}
