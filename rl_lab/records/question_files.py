"""Sources of questions on disk as rows that nobody has interpreted yet: JSON lines or arrays, Parquet, saved tables.

Lines may be gzipped and begin with a byte order mark. Pictures and videos come from files, data URIs and tables, never
from the network, and stay encoded inside tables. Nothing is downloaded, and nothing is written: what `datasets` would
convert into its cache is read by pyarrow.

Conversations in others' layouts are brought to the public one of HY-Embodied; docs/data.md has a table of them.

* LLaVA, as the official fine-tuning code reads it: `conversations` of `{"from", "value"}`, where `<image>` and
  `<video>` in a user's text stand for what `image` and `video` list, in order;
* TRL's and Qwen's: `messages` beside a column `images` (or `image`): pictures go to the items `{"type": "image"}`
  that have none, else to `<image>` in the text, else before the text of the first user turn.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rl_lab.common.errors import UserError
from rl_lab.common.files import files_below
from rl_lab.common.pictures import read_picture
from rl_lab.common.reading import DAMAGE
from rl_lab.model.vlm_config import check_aspect

BOM = b"\xef\xbb\xbf"

MAX_PATH_CHARS = 500
"""A longer text is no path."""

ROWS_AT_ONCE = 32
"""Of a table: its pictures are in memory together."""

Raw = tuple[int, Any]
"""Number of a row from 1 (of a file its line, of an array its place), and the row: JSON text in bytes, or a value."""


def raw_rows(path: Path, columns: Sequence[str] | None = None) -> Iterator[Raw]:
    """All rows of a source; of tables only these columns. UserError for a source that is none, or that is damaged."""
    if is_table(path):
        return enumerate(_table_rows(path, columns), start=1)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a JSONL file, one JSON object a line")
    return _file_rows(path)


def is_table(path: Path) -> bool:
    """Whether a source is Parquet or was saved by `datasets`."""
    return path.is_dir() or path.suffix == ".parquet"


def _file_rows(path: Path) -> Iterator[Raw]:
    """Elements of the array that a file holds, or else its lines but blank ones."""
    lines = ((number, line) for number, line in _lines(path) if line.strip())
    first = list(islice(lines, 1))
    if first and first[0][1].lstrip().startswith(b"["):
        first += lines
        try:
            found = json.loads(b"".join(line for _, line in first))
        except (ValueError, RecursionError):  # no array: what is wrong is said of the line
            found = None
        if isinstance(found, list):
            return enumerate(found, start=1)
    return chain(first, lines)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                yield number, line.removeprefix(BOM) if number == 1 else line
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read: {error}; put back the file as it was written") from error


def _table_rows(path: Path, columns: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    saved = path.is_dir() and ((path / "state.json").is_file() or (path / "dataset_dict.json").is_file())
    try:
        for batch in _saved_batches(path) if saved else _parquet_batches(path, columns):
            yield from batch.to_pylist()
    except UserError:
        raise
    except (*DAMAGE, AttributeError, pa.ArrowException) as error:  # AttributeError: datasets' own files hold anything
        raise UserError(f"{path} is no table of datasets: {' '.join(str(error).split())}") from error


def _saved_batches(path: Path) -> Iterable[pa.Table]:
    """Of a table that `datasets` saved to a folder."""
    import datasets  # here, because it takes a second

    table = datasets.load_from_disk(str(path))
    if isinstance(table, datasets.DatasetDict):
        names = ", ".join(table)
        raise UserError(f"{path} has the splits {names}; name one of them, such as {path / next(iter(table), '')}")
    return table.with_format("arrow").iter(batch_size=ROWS_AT_ONCE)


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    """Of a Parquet file, or of the shards of one table in a folder."""
    for shard in _shards(path) if path.is_dir() else [path]:
        with pq.ParquetFile(shard) as file:
            known = None if columns is None else [name for name in columns if name in file.schema_arrow.names]
            yield from file.iter_batches(ROWS_AT_ONCE, columns=known)


def _shards(folder: Path) -> list[Path]:
    """The Parquet files below a folder, by number; UserError unless their names differ in numbers alone."""
    found = [path for path in files_below(folder) if path.suffix == ".parquet"]
    if not found:
        raise UserError(
            f"{folder} is no table of datasets: it has neither Parquet files nor what Dataset.save_to_disk writes"
        )
    names = sorted({re.sub(r"\d+", "N", path.relative_to(folder).as_posix()) for path in found})
    if len(names) > 1:
        raise UserError(
            f"{folder} has Parquet files of {len(names)} tables ({', '.join(names)}); give the files of one split, "
            "in a folder of their own"
        )
    return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.as_posix())])


def source_files(path: Path) -> list[Path]:
    """The files that the content of a source depends on: itself (all of a folder), and pictures and videos it names."""
    own = files_below(path) if path.is_dir() else [path]
    named: set[Path] = set()
    for _, raw in raw_rows(path):
        try:
            row = json.loads(raw) if isinstance(raw, bytes) else raw
            texts = [text for text in texts_of(row) if len(text) < MAX_PATH_CHARS]
            base = str(row.get("data_path") or "") if isinstance(row, dict) else ""
        except (ValueError, RecursionError):
            continue  # reading the source will name this line
        named.update(file for text in texts if (file := find_file(text, path.parent, base)) is not None)
    return [*own, *sorted(named)]


def find_file(name: str, folder: Path, base: str = "") -> Path | None:
    """The file that a path names: relative to the folder of the data, else to the working directory; None without one.

    `base` is a folder in front of it, as the rows of some layouts give one.
    """
    for path in (folder / base / name, Path(base, name)):
        try:
            if path.is_file():
                return path
        except (OSError, ValueError):  # too long, or with a null byte
            return None
    return None


def texts_of(value: Any) -> Iterator[str]:
    """All texts inside a JSON value, names of fields aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_of(part)


