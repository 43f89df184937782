"""Finished stages under `runs/.stages/HASH`, each written whole or not at all and never changed afterwards."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rl_lab.common.errors import UserError
from rl_lab.common.files import (
    CODE_PACKAGES,
    HASHED_PACKAGES,
    ROOT,
    Digests,
    damaged_file,
    folder_digests,
    sync,
    write_whole,
)
from rl_lab.common.reading import fit, read_object
from rl_lab.graph.nodes import tree_digest

RECORD_FILE = "stage.json"
METRICS_FILE = "metrics.jsonl"


class StageRecord(BaseModel):
    """What every stage.json has, whichever code wrote it."""

    kind: str
    seconds: float
    files: Digests


def code_versions() -> dict[str, str]:
    """What a stage's result depends on besides its configuration: our code and data files, and four packages."""
    code = {
        f"code/{name}": tree_digest(ROOT / name, (".py", ".json", ".xml", ".txt", ".jinja")) for name in CODE_PACKAGES
    }
    return code | {name: metadata.version(name) for name in HASHED_PACKAGES}


def _place(folder: Path, target: Path) -> None:
    """Make a folder durable, give it its name, and make its files read-only, because run folders hold links to them.

    In this order: a run that is killed before the rename writes into the folder again.
    """
    for path in [*folder.rglob("*"), folder]:
        sync(path)
    os.rename(folder, target)
    for path in target.rglob("*"):
        if path.is_file():
            path.chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)


class Store:
    """Folders by content hash. Processes may share one: the first to finish a stage wins, the others use its result."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()

    def path(self, digest: str) -> Path:
        """Where the stage with this hash is, or will be."""
        return self.root / digest

    def check_writable(self) -> None:
        """UserError where no stage could be stored. Leaves nothing behind: the run may yet be refused."""
        there = next(path for path in (self.root, *self.root.parents) if path.is_dir())
        try:
            with tempfile.TemporaryFile(dir=there):
                pass
        except OSError as error:
            raise UserError(
                f"cannot store stages in {self.root}: {error.strerror}; make it writable or run from another folder"
            ) from error

    def has(self, digest: str) -> bool:
        """Whether the stage is there; no run leaves half of one."""
        return (self.path(digest) / RECORD_FILE).is_file()

    def damage(self, digest: str) -> str | None:
        """What has happened since to a stage that is there, naming a file; None if it is as it was stored."""
        try:
            record = self.record(digest)
        except UserError:
            return f"{self.path(digest) / RECORD_FILE} is damaged (no record of a stage)"
        return damaged_file(self.path(digest), record["files"])

    def discard(self, digest: str) -> None:
        """Take a damaged stage away, at once for those who look."""
        away = self.root / f".{digest}.{os.getpid()}.damaged"
        os.rename(self.path(digest), away)
        shutil.rmtree(away)

    def record(self, digest: str) -> dict[str, Any]:
        """What was recorded about a finished stage: kind, params, inputs, seconds, versions, digests of its files.

        UserError for a record that is damaged.
        """
        path = self.path(digest) / RECORD_FILE
        record = read_object(path)
        fit(record, StageRecord, str(path))
        return record

    def metrics(self, digest: str) -> list[dict[str, Any]]:
        """The lines that a finished stage logged."""
        path = self.path(digest) / METRICS_FILE
        return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []

    def publish(self, digest: str, work: Path, record: Mapping[str, Any]) -> Path:
        """Move the folder `work` into the store under its hash; it is gone afterwards."""
        (work / RECORD_FILE).unlink(missing_ok=True)  # of a run that was killed here
        files = folder_digests(work)
        write_whole(work / RECORD_FILE, json.dumps(dict(record) | {"files": files}, indent=1) + "\n")
        self.root.mkdir(parents=True, exist_ok=True)
        target = self.path(digest)
        try:
            _place(work, target)
        except OSError as error:
            if error.errno == errno.EXDEV:
                self._publish_copy(work, target)
            elif not self.has(digest):
                raise
        shutil.rmtree(work, ignore_errors=True)
        sync(self.root)
        return target

    def _publish_copy(self, work: Path, target: Path) -> None:
        """The same from another file system: copy beside the target, then rename."""
        partial = self.root / f".{target.name}.{os.getpid()}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            shutil.copytree(work, partial)
            _place(partial, target)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
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
