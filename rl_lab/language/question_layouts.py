"""Conversations in others' layouts, brought to the public one of HY-Embodied; docs/data.md has a table of them.

* LLaVA, as the official fine-tuning code reads it: `conversations` of `{"from", "value"}`, where `<image>` and
  `<video>` in a user's text stand for what `image` and `video` list, in order;
* TRL's and Qwen's: `messages` beside a column `images` (or `image`): pictures go to the items `{"type": "image"}`
  that have none, else to `<image>` in the text, else before the text of the first user turn.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

CONVERSATION_FIELDS = ("messages", "id", "type", "conversations", "image", "images", "video", "videos", "data_path")
MISPLACED = ("prompt", "answer", "reward_type", "solution")
"""Fields of a question: whoever gives one to a conversation means something that would be lost."""
UNWRITTEN = ("tools", "tool_calls")
"""Fields that change what is trained on, but that no chat template here writes."""
ROLES = ("system", "user", "assistant", "tool")
LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Row = dict[str, Any]


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row has turns, in any layout."""
    return "messages" in row or "conversations" in row


def public_layout(row: Row, ignored: Counter[str]) -> Row:
    """A conversation as `messages` whose items hold their pictures; fields that mean nothing here are counted.

    ValueError for fields that would be lost, and where placeholders and pictures are not equally many.
    """
    wrong = [name for name in row if name in MISPLACED]
    if wrong:
        raise ValueError(f"unknown fields {', '.join(wrong)}; known are {', '.join(CONVERSATION_FIELDS)}")
    is_llava = "conversations" in row
    turns = _llava_turns(row["conversations"]) if is_llava else _turns(row["messages"])
    strange = [*(name for name in row if name not in CONVERSATION_FIELDS), *_strange_fields(turns)]
    unwritten = [name for name in strange if name.split(".")[-1] in UNWRITTEN]
    if unwritten:
        raise ValueError(f"{unwritten[0]} is given, which the chat template does not write; leave such rows out")
    ignored.update(set(strange))
    given = {"image": _listed(row, "image", "images"), "video": _listed(row, "video", "videos")}
    kept = ("data_path",) if is_llava else ("id", "data_path")  # LLaVA's ids may come more than once
    return {name: row[name] for name in kept if name in row} | {"messages": _filled(turns, given, is_llava=is_llava)}


def _turns(turns: Any) -> list[Row]:
    """The turns of `messages` without fields that are None, as tables have them."""
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("messages is not a list of turns {role, content}")
    return [{name: value for name, value in turn.items() if value is not None} for turn in turns]


def _llava_turns(turns: Any) -> list[Row]:
    """The turns of `conversations` under the public names."""
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("conversations is not a list of turns {from, value}")
    found = []
    for turn in turns:
        role, text = turn.get("from"), turn.get("value")
        if not isinstance(role, str) or role not in LLAVA_ROLES or not isinstance(text, str):
            kind = type(text).__name__
            raise ValueError(f"a turn is from {role!r:.40} and its value is of type {kind}; use human or gpt, and text")
        rest = {name: value for name, value in turn.items() if name not in ("from", "value") and value is not None}
        found.append(rest | {"role": LLAVA_ROLES[role], "content": text})
    return found


def _strange_fields(turns: Sequence[Row]) -> Iterator[str]:
    return (f"messages.{name}" for turn in turns for name in turn if name not in ("role", "content"))


def _listed(row: Row, *names: str) -> list[Any]:
    """The pictures or videos of a row, which may be one or several, under any of these names."""
    values = [row[name] for name in names if name in row]
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]


def _filled(turns: list[Row], given: dict[str, list[Any]], *, is_llava: bool) -> list[Row]:
    """Turns in whose items the given pictures and videos are put, in order."""
    tags = [f"<{kind}>" for kind, media in given.items() if media or is_llava]
    turns = [turn | {"content": _items(turn, tags)} if "content" in turn else turn for turn in turns]
    for kind, media in given.items():
        parts = [part for turn in turns for part in _parts(turn) if part.get("type") == kind]
        places = [part for part in parts if part.get(kind) is None]
        if media and not places and not is_llava:
            places = _before_first_user(turns, kind, len(media))
        if media and len(places) != len(media):
            raise ValueError(f"there are {len(places)} places for {len(media)} {kind}s; give one for each")
        for place, value in zip(places, media, strict=False):
            place[kind] = value
    return turns


def _parts(turn: Row) -> list[Row]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _items(turn: Row, tags: Sequence[str]) -> Any:
    """A turn's content, its items copied and under their public names, its text cut where placeholders stand."""
    content = turn["content"]
    if isinstance(content, list | tuple):
        return [_item(part) if isinstance(part, Mapping) else part for part in content]
    if not isinstance(content, str) or turn.get("role") == "assistant" or not any(tag in content for tag in tags):
        return content
    parts = [part.strip() for part in re.split(f"({'|'.join(tags)})", content)]
    return [{"type": part[1:-1]} if part in tags else {"type": "text", "text": part} for part in parts if part]


def _item(part: Mapping[str, Any]) -> Row:
    """An item of a content list; `image_url` is another name of `image`."""
    if part.get("type") != "image_url":
        return dict(part)
    url = part.get("image_url")
    return {"type": "image", "image": url.get("url") if isinstance(url, Mapping) else url}


def _before_first_user(turns: Sequence[Row], kind: str, number: int) -> list[Row]:
    """Places for so many pictures, put before what the first user turn says."""
    places: list[Row] = [{"type": kind} for _ in range(number)]
    for turn in turns:
        if turn.get("role") == "user":
            said = turn.get("content")
            turn["content"] = [*places, *([{"type": "text", "text": said}] if isinstance(said, str) else said or [])]
            return places
    return []
