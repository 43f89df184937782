"""Traces that were sampled for fine-tuning: what `show` and `why` say of a folder with rollouts and without a pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from algos.rft import REASONS
from rl_lab.common.errors import UserError
from rl_lab.curriculum.store import POOL_FILE
from rl_lab.records.rollouts import RolloutRow, RolloutStore, reward_text, selection_text

NODES = "rft"
"""Folder of a run that holds one folder for each node with traces."""
MEANING = {
    "unrewarded": "its reward failed, so nobody knows whether it is correct",
    "too_hard": "too few traces of the item are correct",
    "too_easy": "too many traces of the item are correct",
    "incorrect": "its reward is below select.min_reward, or without one below half or the mean of its item",
    "unfinished": "it was cut off at the length limit",
    "overlong": "it has more than select.max_tokens tokens",
    "repetitive": "too many of its token n-grams occurred before in it",
    "unjudged": "the judge gave no score",
    "low_score": "its judge score is below select.min_judge_score",
    "duplicate": "a better trace of the item has the same text",
    "near_duplicate": "a better trace of the item is too much like it",
    "surplus": "select.max_per_item other traces of the item are kept, which differ more from each other",
}
assert set(MEANING) == set(REASONS)


def trace_folder(text: str) -> Path | None:
    """The folder with traces that RUN or RUN/rft/NODE names; None if it names a pool or nothing.

    UserError for a run without a pool that holds traces of several nodes.
    """
    given = Path(text)
    if (given / POOL_FILE).is_file() or not given.is_dir() or any(given.glob(f"grpo/*/{POOL_FILE}")):
        return None
    found = [folder for folder in (given, *sorted(given.glob(f"{NODES}/*"))) if RolloutStore(folder).steps()]
    if len(found) > 1:
        raise UserError(f"{given} holds traces of {len(found)} nodes; give one of {', '.join(map(str, found))}")
    return found[0] if found else None


def _rows(folder: Path, item: str) -> list[RolloutRow]:
    """All traces of an item. UserError if there is none."""
    store = RolloutStore(folder)
    rows = store.read(items=[item])
    if not rows:
        known = next((row["item"] for row in store.read(steps=store.steps()[:1], columns=["item"])), "")
        raise UserError(f"{folder} has no trace of {item!r}; an item there is {known!r}")
    return rows


def show_traces(folder: Path, item: str, count: int) -> str:
    """An item's question and traces, each with its rewards, its judge score and what became of it."""
    rows = _rows(folder, item)
    correct = Counter(row["reward"] for row in rows)
    rewards = ", ".join(f"{number} x {reward_text(value)}" for value, number in correct.items())
    head = f"{item}: {len(rows)} traces, rewards {rewards}\nprompt: {rows[0]['prompt']}"
    parts = [head]
    for row in rows[:count]:
        fate = selection_text(row) or "not chosen from yet"
        parts.append(f"sample {row['sample']}, reward {reward_text(row['reward'])}; {fate}\n{row['completion']}")
    left = len(rows) - count
    return "\n\n".join([*parts, *([f"({left} more: --rollouts {len(rows)})"] if left > 0 else [])])


def explain_traces(folder: Path, item: str, step: int) -> Sequence[str]:
    """Why each trace of an item was kept or dropped. UserError if the step did not ask it."""
    rows = [row for row in _rows(folder, item) if row["step"] == step]
    if not rows:
        asked = ", ".join(sorted({str(row["step"]) for row in _rows(folder, item)}))
        raise UserError(f"{item} was not asked in step {step} but in {asked}; give {item}@{asked.split(', ')[0]}")
    return [f"sample {row['sample']}: {_why(row)}" for row in rows]


def _why(row: RolloutRow) -> str:
    text = selection_text(row) or "not chosen from yet"
    reason = row.get("why_dropped")
    return f"{text}: {MEANING[reason]}" if reason else text
