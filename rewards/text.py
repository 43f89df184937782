"""Rewards of choices, yes or no, and orderings."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from rewards.answers import parse_choice, parse_ordering, parse_yes_no
from rewards.truth import true_ordering, true_word


def choice_reward(answer: str, truth: Any) -> float:
    """`choice`: 1 for the letter of the right option, else 0."""
    return float(parse_choice(answer) == true_word(truth, tuple(string.ascii_uppercase), str.upper))


def yes_no_reward(answer: str, truth: Any) -> float:
    """`yes_no`: 1 for the right word and not the other one, else 0."""
    return float(parse_yes_no(answer) == true_word(truth, ("yes", "no"), str.lower))


def ordering_reward(answer: str, truth: Any) -> float:
    """`ordering`: LCS(answered, true) / max(number answered, number true), longest common subsequence of entries."""
    target = true_ordering(truth)
    found = parse_ordering(answer)
    return longest_common_subsequence(found, target) / max(len(found), len(target)) if found else 0.0


def longest_common_subsequence(entries: Sequence[str], others: Sequence[str]) -> int:
    """Length of the longest sequence that both contain in order, gaps allowed."""
    lengths = [0] * (len(others) + 1)
    for entry in entries:
        diagonal = 0
        for j, other in enumerate(others, start=1):
            diagonal, lengths[j] = lengths[j], diagonal + 1 if entry == other else max(lengths[j], lengths[j - 1])
    return lengths[-1]
