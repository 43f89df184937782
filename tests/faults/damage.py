"""Ways in which a file can be damaged, derived from what it holds.

`damages(path, form)` lists them for one file: those of its bytes, those of its text, and those of its content (keys
of a tree, arrays, columns, tables). None is written before it is asked for.
"""

import json
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import yaml

from tests.faults.damage_kinds import DEEP, Damage, tree_damages
from tests.faults.damage_tables import arrow, hdf5, npz, parquet, safetensors, sqlite

FOREIGN = {"a picture": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(64), "JSON": b'{"name": "foreign", "version": 3}\n'}
FOREIGN |= {"a table": b"a,b\n1,2\n", "a database": b"SQLite format 3\0" + bytes(84)}


def damages(path: Path, form: str) -> list[Damage]:
    """All damages of a file of one form: a name in `FORMS`."""
    whole = path.read_bytes()
    return [*_bytes(whole), *FORMS[form](whole)]


def spread(found: Iterable[Damage], count: int, seed: int) -> list[Damage]:
    """`count` of the damages: the same for the same seed, the kinds in turns, anywhere in the file."""
    by_kind: dict[str, list[Damage]] = {}
    for damage in sorted(found, key=lambda damage: zlib.crc32(str(damage).encode(), seed)):
        by_kind.setdefault(damage.kind, []).append(damage)
    longest = max(map(len, by_kind.values()), default=0)
    turns = [kind[turn] for turn in range(longest) for kind in by_kind.values() if turn < len(kind)]
    return turns[:count]


def _bytes(whole: bytes) -> Iterator[Damage]:
    """What can happen to any file."""
    noise = np.random.default_rng(len(whole)).bytes(max(len(whole), 64))
    middle = len(whole) // 2
    yield Damage("missing", "", lambda: None)
    yield Damage("empty", "", lambda: b"")
    for share in (0.02, 0.3, 0.6, 0.95):
        yield Damage("cut", f"at {share:.0%}", partial(whole.__getitem__, slice(int(share * len(whole)))))
    yield Damage("noise", "", lambda: noise)
    for share in (0.0, 0.5):
        start = int(share * len(whole))
        torn = whole[:start] + noise[:64] + whole[start + 64 :]
        yield Damage("torn", f"64 bytes at {share:.0%}", lambda torn=torn: torn)
    yield Damage("torn", "zeros", lambda: whole[:middle] + bytes(len(whole) - middle))
    for name, content in FOREIGN.items():
        yield Damage("foreign", name, lambda content=content: content)


def _text(whole: bytes) -> Iterator[Damage]:
    """What can happen to text."""
    middle = whole.find(b"\n", len(whole) // 3) + 1
    yield Damage("not UTF-8", "", lambda: whole[:middle] + b"\xff\xfe\x80" + whole[middle:])
    yield Damage("null byte", "", lambda: whole[:middle] + b"\0" + whole[middle:])


def _json(whole: bytes) -> Iterator[Damage]:
    yield from _text(whole)
    yield Damage("deep", "list", lambda: b"[" * DEEP + b"]" * DEEP)
    yield Damage("deep", "object", lambda: b'{"a":' * DEEP + b"1" + b"}" * DEEP)
    yield Damage("huge", "5000 digits", lambda: b"9" * 5000)
    yield from tree_damages(json.loads(whole), lambda tree: json.dumps(tree).encode())


def _lines(whole: bytes) -> Iterator[Damage]:
    """JSON lines, of which one in the middle is damaged."""
    lines = whole.splitlines(keepends=True)
    number = len(lines) // 2

    def put(line: bytes) -> bytes:
        return b"".join([*lines[:number], line + b"\n", *lines[number + 1 :]])

    yield from _text(whole)
    yield Damage("one line", "deep", lambda: put(b"[" * DEEP + b"]" * DEEP))
    yield Damage("one line", "5000 digits", lambda: put(b'{"step": ' + b"9" * 5000 + b"}"))
    yield Damage("one line", "cut", lambda: put(lines[number][: len(lines[number]) // 2]))
    yield Damage("repeated", "one line", lambda: whole + lines[number])
    yield from tree_damages(json.loads(lines[number]), lambda tree: put(json.dumps(tree).encode()))


BOMB = "\n".join(["a0: &a0 [1, 1]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))])
ODD_YAML = {"bad int": "seed: !!int abc", "bad float": "seed: !!float x", "bad time": "seed: !!timestamp x"}
ODD_YAML |= {"5000 digits": "seed: " + "9" * 5000, "python object": "seed: !!python/object/apply:os.getcwd []"}
ODD_YAML |= {
    "recursive alias": "seed: &a [*a]",
    "alias bomb": BOMB,
    "tab": "seed:\n\t- 1",
    "binary": "seed: !!binary =x",
}
ODD_YAML |= {"two documents": "seed: 1\n---\nseed: 2", "list key": "? [1, 2]\n: 3", "set": "seed: !!set {a, b}"}
ODD_YAML |= {"merge": "seed: {<<: 3}", "unknown alias": "seed: *nobody", "sexagesimal": "seed: 1:99:99"}
ODD_YAML |= {
    "deep": "seed: " + "[" * 20_000 + "]" * 20_000,
    "deep blocks": "\n".join(" " * n + "a:" for n in range(2000)),
}


def _yaml(whole: bytes) -> Iterator[Damage]:
    yield from _text(whole)
    for name, text in ODD_YAML.items():
        yield Damage("odd YAML", name, lambda text=text: whole + b"\n" + text.encode() + b"\n")
    yield from tree_damages(yaml.safe_load(whole), lambda tree: yaml.safe_dump(tree).encode(errors="replace"))


BAD_CODE = {
    "syntax": "def reward(:\n",
    "import": "import nothing_of_this_name\n",
    "raises": "raise RuntimeError('a\\nb')\n",
}
BAD_CODE |= {"exits": "import sys\nsys.exit(0)\n", "dies": "import os\nos._exit(0)\n", "no function": "x = 1\n"}
BAD_CODE |= {"no callable": "reward = 3\n", "a class": "class reward: pass\n", "indented": "  x = 1\n\ty = 2\n"}
BAD_CODE |= {"keyboard": "raise KeyboardInterrupt\n", "deep": "x = " + "(" * 5000 + ")" * 5000 + "\n"}
BAD_CODE |= {"killed": "import os\nos.kill(os.getpid(), 9)\n", "encoding": "# coding: nothing\n"}


def _code(whole: bytes) -> Iterator[Damage]:
    yield from _text(whole)
    for name, text in BAD_CODE.items():
        yield Damage("bad code", name, lambda text=text: text.encode())


FORMS: dict[str, Callable[[bytes], Iterator[Damage]]] = {
    "json": _json,
    "lines": _lines,
    "yaml": _yaml,
    "text": _text,
    "npz": npz,
    "safetensors": safetensors,
    "parquet": parquet,
    "arrow": arrow,
    "hdf5": hdf5,
    "sqlite": sqlite,
    "code": _code,
    "bytes": lambda whole: iter(()),
}
