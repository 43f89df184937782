"""Code of a user's own by name: `FILE.py:NAME` or `PACKAGE.MODULE:NAME`, for every kind of part that can be brought.

It is looked up without being run (`find`), hashed by content (`digest`) and imported where it is used (`load`). What it
raises there is told with its file and line (`blamed`). The modules beside a file are importable for it: its folder
stands last in `sys.path`, behind what is installed, so that nothing else changes its meaning.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, PlainSerializer, SerializationInfo

from envs.options import suggestion

DIGESTS = "digests"
"""Context of `model_dump` in which an `OwnName` is the digest of the code in place of where that lies."""
_NAMES = "names"


class OwnCodeError(ValueError):
    """Code of a user's own raised or is not what it has to be: one line with its file and line."""


def brief(value: Any, length: int = 80) -> str:
    """What code gave, for a message: one line of at most so many characters, though tensors and arrays show several."""
    return " ".join(repr(value).split())[:length]


def is_own(name: str) -> bool:
    """Whether a name is one of a user's own code, not one of ours."""
    return ":" in name


def split(source: str, what: str = "part") -> tuple[str, str]:
    """File or module, and name in it; ValueError for anything else. `what` is the word for it in errors."""
    place, _, name = source.rpartition(":")
    if not place or not name.isidentifier():
        noun = what.upper()
        raise ValueError(f"{source!r} names no {what}; write FILE.py:{noun} or MODULE:{noun}")
    return place, name


def source_file(source: str, what: str = "part") -> Path:
    """The file that it is defined in. ValueError where there is none."""
    place, _ = split(source, what)
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ValueError(f"{source!r}: there is no file {place}")
        return path
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.origin or not found.origin.endswith(".py"):
        raise ValueError(f"{source!r}: there is no module {place}; a file is written as FILE.py:{what.upper()}")
    return Path(found.origin)


def find(source: str, what: str = "part") -> ast.AST:
    """What its file defines by this name, or the import that brings it or may (`*`). The code is read, not run.

    ValueError where there is no such file, or nothing of this name in it.
    """
    path, (_, name) = source_file(source, what), split(source, what)
    defined = _definitions(path, source)
    if name not in defined and "*" not in defined:
        raise ValueError(f"{source!r}: {path.name} defines no {name}{suggestion(name, list(defined))}")
    return defined.get(name) or defined["*"]


