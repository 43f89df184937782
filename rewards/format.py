"""Reward of the reply's outer form. Off by default (weight 0): no format reward is reported for HY-Embodied-0.5."""

from __future__ import annotations

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def format_reward(text: str) -> float:
    """1 for `<think>..</think><answer>..</answer>` with each tag at most once and nothing outside, else 0.

    White space may stand between and around. The start of the thinking block may be in the prompt, so `<think>` may be
    absent; so may the whole block, as behind a prompt that asks for no thinking. The answer is not empty.
    """
    if any(text.count(tag) > 1 for tag in TAGS):
        return 0.0
    before, opened, rest = text.partition("<answer>")
    answer, closed, after = rest.partition("</answer>")
    thought, ended, between = before.strip().partition("</think>")
    outside = after.strip() or (between.strip() if ended else thought)
    stray = "<think>" in thought.removeprefix("<think>") or "think>" in answer
    return float(bool(opened and closed and answer.strip()) and not outside and not stray)
