"""Users' own questions: files and tables of Hugging Face `datasets`; nothing is downloaded, no row is lost.

Two kinds of rows:

* a question, one `Item`: `prompt` (with ` /think` or ` /no_think` at its end as the model should see it), `images`
  (one or a list; may be absent), `answer` (ground truth, or the same as JSON text), `reward_type` (without one only
  functions of the user's own score it), and optionally `category` (`perception` without one), `id` and `solution` (a
  worked reply, needed for supervised training only); further fields are columns for those functions;
* a conversation, one `Conversation`, in HY-Embodied's public layout: `messages`, optionally `id` and `type`. Turns have
  a `role` (system, user, assistant, tool) and a `content`: text, or a list of `{"type": "text", "text": ..}`,
  `{"type": "image", "image": ..}` and `{"type": "video", "video": ..}`; an assistant's content is text only. Other
  layouts of conversations are brought to it by `rl_lab.records.question_files`.

An image is a path, relative to the file or else to the working directory, or a data URI; tables may also hold PIL
images, uint8 [H, W, 3] arrays or `{"bytes": .., "path": ..}`. A video is a path; its frames are read where they are
needed.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from envs.spatial_qa.items import CATEGORIES, Item
from rewards.answers import OWN_TRUTH, decode_truth
from rewards.config import RewardConfig
from rewards.verifiers import verifier_reward
from rl_lab.common.errors import UserError
from rl_lab.model.tokenizer import SPECIAL_TOKENS
from rl_lab.records.question_files import (
    ROLES,
    Raw,
    existing_file,
    is_conversation,
    is_table,
    public_layout,
    raw_rows,
    read_image,
    texts_of,
)

QUESTION_FIELDS = ("prompt", "images", "answer", "reward_type", "category", "id", "solution")
REQUIRED_FIELDS = ("prompt", "answer", "reward_type", "category")
TAKEN_FIELDS = {"prompts", "completions", "columns", *(item.name for item in fields(Item))}
"""Names that are arguments of a reward function already."""
IMAGE_TAG = "<image>"
"""What stands for a picture in the text of others' layouts."""
SHOWN_ROWS = 20
"""Bad rows that the error's text lists; `BadRowsError.bad_rows` has all."""


@dataclass(frozen=True)
class Conversation:
    """One training dialogue."""

    id: str
    messages: tuple[dict[str, Any], ...]
    """Turns with `role` and `content`; an image item is `{"type": "image"}`, a video item `{"type": "video"}`."""
    images: tuple[np.ndarray, ...]
    """uint8 [H, W, 3], in the order of their items."""
    videos: tuple[Path, ...]
    """Files, in the order of their items."""

    def chat(self) -> list[dict[str, Any]]:
        """The turns as a processor's chat template takes them: every picture and video in its item."""
        given = {"image": iter(self.images), "video": iter(map(str, self.videos))}

        def filled(part: dict[str, Any]) -> dict[str, Any]:
            kind = part["type"]
            return part | {kind: next(given[kind])} if kind in given else part

        return [
            turn if isinstance(turn["content"], str) else turn | {"content": [filled(part) for part in turn["content"]]}
            for turn in self.messages
        ]


@dataclass(frozen=True)
class BadRow:
    """A row that was not taken."""

    line: int
    """Line of a file, or row of a table; from 1."""
    reason: str


@dataclass(frozen=True)
class QuestionData:
    """All rows of a source."""

    items: list[Item]
    conversations: list[Conversation]
    bad_rows: list[BadRow]
    """Empty unless bad rows were asked to be skipped."""
    ignored: Counter[str] = field(default_factory=Counter)
    """Fields of conversations that mean nothing here, and in how many rows each stands."""


class BadRowsError(UserError):
    """Rows that cannot be used; `bad_rows` has every one."""

    def __init__(self, name: str, bad_rows: Sequence[BadRow]) -> None:
        listed = "; ".join(f"line {row.line}: {row.reason}" for row in bad_rows[:SHOWN_ROWS])
        more = f"; and {len(bad_rows) - SHOWN_ROWS} more" if len(bad_rows) > SHOWN_ROWS else ""
        count = "1 bad row" if len(bad_rows) == 1 else f"{len(bad_rows)} bad rows"
        super().__init__(f"{name} has {count}: {listed}{more}. Mend them, or read with skip_bad=True")
        self.bad_rows = list(bad_rows)


Read = Item | Conversation | BadRow


