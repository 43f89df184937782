"""One damage of a file, and those of a tree of dicts, lists and plain values."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

FEW = 60
"""Keys of one object that are damaged."""
DEEP = 100_000
"""Levels of nesting that no recursive reader survives."""


@dataclass(frozen=True)
class Damage:
    """One way to damage a file."""

    kind: str
    where: str
    """Place in the file."""
    make: Callable[[], bytes | None]
    """The damaged file's bytes; None where it is gone."""

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}" if self.where else self.kind

    def apply(self, path: Path) -> None:
        """Put the damaged file in the place of the good one."""
        made = self.make()
        path.unlink()
        if made is not None:
            path.write_bytes(made)


def tree_damages(tree: Any, write: Callable[[Any], bytes]) -> Iterator[Damage]:
    """A tree of dicts, lists and plain values, each of which is replaced or left out."""
    for keys, value in [((), tree), *_below(tree)]:
        where = ".".join(map(str, keys))
        put = partial(_replaced, tree, keys)
        for kind, new in _values(value):
            yield Damage(kind, f"{where} = {_short(new)}", lambda put=put, new=new: write(put(new)))
        if keys:
            yield Damage("missing key", where, lambda put=put: write(put(None, drop=True)))
        if isinstance(value, dict):
            more = value | {"surprise": 1}
            yield Damage("unknown key", f"{where}.surprise", lambda put=put, more=more: write(put(more)))


def _below(tree: Any, keys: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Keys and value of what is in a tree; of a list only the ends, of an object of many keys a few."""
    places = list(tree) if isinstance(tree, dict) else list(range(len(tree))) if isinstance(tree, list) else []
    few = (
        places[:: max(1, len(places) // FEW)] if isinstance(tree, dict) else dict.fromkeys([*places[:1], *places[-1:]])
    )
    for key in few:
        yield (*keys, key), tree[key]
        yield from _below(tree[key], (*keys, key))


def _values(value: Any) -> Iterator[tuple[str, Any]]:
    """What may stand wrongly in the place of a value."""
    others: list[Any] = [None, "text", 3, [], {}, [[]], {"a": {"b": None}}, True]
    yield from (("other type", other) for other in others if type(other) is not type(value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        yield from (("huge", huge) for huge in (10**12, 1e300, 10**400))
        yield from (("negative", negative) for negative in (-1, -1e12))
        yield from (("not finite", number) for number in (math.nan, math.inf))
        yield from (("zero", 0),) if value else ()
    if isinstance(value, str):
        odd = ("", "\0", "\ud800", "x" * 5000, "../../etc/passwd", "a\nb")
        yield from (("odd text", text) for text in odd)


def _short(value: Any) -> str:
    text = "10**400" if isinstance(value, int) and value > 1e300 else repr(value)
    return text if len(text) < 40 else f"{text[:36]}..."


def _replaced(tree: Any, keys: tuple, new: Any, *, drop: bool = False) -> Any:
    """A copy of a tree with another value at a place, or without it."""
    if not keys:
        return new
    tree = copy.deepcopy(tree)
    above = tree
    for key in keys[:-1]:
        above = above[key]
    if drop:
        del above[keys[-1]]
    else:
        above[keys[-1]] = new
    return tree
