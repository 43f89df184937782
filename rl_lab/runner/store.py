"""Finished stages under `runs/.stages/HASH`, each written whole or not at all and never changed afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_lab.files import write_whole
from rl_lab.runner.graph import tree_digest

RECORD_FILE = "stage.json"
METRICS_FILE = "metrics.jsonl"
CODE_PACKAGES = ("rl_lab", "envs", "algos", "rewards")
HASHED_PACKAGES = ("torch", "mujoco", "numpy", "transformers")


def code_versions() -> dict[str, str]:
    """What a stage's result depends on besides its configuration: our code and data files, and four packages."""
    root = Path(__file__).resolve().parent.parent
    code = {f"code/{name}": tree_digest(root / name, (".py", ".json", ".xml", ".txt")) for name in CODE_PACKAGES}
    return code | {name: metadata.version(name) for name in HASHED_PACKAGES}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _seal(folder: Path) -> None:
    """Make a folder durable and its files read-only, because run folders hold hard links to them."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
        _fsync(path)


class Store:
    """Folders by content hash. Processes may share one: the first to finish a stage wins, the others use its result."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, digest: str) -> Path:
        """Where the stage with this hash is, or will be."""
        return self.root / digest

    def has(self, digest: str) -> bool:
        """Whether the stage is there; a folder in the store is always whole."""
        return (self.path(digest) / RECORD_FILE).is_file()

    def record(self, digest: str) -> dict[str, Any]:
        """What was recorded about a finished stage: kind, params, inputs, seconds, versions."""
        return json.loads((self.path(digest) / RECORD_FILE).read_text())

    def metrics(self, digest: str) -> list[dict[str, Any]]:
        """The lines that a finished stage logged."""
        path = self.path(digest) / METRICS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def publish(self, digest: str, work: Path, record: Mapping[str, Any]) -> Path:
        """Move the folder `work` into the store under its hash; it is gone afterwards."""
        write_whole(work / RECORD_FILE, json.dumps(record, indent=1) + "\n")
        self.root.mkdir(parents=True, exist_ok=True)
        target = self.path(digest)
        try:
            _seal(work)
            os.rename(work, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self._publish_copy(work, target)
            elif not self.has(digest):
                raise
        shutil.rmtree(work, ignore_errors=True)
        _fsync(self.root)
        return target

    def _publish_copy(self, work: Path, target: Path) -> None:
        """The same from another file system: copy beside the target, then rename."""
        partial = self.root / f".{target.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(work, partial)
        _seal(partial)
        try:
            os.rename(partial, target)
        except OSError:
            shutil.rmtree(partial)
            if not self.has(target.name):
                raise


def link_tree(source: Path, target: Path, *, without: tuple[str, ...] = ()) -> None:
    """Show the folder `source` at `target` by hard links (copies where links fail), whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    for folder in (partial, target):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    def link(old: str, new: str) -> str:
        try:
            os.link(old, new)
        except OSError:
            shutil.copy2(old, new)
        return new

    shutil.copytree(source, partial, copy_function=link, ignore=lambda folder, names: set(without) & set(names))
    os.replace(partial, target)