def read_questions(path: Path, *, skip_bad: bool = False) -> QuestionData:
    """All rows of a JSON file (lines, of which blank ones are no rows, or an array; gzipped or not), a Parquet file, a
    folder of its shards, or a folder that `datasets` saved.

    BadRowsError listing every bad row by line and reason, unless `skip_bad`: then the result lists them. UserError
    without such a file or when it has no rows. A column that is None in a row counts as absent there, because a table
    has the same columns in every row.
    """
    data, name = QuestionData([], [], []), source_name(path)
    kinds: dict[type, list[Any]] = {Item: data.items, Conversation: data.conversations, BadRow: data.bad_rows}
    for _, row in source_rows(path, data.ignored):
        kinds[type(row)].append(row)
    if data.bad_rows and not skip_bad:
        raise BadRowsError(name, data.bad_rows)
    if not (data.items or data.conversations or data.bad_rows):
        raise UserError(f"{name} has no rows; give at least one question")
    return data


def source_name(path: Path) -> str:
    """What a source is called in errors and, its suffixes aside, in the ids of its rows."""
    return "table" if is_table(path) else path.name


def source_rows(path: Path, ignored: Counter[str] | None = None) -> Iterator[tuple[int, Read]]:
    """The rows of a source one by one by number; `ignored` counts the fields of conversations that mean nothing."""
    name = source_name(path).removesuffix(".gz")
    return _rows(raw_rows(path), Path(name).stem, path.parent, Counter() if ignored is None else ignored)


def item_conversation(item: Item) -> Conversation:
    """An item's prompt and worked solution as a dialogue for supervised training; ValueError without a solution."""
    if not item.solution:
        raise ValueError(f"item {item.id} has no solution; supervised training needs one for every item")
    content = [*({"type": "image"} for _ in item.images), {"type": "text", "text": item.prompt}]
    turns = ({"role": "user", "content": content}, {"role": "assistant", "content": item.solution})
    return Conversation(item.id, turns, item.images, ())


def _rows(raw_rows: Iterable[Raw], stem: str, folder: Path, ignored: Counter[str]) -> Iterator[tuple[int, Read]]:
    """Rows, as JSON text (bytes) or mappings, by their number; those without an id are named by the stem and it."""
    lines: dict[str, int] = {}
    for line, raw in raw_rows:
        try:
            row = _fields(raw, ignored)
            identity = _identity(row, f"{stem}-{line}", lines)
            made = _conversation(row, identity, folder) if "messages" in row else _item(row, identity, folder)
        except ValueError as error:
            yield line, BadRow(line, " ".join(str(error).split()))
        except RecursionError:
            yield line, BadRow(line, "nested too deeply")
        else:
            lines[identity] = line
            yield line, made


def _fields(raw: Any, ignored: Counter[str]) -> dict[str, Any]:
    """The fields of a row that are there, all of them known; a conversation's in the public layout."""
    if isinstance(raw, bytes):
        try:
            raw = json.loads(raw.decode("utf-8"))
        except RecursionError as error:
            raise ValueError("not JSON: nested too deeply") from error
        except ValueError as error:
            raise ValueError(f"not JSON in UTF-8: {error}") from error
    if not isinstance(raw, Mapping):
        raise ValueError("not a JSON object")
    row = {str(name): value for name, value in raw.items() if value is not None}
    check_texts(row)
    if is_conversation(row):
        return public_layout(row, ignored)
    own = [name for name in row if name not in QUESTION_FIELDS]
    misspelt = [name for name in own if difflib.get_close_matches(name, QUESTION_FIELDS, n=1, cutoff=0.8)]
    if misspelt:
        raise ValueError(f"unknown fields {', '.join(misspelt)}; known are {', '.join(QUESTION_FIELDS)}")
    taken = [name for name in own if name in TAKEN_FIELDS or not name.isidentifier()]
    if taken:
        raise ValueError(f"field {taken[0]!r} cannot be a column for rewards; give it another name, letters and digits")
    return row


def _identity(row: Mapping[str, Any], default: str, lines: Mapping[str, int]) -> str:
    identity = row.get("id", default)
    if not isinstance(identity, str | int) or isinstance(identity, bool) or identity == "":
        raise ValueError(f"id is {identity!r}; give a text or a whole number, or none")
    if str(identity) in lines:
        raise ValueError(f"id {identity!r} is that of line {lines[str(identity)]} already; give each row its own")
    return str(identity)


