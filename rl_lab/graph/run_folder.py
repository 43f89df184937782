"""The folder of one run: who may use it, what lies where, and its files that grow while the run goes on."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from envs.by_name import digest, files
from rl_lab.common.errors import UserError
from rl_lab.common.files import append_json_line, file_digest, read_json_lines, write_json_lines, write_whole
from rl_lab.common.reading import read_as
from rl_lab.graph.nodes import Node
from rl_lab.graph.store import METRICS_FILE, RECORD_FILE, link_tree

CONFIG_FILE = "config.yaml"
ENVIRONMENT_FILE = "environment.json"
CODE_FOLDER = "code"
SUMMARY_FILE = "summary.json"
STAGES_FILE = "stages.json"
GATE_FILE = "gate.json"
"""What a gate decided, in its output: at least `passed` and, in words, `reason`."""

Line = dict[str, Any]


class StageRow(BaseModel):
    """What every row of stages.json has; `hash` is null for a report."""

    model_config = ConfigDict(extra="allow")

    name: str
    status: str = "pending"
    hash: str | None = None


class StagesFile(BaseModel):
    """The content of stages.json."""

    store: str
    config: str | None = None
    """Digest of config.yaml as it was when the rows were written."""
    nodes: list[StageRow]


def plain_line(line: Line) -> Line:
    """A line of metrics as JSON can hold it: numbers that are not finite become null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in line.items()
    }


def _remove(target: Path) -> None:
    """Take away what a stage showed: a link, or the files of an earlier run of it."""
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)


def check_unused(path: Path) -> None:
    """UserError for a file, or a folder with something in it, where a new run shall be."""
    if path.exists() and not path.is_dir():
        raise UserError(f"--run-dir {path} is a file; give a new folder")
    if path.exists() and any(not inside.name.startswith(".") for inside in path.iterdir()):
        raise UserError(f"{path} is already used; continue it with --resume {path} or give another --run-dir")


class RunFolder:
    """A run folder in use by this process. Closing it, or the end of the process, lets another one resume it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._metrics_lock = threading.Lock()
        try:
            self._owner = os.open(path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{path} is in use by another process; wait for it or stop it first") from error
        except OSError as error:
            raise UserError(f"cannot write to {path}: {error.strerror}; give a writable folder") from error
        self.metrics_path = path / METRICS_FILE

    @classmethod
    def create(cls, path: Path | None, name: str) -> RunFolder:
        """Make a new run folder, `runs/NAME-TIMESTAMP` without a path. UserError if it is taken or not writable."""
        if path is None:
            path = Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
            while path.exists():
                path = path.with_name(f"{path.name}-2")
        check_unused(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot create {path}: {error.strerror}; give a writable --run-dir") from error
        return cls(path)

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """An existing run folder. UserError if it is none or another process works in it."""
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{path} holds no run to resume: {CONFIG_FILE} is missing")
        return cls(path)

    def close(self) -> None:
        """Let other processes use the folder."""
        os.close(self._owner)

    def write(self, name: str, text: str) -> None:
        """Write one file of the folder, whole or not at all."""
        write_whole(self.path / name, text)

    def keep_code(self, sources: Iterable[str]) -> None:
        """Copy code of a user's own to `code/DIGEST/`, with the modules beside it that it needs."""
        for source in sources:
            target = self.path / CODE_FOLDER / digest(source)[:12]
            target.mkdir(parents=True, exist_ok=True)
            for path in files(source):
                write_whole(target / path.name, path.read_text())

    def write_stages(self, rows: Sequence[Line], store: Path) -> None:
        """Write stages.json: the store's path; name, kind, method, round, hash, status, seconds, reused of nodes."""
        content = {"store": str(store), "config": self._config_digest(), "nodes": list(rows)}
        self.write(STAGES_FILE, json.dumps(content, indent=1) + "\n")

    def read_stages(self) -> tuple[Path | None, list[Line]]:
        """The store's path and the rows that `write_stages` wrote; (None, []) if the run was killed before it did."""
        content = self._stages_file()
        if content is None:
            return None, []
        return Path(content.store), [row.model_dump() for row in content.nodes]

    def config_was_edited(self) -> bool:
        """Whether config.yaml is another than when `write_stages` last wrote its rows."""
        content = self._stages_file()
        return content is not None and content.config not in (None, self._config_digest())

    def _config_digest(self) -> str | None:
        path = self.path / CONFIG_FILE
        return file_digest(path) if path.is_file() else None

    def _stages_file(self) -> StagesFile | None:
        if not (self.path / STAGES_FILE).exists():
            return None
        try:
            return read_as(self.path / STAGES_FILE, StagesFile)
        except UserError as error:
            raise UserError(f"{error}, or delete it: what is finished is found by its hash") from error

    def show_live(self, node: Node, out: Path) -> None:
        """Point to the output of a stage that is running, at the place where it will be when it is done."""
        if node.stage.is_live:
            target = self.path / node.stage.folder / node.name
            target.parent.mkdir(exist_ok=True)
            _remove(target)
            target.symlink_to(os.path.relpath(out, target.parent), target_is_directory=True)

    def show(self, node: Node, stored: Path) -> None:
        """Link a finished stage's files to their place in the folder; its `videos/`, if any, go to `videos/<node>`."""
        target = self.path / node.stage.folder / node.name
        target.parent.mkdir(exist_ok=True)
        if target.is_symlink():
            _remove(target)
        link_tree(stored, target, without=(METRICS_FILE, RECORD_FILE, "videos"))
        if (stored / "videos").is_dir():
            (self.path / "videos").mkdir(exist_ok=True)
            link_tree(stored / "videos", self.path / "videos" / node.name)

    def append_metrics(self, lines: Iterable[Line]) -> None:
        """Append lines to metrics.jsonl."""
        with self._metrics_lock:
            for line in lines:
                append_json_line(self.metrics_path, line)

    def keep_metrics(self, wanted: Callable[[Line], bool]) -> None:
        """Drop the lines of metrics.jsonl that are not wanted, and a last line that a kill cut short."""
        with self._metrics_lock:
            lines = read_json_lines(self.metrics_path, missing_ok=True)
            write_json_lines(self.metrics_path, [line for line in lines if wanted(line)])