def _definitions(path: Path, source: str) -> dict[str, ast.AST]:
    """By name what the top of a file defines or imports, also for readers of types only: there lazy modules say it."""
    try:
        waiting = list(_parsed(path).body)
    except ValueError as error:
        raise ValueError(f"{source!r}: {error}") from error
    found: dict[str, ast.AST] = {}
    while waiting:
        node = waiting.pop(0)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {target.id: node.value for target in node.targets if isinstance(target, ast.Name)}
            taken_apart = [target for target in node.targets if isinstance(target, ast.Tuple | ast.List)]
            found |= {part.id: node for target in taken_apart for part in target.elts if isinstance(part, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found[node.target.id] = node.value
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {alias.asname or alias.name: node for alias in node.names}
        elif isinstance(node, ast.If | ast.Try):
            waiting = [*node.body, *node.orelse, *waiting]
    return found


def _parsed(path: Path) -> ast.Module:
    """A file as Python reads it, in the encoding that it names. ValueError where it is none."""
    try:
        return ast.parse(path.read_bytes(), path.name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path.name} is no Python ({str(error) or type(error).__name__})") from error


def files(source: str) -> list[Path]:
    """The file that it is defined in, first, and the modules of the same folder that this one needs. ValueError where
    one of them is no Python."""
    first = source_file(source).resolve()
    found, waiting = [first], [first]
    while waiting:
        beside = [first.parent / f"{name}.py" for name in _imported(waiting.pop())]
        new = [path for path in dict.fromkeys(beside) if path not in found and path.is_file()]
        found, waiting = found + new, waiting + new
    return [first, *sorted(found[1:])]


def _imported(path: Path) -> Iterator[str]:
    """First parts of the names of the modules that a file imports, wherever in it."""
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level < 2:
            yield from ([node.module.partition(".")[0]] if node.module else [alias.name for alias in node.names])


def digest(source: str) -> str:
    """SHA-256 over its name, its file and the modules beside that one which it needs; where they lie does not count."""
    _, name = split(source)
    content = [name, *(hashlib.sha256(path.read_bytes()).hexdigest() for path in files(source))]
    return hashlib.sha256("\n".join(content).encode()).hexdigest()


def absolute(source: str) -> str:
    """The same name for processes with another working directory; as it is where there is no such file."""
    place, _, name = source.rpartition(":")
    is_file = place.endswith(".py") and Path(place).is_file()
    return f"{Path(place).resolve()}:{name}" if is_file else source


_FOLDERS: set[Path] = set()
"""Of the code of a user's own that this process has loaded."""


def load(source: str) -> Any:
    """Import it. Whatever its code raises goes on (see `blamed`).

    OwnCodeError without such a name, and if a module of another folder has the name of one beside its file.
    """
    place, name = split(source)
    path = source_file(source).resolve()
    _FOLDERS.add(path.parent)
    module = _from_file(path) if place.endswith(".py") else importlib.import_module(place)
    if not hasattr(module, name):
        raise OwnCodeError(f"{source}: {path.name} names {name}, but has none once it was run")
    return getattr(module, name)


def calling(source: str, /, *placed: str, **named: Any) -> Callable[..., Any]:
    """Import what is to be called with these arguments, `placed` being the words for those that have no name.

    OwnCodeError if it does not take them.
    """
    made = load(source)
    try:
        inspect.signature(made).bind(*placed, **named)
    except (TypeError, ValueError) as error:
        given = ", ".join([*placed, *(f"{name}=..." for name in named)])
        raise OwnCodeError(f"{source}: {error}; it is called with {given or 'nothing'}") from error
    return made


def needs(source: str, made: Any, noun: str, **methods: str) -> None:
    """OwnCodeError unless what code of one's own made has these methods, each of which takes the arguments in words."""
    for name, arguments in methods.items():
        method = getattr(made, name, None)
        if not callable(method):
            raise OwnCodeError(f"{source} makes no {noun}: it has no {name}({arguments})")
        try:
            inspect.signature(method).bind(*arguments.split(", "))
        except (TypeError, ValueError) as error:
            raise OwnCodeError(f"{source}: {name}: {error}; it is called with {arguments}") from error


def _from_file(path: Path) -> ModuleType:
    """The module of a file, run once in a process."""
    alias = f"{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    if alias in sys.modules:
        return sys.modules[alias]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(alias, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[alias] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        for beside in files(f"{path}:{path.stem}")[1:]:
            other = getattr(sys.modules.get(beside.stem), "__file__", None)
            if other is not None and Path(other).resolve() != beside:
                raise OwnCodeError(f"{beside} is hidden by {other}, another module {beside.stem}; give it another name")
    except BaseException:
        del sys.modules[alias]
        raise
    return module


@contextlib.contextmanager
def blamed() -> Iterator[None]:
    """What code that was loaded raises inside becomes an `OwnCodeError`; whatever else is raised goes on as it is."""
    try:
        yield
    except OwnCodeError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).parent in _FOLDERS]
        if not own:
            raise
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise OwnCodeError(f"{own[-1].filename}:{own[-1].lineno}: {said}") from error


def _in_dumps(source: str, info: SerializationInfo) -> Any:
    if is_own(source) and info.context == DIGESTS:
        return digest(source)
    return _Found(source) if is_own(source) and info.context == _NAMES else source


OwnName = Annotated[str, AfterValidator(absolute), PlainSerializer(_in_dumps)]
"""In options: one of our names, or the name of code of one's own, whose content is what a hash of the options sees."""


class _Found(str):
    """A name of code of one's own in a dump."""


def own_names(options: BaseModel) -> dict[str, str]:
    """All that options name of a user's own code, by dotted key."""
    return dict(_walk(options.model_dump(context=_NAMES), ""))


def _walk(tree: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(tree, _Found):
        yield key, str(tree)
    below = tree if isinstance(tree, dict) else dict(enumerate(tree)) if isinstance(tree, list | tuple) else {}
    for name, value in below.items():
        yield from _walk(value, f"{key}.{name}" if key else str(name))
