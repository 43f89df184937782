"""Sets of questions on disk: one Arrow file each, read by row without loading the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from envs.spatial_qa.items import Item
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file
from rl_lab.common.pictures import read_picture
from rl_lab.common.reading import fit, parse_json
from rl_lab.records.questions import Conversation, item_conversation

SCHEMA = pa.schema([("record", pa.string()), ("images", pa.list_(pa.binary()))])
"""The record as JSON, and the pictures as PNG."""
ROWS_AT_ONCE = 256
MEND = "put it back, or run the stage again"


def png(image: np.ndarray) -> bytes:
    """A picture uint8 [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


QuestionRow = tuple[dict[str, Any], list[bytes]]
"""A record as JSON values, and its pictures as PNG files."""


def item_row(item: Item) -> QuestionRow:
    """An item as a row."""
    return item.record(), [png(image) for image in item.images]


def conversation_row(conversation: Conversation) -> QuestionRow:
    """A conversation as a row; its videos stay where they are."""
    record = {"id": conversation.id, "messages": conversation.messages}
    videos = [str(path.absolute()) for path in conversation.videos]
    return record | {"videos": videos}, [png(image) for image in conversation.images]


def batched(rows: Iterable[QuestionRow], size: int) -> Iterator[list[QuestionRow]]:
    """Lists of `size` rows, the last one shorter."""
    remaining = iter(rows)
    while some := list(islice(remaining, size)):
        yield some


def write_rows(path: Path, rows: Iterable[QuestionRow]) -> None:
    """Write a set of questions, whole or not at all, holding a few of them in memory at a time."""

    def write(file: Any) -> None:
        with pa.ipc.new_file(file, SCHEMA) as writer:
            for some in batched(rows, ROWS_AT_ONCE):
                columns = [{"record": json.dumps(record), "images": pngs} for record, pngs in some]
                writer.write_batch(pa.RecordBatch.from_pylist(columns, SCHEMA))

    write_file(path, write)


class RowFile:
    """Records and pictures of a file by row number; the file is mapped into memory, not read."""

    def __init__(self, path: Path) -> None:
        """UserError for a file that is none of `write_rows`."""
        self._path = path
        try:
            self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all().cast(SCHEMA)
            self._table.validate(full=True)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise UserError(f"{path} holds no questions ({' '.join(str(error).split())}); {MEND}") from error

    def __len__(self) -> int:
        return self._table.num_rows

    def record(self, row: int) -> dict[str, Any]:
        """All of a row but its pictures."""
        where = self._where(row)
        return fit(parse_json(self._table["record"][int(row)].as_py() or "", where), dict[str, Any], where)

    def _where(self, row: int) -> str:
        return f"{self._path}, row {int(row) + 1}"

    def rows_by_id(self) -> dict[str, int]:
        """The row of each record's id."""
        return {str(self.record(row).get("id")): row for row in range(len(self))}

    def reward_types(self) -> dict[str, str]:
        """Reward type of each record by its id."""
        records = map(self.record, range(len(self)))
        return {record["id"]: record["reward_type"] for record in records}

    def pngs(self, row: int) -> list[bytes]:
        """A row's pictures as PNG files."""
        return self._table["images"][int(row)].as_py() or []

    def images(self, row: int) -> tuple[np.ndarray, ...]:
        """A row's pictures, uint8 [H, W, 3]."""
        return tuple(np.asarray(read_picture(data)) for data in self.pngs(row))

    def item(self, row: int, record: dict[str, Any], images: tuple[np.ndarray, ...]) -> Item:
        """The item of a row, its record and its pictures. UserError where they make none."""
        try:
            found = Item(**record, images=images)
        except (TypeError, ValueError) as error:
            raise UserError(f"{self._where(row)} is no question: {error}; {MEND}") from error
        for name in ("id", "category", "task", "reward_type", "scene", "prompt", "solution"):
            if not isinstance(getattr(found, name), str):
                raise UserError(f"{self._where(row)}: {name} is no text; {MEND}")
        if not isinstance(found.columns, dict):
            raise UserError(f"{self._where(row)}: columns are no fields; {MEND}")
        return found


class ItemFile(RowFile):
    """Items by row number."""

    def __getitem__(self, row: int) -> Item:
        """The item of a row; IndexError behind the last."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self.item(row, self.record(row), self.images(row))


class SolutionFile(RowFile):
    """Conversations to imitate by row number: as they were stored, or made of an item and its worked solution."""

    def __getitem__(self, row: int) -> Conversation:
        """The conversation of a row; IndexError behind the last."""
        found = self.stored(row)
        return item_conversation(found) if isinstance(found, Item) else found

    def outline(self, row: int) -> Conversation:
        """The same with blank pictures of the right sizes, of which only the headers are read."""
        sizes = [Image.open(io.BytesIO(data)).size for data in self.pngs(row)]
        blank = tuple(np.broadcast_to(np.uint8(0), (height, width, 3)) for width, height in sizes)
        found = self._made(row, blank)
        return item_conversation(found) if isinstance(found, Item) else found

    def stored(self, row: int) -> Item | Conversation:
        """A row as it was written; IndexError behind the last."""
        if not 0 <= row < len(self):
            raise IndexError(row)
        return self._made(row, self.images(row))

    def _made(self, row: int, images: tuple[np.ndarray, ...]) -> Item | Conversation:
        record = self.record(row)
        if "messages" not in record:
            return self.item(row, record, images)
        videos = tuple(map(Path, record["videos"]))
        return Conversation(record["id"], tuple(record["messages"]), images, videos)
