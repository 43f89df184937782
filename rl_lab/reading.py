"""Files that a person, another program or a torn disk may have changed: read whole, or refused in one line."""

from __future__ import annotations

import json
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from rl_lab.errors import UserError

T = TypeVar("T")
DAMAGE = (
    *(OSError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, MemoryError, EOFError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
"""What libraries raise where a file is damaged: sizes and offsets in damaged bytes may be anything."""
_MEND = "put back the file as it was written, or make it again"
_adapter: Any = cache(TypeAdapter)  # building one takes longer than using it


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """All of a file. UserError where it is missing, a folder, not readable or longer than `limit` bytes."""
    try:
        with path.open("rb") as file:
            content = file.read() if limit is None else file.read(limit + 1)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing; {_MEND}") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} cannot be read: it is a folder; give a file") from error
    except (OSError, ValueError) as error:  # ValueError: a name with a null byte
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}; {_MEND}") from error
    if limit is not None and len(content) > limit:
        raise UserError(f"{path} is longer than {limit} bytes, which no such file is; {_MEND}")
    return content


def read_text(path: Path, limit: int | None = None) -> str:
    """All of a text file in UTF-8, with or without a byte order mark. UserError for anything else, as `read_bytes`."""
    try:
        return read_bytes(path, limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8 (byte {error.start}); {_MEND}") from error


def parse_json(text: str | bytes, where: str) -> Any:
    """The value of a JSON text; `where` names it in the UserError for one that cannot be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise UserError(f"{where}: JSON nested too deeply; {_MEND}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: not JSON: {error}; {_MEND}") from error
    except ValueError as error:
        raise UserError(f"{where}: a number of thousands of digits; {_MEND}") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. UserError where the file has none."""
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}; {_MEND}")
    return found


def read_as(path: Path, kind: type[T]) -> T:
    """The object in a JSON file as a dataclass or pydantic model; UserError with the key that does not fit it."""
    return fit(read_object(path), kind, str(path))


def fit(content: Any, kind: type[T], where: str) -> T:
    """JSON content as a dataclass or pydantic model. UserError with `where`, the dotted key and what is wrong with it.

    Unknown keys of a dataclass and numbers that are not finite are errors; so is text for a number.
    """
    known = {field.name for field in fields(kind)} if is_dataclass(kind) else None
    if known is not None and isinstance(content, dict) and not content.keys() <= known:
        raise UserError(f"{where}: unknown key {min(content.keys() - known)!r}; {_MEND}")
    bad = next((key for key, value in leaves(content) if not _is_finite(value)), None)
    if bad is not None:
        raise UserError(f"{where}: {bad} is not a finite number; {_MEND}")
    try:
        return _adapter(kind).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{where}: {key + ': ' if key else ''}{first['msg']}; {_MEND}") from error


def _is_finite(value: Any) -> bool:
    """Whether a leaf is no number, or one that a float can hold."""
    return not isinstance(value, int | float) or abs(value) <= sys.float_info.max


def leaves(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in JSON content that is no object and no array; tuples are arrays."""
    if not isinstance(content, dict | list | tuple):
        yield key, content
        return
    for name, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield from leaves(value, f"{key}.{name}" if key else str(name))