def has_open_questions(path: Path) -> bool:
    """Whether a source asks questions that only a judge can score."""
    for _, raw in raw_rows(path, ["reward_type"]):
        try:
            row = json.loads(raw) if isinstance(raw, bytes) else raw
        except (ValueError, RecursionError):
            continue  # reading the source will name this line
        if isinstance(row, dict) and row.get("reward_type") == "open":
            return True
    return False


def read_image(value: Any, folder: Path, base: str = "") -> np.ndarray:
    """uint8 [H, W, 3] of a path (see `find_file`), a data URI, a PIL image, an array, or {"bytes", "path"}.

    ValueError in one line for anything that is none of these or cannot be decoded.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ValueError(f"an image is a {value.dtype} array of shape {value.shape}; give uint8 [H, W, 3]")
        check_aspect(*value.shape[:2])
        return value
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and not value.startswith("data:"):
        value = existing_file(value, "image", folder, base)
    picture = read_picture(value)
    check_aspect(picture.height, picture.width)
    return np.asarray(picture)


def existing_file(value: Any, kind: str, folder: Path, base: str = "") -> Path:
    """The file that a path names; ValueError for a URL and where no file is."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{kind} is {value!r:.40}; give a path{' or a data URI' if kind == 'image' else ''}")
    if "://" in value:
        raise ValueError(f"{kind} {value:.80} is a URL; nothing is downloaded here, so fetch it and give its path")
    path = find_file(value, folder, base)
    if path is None:
        raise ValueError(
            f"there is no {kind} {value:.80} beside the data or in the working directory, to which paths are relative"
        )
    return path


CONVERSATION_FIELDS = ("messages", "id", "type", "conversations", "image", "images", "video", "videos", "data_path")

MISPLACED = ("prompt", "answer", "reward_type", "solution")
"""Fields of a question: whoever gives one to a conversation means something that would be lost."""

UNWRITTEN = ("tools", "tool_calls")
"""Fields that change what is trained on, but that no chat template here writes."""

ROLES = ("system", "user", "assistant", "tool")

LLAVA_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Fields = dict[str, Any]


def is_conversation(row: Mapping[str, Any]) -> bool:
    """Whether a row has turns, in any layout."""
    return "messages" in row or "conversations" in row


def public_layout(row: Fields, ignored: Counter[str]) -> Fields:
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


def _turns(turns: Any) -> list[Fields]:
    """The turns of `messages` without fields that are None, as tables have them."""
    if not isinstance(turns, list | tuple) or not all(isinstance(turn, Mapping) for turn in turns):
        raise ValueError("messages is not a list of turns {role, content}")
    return [{name: value for name, value in turn.items() if value is not None} for turn in turns]


def _llava_turns(turns: Any) -> list[Fields]:
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


def _strange_fields(turns: Sequence[Fields]) -> Iterator[str]:
    return (f"messages.{name}" for turn in turns for name in turn if name not in ("role", "content"))


def _listed(row: Fields, *names: str) -> list[Any]:
    """The pictures or videos of a row, which may be one or several, under any of these names."""
    values = [row[name] for name in names if name in row]
    return [part for value in values for part in (value if isinstance(value, list | tuple) else [value])]


def _filled(turns: list[Fields], given: dict[str, list[Any]], *, is_llava: bool) -> list[Fields]:
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


def _parts(turn: Fields) -> list[Fields]:
    content = turn.get("content")
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _items(turn: Fields, tags: Sequence[str]) -> Any:
    """A turn's content, its items copied and under their public names, its text cut where placeholders stand."""
    content = turn["content"]
    if isinstance(content, list | tuple):
        return [_item(part) if isinstance(part, Mapping) else part for part in content]
    if not isinstance(content, str) or turn.get("role") == "assistant" or not any(tag in content for tag in tags):
        return content
    parts = [part.strip() for part in re.split(f"({'|'.join(tags)})", content)]
    return [{"type": part[1:-1]} if part in tags else {"type": "text", "text": part} for part in parts if part]


def _item(part: Mapping[str, Any]) -> Fields:
    """An item of a content list; `image_url` is another name of `image`."""
    if part.get("type") != "image_url":
        return dict(part)
    url = part.get("image_url")
    return {"type": "image", "image": url.get("url") if isinstance(url, Mapping) else url}


def _before_first_user(turns: Sequence[Fields], kind: str, number: int) -> list[Fields]:
    """Places for so many pictures, put before what the first user turn says."""
    places: list[Fields] = [{"type": kind} for _ in range(number)]
    for turn in turns:
        if turn.get("role") == "user":
            said = turn.get("content")
            turn["content"] = [*places, *([{"type": "text", "text": said}] if isinstance(said, str) else said or [])]
            return places
    return []
