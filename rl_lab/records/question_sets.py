"""Files of one's own as the sets of a run: rows that a later stage could not use are found before the first begins, and
so are rows that stand in two sets."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from envs.spatial_qa.items import Item
from rl_lab.common.errors import UserError
from rl_lab.config.language import file_key, is_imitated
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import model_processor
from rl_lab.records.item_files import SolutionFile, conversation_row, item_row, write_rows
from rl_lab.records.questions import (
    SHOWN_ROWS,
    BadRow,
    Conversation,
    QuestionData,
    item_conversation,
    read_questions,
    source_rows,
)
from rl_lab.records.token_batches import expanded_tokens, item_prompt

THINKING = re.compile(r"\s*/(no_)?think\s*$")
"""How a prompt asks to think or not; the question is the same."""
SetRow = Item | Conversation


@dataclass(frozen=True)
class Limits:
    """What the later stages of a run can take."""

    processor: HunYuanVLMoTProcessor
    images_per_prompt: int
    max_model_len: int
    """Of the engines, in tokens: a prompt with its pictures, and at least one token of an answer."""


def run_limits(config: Any) -> Limits:
    """Of a run, by its `model` and `engine` sections."""
    return Limits(model_processor(config.model), config.engine.images_per_prompt, config.engine.max_model_len)


def unfit(row: SetRow, name: str, limits: Limits | None) -> str | None:
    """Why a row cannot be part of the set of this name; None if it can, as far as the limits tell."""
    if not is_imitated(name):
        if isinstance(row, Conversation):
            return "a conversation has no answer to score; give it in cold_start_file"
        return None if limits is None else _not_asked(row, limits)
    if isinstance(row, Item):
        if not row.solution:
            return "it has no solution to imitate"
        row = item_conversation(row)
    return None if limits is None else _not_written(row, limits.processor)


def _not_asked(item: Item, limits: Limits) -> str | None:
    """Why no engine answers an item."""
    if len(item.images) > limits.images_per_prompt:
        return f"it has {len(item.images)} pictures, but engine.images_per_prompt is {limits.images_per_prompt}"
    length = len(expanded_tokens(item_prompt(item, limits.processor), limits.processor))
    if length >= limits.max_model_len:
        return (
            f"its prompt is {length} tokens long with its pictures, which leaves no room for an answer: "
            f"engine.max_model_len is {limits.max_model_len}"
        )
    return None


def _not_written(talk: Conversation, processor: HunYuanVLMoTProcessor) -> str | None:
    """Why a conversation cannot be made into tokens."""
    if talk.videos:
        return "it holds a video file, whose frames nothing here reads; give frames as images"
    try:
        turns: Any = list(talk.messages)
        processor.tokenizer.apply_chat_template(turns, chat_template=processor.chat_template, tokenize=False)
    except jinja2.TemplateError as error:
        return f"the chat template refuses it: {error}"
    return None


def take_file(source: Path, name: str, target: Path, *, skip_bad: bool, limits: Limits | None = None) -> dict[str, Any]:
    """Questions or conversations of a user's file; counts, the rows that were left out, and the fields without meaning.

    UserError, unless bad rows are skipped, for rows that this set cannot use, and for a file without any that it can.
    """
    data = read_questions(source, skip_bad=skip_bad)
    read: list[SetRow] = [*data.items, *data.conversations]
    reasons = {row.id: unfit(row, name, limits) for row in read}
    left = {identity: reason for identity, reason in reasons.items() if reason is not None}
    if left and not skip_bad:
        listed = "; ".join(f"{identity}: {reason}" for identity, reason in list(left.items())[:SHOWN_ROWS])
        raise UserError(
            f"{file_key(name)}: {source.name} has {len(left)} rows that cannot be used ({listed}); "
            "mend them, or set questions.skip_bad_rows=true"
        )
    rows = [item_row(item) for item in data.items if item.id not in left]
    rows += [conversation_row(talk) for talk in data.conversations if talk.id not in left]
    if not rows:
        raise _nothing(name, source)
    write_rows(target, rows)
    return {"questions": len(rows), "file": source.name, "left_out": _left_out(data, left)} | (
        {"ignored_fields": dict(data.ignored)} if data.ignored else {}
    )


def _nothing(name: str, source: Path) -> UserError:
    return UserError(f"{file_key(name)}: {source.name} has no row that can be used; give at least one")


def _left_out(data: QuestionData, unfit_rows: Mapping[str, str]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"line": row.line, "reason": row.reason} for row in data.bad_rows]
    return rows + [{"id": identity, "reason": reason} for identity, reason in unfit_rows.items()]


def check_files(files: Mapping[str, Path], limits: Limits, *, skip_bad: bool) -> None:
    """Read the file of every set to its end, a row at a time.

    UserError at the first row that cannot be used (unless such are skipped), for a file without any that can, and for
    rows that two sets share.
    """
    check_shared({name: _usable(name, path, limits, skip_bad) for name, path in files.items()}, files)


def _usable(name: str, path: Path, limits: Limits, skip_bad: bool) -> Iterator[tuple[str, list[bytes]]]:
    """Id and `questions_of` every row that the set can use."""
    found = False
    for line, row in source_rows(path):
        reason = row.reason if isinstance(row, BadRow) else unfit(row, name, limits)
        if reason is not None and not skip_bad:
            raise UserError(
                f"{file_key(name)}: {path.name}, line {line}: {reason}; mend it, or set questions.skip_bad_rows=true"
            )
        if reason is None and not isinstance(row, BadRow):
            found = True
            yield row.id, questions_of(row)
    if not found:
        raise _nothing(name, path)


def set_questions(path: Path) -> Iterator[tuple[str, list[bytes]]]:
    """Id and `questions_of` every row of a set that was written."""
    rows = SolutionFile(path)
    for number in range(len(rows)):
        row = rows.stored(number)
        yield row.id, questions_of(row)


def questions_of(row: SetRow) -> list[bytes]:
    """A digest of everything that a row asks: its prompt, or what each user turn says, with the pictures so far."""
    if isinstance(row, Item):
        return [_digest(row.prompt, row.images)]
    found, shown = [], 0
    for turn in row.messages:
        content = turn["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        shown += sum(part["type"] == "image" for part in parts)
        if turn["role"] == "user":
            found.append(_digest("".join(part.get("text", "") for part in parts), row.images[:shown]))
    return found


def _digest(text: str, images: Iterable[np.ndarray]) -> bytes:
    """Of a question's text, however it is to be thought about, and pixels."""
    digest = hashlib.sha256(json.dumps(THINKING.sub("", text).strip()).encode())
    for image in images:
        digest.update(json.dumps(image.shape).encode() + np.ascontiguousarray(image).tobytes())
    return digest.digest()


def check_shared(sets: Mapping[str, Iterable[tuple[str, list[bytes]]]], own: Container[str]) -> None:
    """UserError, with the ids, for questions that stand in two sets, at least one of them of one's own; sources of one
    set may share some."""
    known = {name: {digest: identity for identity, asked in rows for digest in asked} for name, rows in sets.items()}
    for one, other in combinations(known, 2):
        same_set = one.partition(".")[0] == other.partition(".")[0]
        if same_set or (one not in own and other not in own):
            continue
        both = sorted((known[one][digest], known[other][digest]) for digest in known[one].keys() & known[other].keys())
        if both:
            listed = ", ".join(left if left == right else f"{left} = {right}" for left, right in both[:SHOWN_ROWS])
            more = f" and {len(both) - SHOWN_ROWS} more" if len(both) > SHOWN_ROWS else ""
            raise UserError(
                f"questions: {one} and {other} share {len(both)} questions (same prompt and pictures): {listed}{more}; "
                "keep each in one set"
            )
