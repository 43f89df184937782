"""Reward functions that a configuration names: `FILE.py:FUNCTION` or `MODULE:FUNCTION`, with TRL's signature.

They are read where they are called: in a process of their own (`rewards.isolation`), never in the trainer's.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rewards.config import suggestion

NOT_CALLED = (ast.ClassDef, ast.Constant, ast.JoinedStr, ast.List, ast.Tuple, ast.Set, ast.Dict)
"""What a name may stand for that cannot score: a call of a class makes an object, not rewards."""


def _split(source: str) -> tuple[str, str]:
    """File or module, and function; ValueError for anything else."""
    place, _, name = source.rpartition(":")
    if not place or not name.isidentifier():
        raise ValueError(f"{source!r} names no function; write FILE.py:FUNCTION or MODULE:FUNCTION")
    return place, name


def source_file(source: str) -> Path:
    """The file that a function is defined in. ValueError where there is none."""
    place, _ = _split(source)
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"{source!r}: there is no file {place}")
        return path
    try:
        found = importlib.util.find_spec(place)
    except ImportError:
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise ValueError(f"{source!r}: there is no module {place}; a file is written as FILE.py:FUNCTION")
    return Path(found.origin)


def load(source: str) -> Callable[..., Any]:
    """Import the function. Whatever the file raises goes on; AttributeError without such a function."""
    place, name = _split(source)
    if not place.endswith(".py"):
        return getattr(importlib.import_module(place), name)
    path = Path(place)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


class NamedFunction:
    """A reward function by its name; unpickling it in another process imports it there.

    ValueError at once where the file is missing, does not define the function, or defines a class or a plain value by
    this name; its code is read, not run.
    """

    def __init__(self, source: str) -> None:
        _, name = _split(source)
        path = source_file(source).resolve()
        defined = _definitions(path, source)
        if name not in defined:
            raise ValueError(f"{source!r}: {path.name} defines no {name}{suggestion(name, list(defined))}")
        if isinstance(defined[name], NOT_CALLED):
            raise ValueError(f"{source!r}: {name} is a class or a plain value; name a function or a callable object")
        self.source = f"{path}:{name}" if source.rpartition(":")[0].endswith(".py") else source

    def __reduce__(self) -> tuple[Any, ...]:
        return load, (self.source,)

    def __call__(self, **arguments: Any) -> Any:
        """Import the function here and call it."""
        return load(self.source)(**arguments)


def _definitions(path: Path, source: str) -> dict[str, ast.AST]:
    """By name what the top of a file defines or imports."""
    try:
        tree = ast.parse(path.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{source!r}: {path.name} is no Python ({error})") from error
    found: dict[str, ast.AST] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
    return found
