"""Files that a person, another program or a torn disk may have changed: read whole, or refused in one line.

YAML of experiments and run folders is read safely: plain values only, of bounded size, every mistake one line.
"""

from __future__ import annotations

import json
import re
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from rl_lab.common.errors import UserError

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


MAX_CHARACTERS = 200_000
"""An experiment has some thousands, a resolved one 20,000. More would be parsed for longer than a person waits."""

MAX_DEPTH = 40
"""Lists and mappings inside each other. An experiment has eight."""

MAX_VALUES = 50_000
"""Keys and values with every alias written out: a few lines of aliases of aliases are billions."""

MAX_INTEGER = 2**63 - 1

MAX_DIGITS = 4300
"""Python reads no longer integers from text."""

_NUMBERS = ("int", "float")

_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}


class _Loader(yaml.SafeLoader):
    """Safe YAML of plain values, in which duplicate keys are errors, 1e-4 is a number and dates are text."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._open: list[str | None] = []
        """Anchors of the lists and mappings that are being read, outermost first."""
        self._sizes: dict[int, int] = {}
        """Values in a node with its aliases written out, by the node's id."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) and event.anchor in self._open:
            self._refuse(event, f"the alias *{event.anchor} stands inside what it repeats")
        if len(self._open) >= MAX_DEPTH:
            self._refuse(event, f"nested deeper than {MAX_DEPTH} lists and mappings")
        self._open.append(event.anchor if isinstance(event, yaml.NodeEvent) else None)
        node = super().compose_node(parent, index)
        self._open.pop()
        if node is not None and self._size(node) > MAX_VALUES:
            self._refuse(event, f"more than {MAX_VALUES} values, with every alias written out")
        return node

    def _size(self, node: yaml.Node) -> int:
        if id(node) not in self._sizes:
            children = node.value if isinstance(node, yaml.CollectionNode) else ()
            inside = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
            self._sizes[id(node)] = 1 + sum(map(self._size, inside))
        return self._sizes[id(node)]

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        name = node.tag.removeprefix("tag:yaml.org,2002:")
        if node.tag not in _TAGS:
            self._refuse(node, f"the tag !!{name} is none of plain text, numbers, lists and keys with values")
        if name in _NUMBERS and re.search(r":|^[-+]?0[0-9_]+$", node.value):
            self._refuse(node, f"{node.value[:40]} is read in base 60 or 8; write a plain number, or put it in quotes")
        try:
            value = super().construct_object(node, deep)
        except (ValueError, LookupError):  # of PyYAML, for text that is not of its tag
            long = name == "int" and len(node.value) > MAX_DIGITS
            self._refuse(node, "an integer of more than 64 bits" if long else f"not of type {name}")
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            self._refuse(node, "an integer of more than 64 bits")
        if isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
            self._refuse(node, f"{value[:40]!r} holds a null byte or half a character")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = "<<" if key_node.tag.endswith(":merge") else self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                self._refuse(key_node, f"the key is read as {str(key)[:40]}, not as text; put it in quotes")
            if key in seen:
                self._refuse(key_node, f"the key {key!r} is there twice; keep one")
            seen.add(key)
        return super().construct_mapping(node, deep)

    def _refuse(self, where: Any, why: str) -> NoReturn:
        """`where`: a node or an event."""
        raise yaml.constructor.ConstructorError(None, None, why, where.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":value"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """What a YAML text says: texts, numbers, lists, and mappings whose keys are text.

    UserError with `where` and the line of the mistake; also for what is too large to be an experiment.
    """
    if len(text) > MAX_CHARACTERS:
        raise UserError(f"{where}: more than {MAX_CHARACTERS} characters, which is no experiment; give another file")
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - _Loader is a SafeLoader
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"{where}{line}: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. UserError, one line, for a file that cannot be read or holds anything else."""
    tree = parse_yaml(read_text(path, limit=4 * MAX_CHARACTERS), str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected keys with values, such as `name: my_run`, at the top")
    return tree
