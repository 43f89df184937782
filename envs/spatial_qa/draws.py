"""What a generator gives back, and what it draws from: a random stream, the knobs and scenes of the right split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from envs.spatial_qa.items import Knobs, layouts_of
from envs.spatial_qa.still_life import Kind, StillLife, arrange, draw_kinds

ARRANGEMENTS = 12
"""Draws of positions before a scene is given up."""
LETTERS = "ABCDEFGH"
WISH_STREAM = 80
"""Second number of the stream of `Draw.wish`."""


Found = TypeVar("Found")


class UnclearError(Exception):
    """A scene that has no clear answer: the question is tried with another one."""


def give_up_if(unclear: Any) -> None:
    """UnclearError if that is so."""
    if unclear:
        raise UnclearError


def certain(found: Found | None) -> Found:
    """What was found; UnclearError if it is None."""
    if found is None:
        raise UnclearError
    return found


@dataclass(frozen=True)
class Question:
    """A question before it becomes an item."""

    text: str
    reward_type: str
    answer: Any
    """Ground truth."""
    reply: str
    """The answer as a model should write it."""
    thought: str
    """The solver's reasoning."""
    image: np.ndarray
    scene: str


@dataclass(frozen=True)
class Draw:
    """The source of one attempt at a question."""

    rng: np.random.Generator
    knobs: Knobs
    seed: int
    attempt: int

    def pick(self, options: Sequence[Any]) -> Any:
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def coin(self) -> bool:
        """True in half of the draws."""
        return bool(self.rng.random() < 0.5)

    def wish(self, options: Sequence[Any]) -> Any:
        """One of the options, one for all attempts at a seed: else answers that scenes rarely give would be rare."""
        return options[int(np.random.default_rng([self.seed, WISH_STREAM]).integers(len(options)))]

    def still(self, kinds: list[Kind] | None = None) -> StillLife:
        """A still life of these kinds (by default `num_objects` different ones), all of them clear, or UnclearError."""
        kinds = draw_kinds(self.rng, self.knobs.num_objects) if kinds is None else kinds
        layout = self.pick(layouts_of(self.seed))
        for _ in range(ARRANGEMENTS):
            things = arrange(self.rng, layout, kinds)
            if things is not None:
                life = StillLife(f"{layout}:{self.seed}", things, self.knobs, self.rng)
                give_up_if(not life.all_clear())
                return life
        raise UnclearError

    def choice(self, options: Sequence[str], right: str) -> tuple[str, str]:
        """Options in random order as `A left, B right`, and the letter of the right one."""
        order = [options[i] for i in self.rng.permutation(len(options))]
        shown = ", ".join(f"{letter} {option}" for letter, option in zip(LETTERS, order, strict=False))
        return shown, LETTERS[order.index(right)]


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def sentence(text: str) -> str:
    """With a capital letter."""
    return text[0].upper() + text[1:]