def check_texts(row: Any) -> None:
    """ValueError for text that no later stage could use: half of a surrogate pair, such as `"\\ud800"` in JSON, and the
    model's own special tokens, which stand for pictures and turns."""
    for text in texts_of(row):
        special = next((token for token in SPECIAL_TOKENS if token in text), None)
        if special is not None:
            raise ValueError(f"a text holds the special token {special}, which only the chat template may write")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"a text holds the lone surrogate {text[error.start]!a} ({text[:40]!a}), which is no character"
            ) from error


def _item(row: Mapping[str, Any], identity: str, folder: Path) -> Item:
    columns = {name: row[name] for name in row if name not in QUESTION_FIELDS}
    has_truth = "reward_type" in row and row["reward_type"] != OWN_TRUTH
    needed = REQUIRED_FIELDS if has_truth or not {"answer", "reward_type", *columns} & row.keys() else ("prompt",)
    missing = [name for name in needed if name not in row and (name != "category" or not has_truth)]
    if missing:
        raise ValueError(f"missing {', '.join(missing)}; a question has {', '.join(REQUIRED_FIELDS)}")
    prompt = _text(row["prompt"], "prompt")
    category, reward_type = row.get("category", CATEGORIES[0]), row.get("reward_type", OWN_TRUTH)
    if category not in CATEGORIES:
        raise ValueError(f"category is {category!r}; use one of {', '.join(CATEGORIES)}")
    images = row.get("images", [])
    several = isinstance(images, list | tuple)
    if (not several or images) and IMAGE_TAG in prompt:
        raise ValueError(f"prompt holds {IMAGE_TAG}, but a question's pictures stand before its text; leave it out")
    return Item(
        id=identity,
        category=category,
        task="user",
        reward_type=reward_type,
        seed=0,
        scene=identity,
        difficulty={},
        prompt=prompt,
        images=tuple(read_image(image, folder) for image in (images if several else [images])),
        answer=row.get("answer") if reward_type == OWN_TRUTH else _truth(row["answer"], reward_type),
        solution=_text(row["solution"], "solution") if "solution" in row else "",
        columns=_plain(columns),
    )


def _plain(columns: dict[str, Any]) -> dict[str, Any]:
    """Fields of the user's own; ValueError for one that JSON cannot hold."""
    for name, value in columns.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise ValueError(f"field {name} holds what JSON cannot ({error}); write it as text or numbers") from error
    return columns


def _truth(answer: Any, reward_type: Any) -> Any:
    """The decoded ground truth; ValueError unless the rewards can score against it."""
    verifier_reward("", answer, reward_type, RewardConfig())
    if reward_type == "open":
        return _text(answer, "answer")
    return decode_truth(answer, reward_type)


def _conversation(row: Mapping[str, Any], identity: str, folder: Path) -> Conversation:
    """A conversation in the public layout with its pictures read."""
    base = _text(row["data_path"], "data_path") if "data_path" in row else ""
    turns = row["messages"]
    roles = [turn.get("role") for turn in turns]
    unknown = [role for role in roles if role not in ROLES]
    if unknown:
        raise ValueError(f"role is {unknown[0]!r}; use one of {', '.join(ROLES)}")
    if "system" in roles[1:]:
        raise ValueError("a system turn comes after another turn; it must be the first")
    if "user" not in roles or "assistant" not in roles[roles.index("user") :]:
        raise ValueError("there is no assistant turn behind a user turn, so there is nothing to learn")
    images: list[np.ndarray] = []
    videos: list[Path] = []
    messages = tuple(
        {"role": role, "content": _content(turn.get("content"), role, (folder, base), images, videos)}
        for role, turn in zip(roles, turns, strict=True)
    )
    return Conversation(identity, messages, tuple(images), tuple(videos))


def _content(content: Any, role: str, place: tuple[Path, str], images: list[np.ndarray], videos: list[Path]) -> Any:
    """A turn's content with its pictures and videos, found from this folder and base, moved to the lists."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list | tuple) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"content of a {role} turn is neither text nor a list of items with a type")
    parts: list[dict[str, Any]] = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "image", "video"):
            raise ValueError(f"an item of a {role} turn has type {kind!r}; use text, image or video")
        if role == "assistant" and kind != "text":
            raise ValueError(f"an assistant turn holds an item of type {kind}; an assistant writes text only")
        if part.get(kind) is None:
            raise ValueError(f"an item of type {kind} has no field {kind}")
        if kind == "image":
            images.append(read_image(part["image"], *place))
        elif kind == "video":
            videos.append(existing_file(part["video"], "video", *place))
        parts.append({"type": "text", "text": _text(part["text"], "text")} if kind == "text" else {"type": kind})
    return parts


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} is {value!r:.40}; give a text that is not empty")
    return value
