"""Where the curriculum pools of a run lie: RUN/pool.sqlite, or RUN/{grpo,joint}/NODE/pool.sqlite of nodes that train.

Beside a pool are its `rollouts/` and, under `checkpoints/step-N/`, its copies. What the pool commands write goes into
the run folder: a node's folder is read-only once the node is done.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl_lab.errors import UserError
from rl_lab.pool.store import POOL_FILE
from rl_lab.reading import read_object

NODES = ("grpo", "joint")
"""Folders of a run that hold one folder for each node with a pool."""


@dataclass(frozen=True)
class PoolPlace:
    """One pool of a run, live or as a checkpoint."""

    run: Path
    """The run folder, where files for the user are written."""
    folder: Path
    """Holds the pool, rollouts/ and checkpoints/: the run folder, or that of a node."""
    path: Path
    """The pool, or its copy in a checkpoint."""

    @property
    def sealed(self) -> bool:
        """The file is read-only, as in a finished stage."""
        return not self.path.stat().st_mode & 0o222

    @property
    def page(self) -> Path:
        """Where `html` writes unless told otherwise; each of several pools has its own."""
        return self.run / ("pool.html" if len(pool_folders(self.run)) < 2 else f"pool-{self.folder.name}.html")

    @property
    def over(self) -> bool:
        """Whether no selection will come any more."""
        if self.sealed:
            return True
        stages = self.run / "stages.json"
        nodes = read_object(stages).get("nodes") if stages.is_file() else []
        if not isinstance(nodes, list) or not all(isinstance(node, dict) for node in nodes):
            raise UserError(f"{stages}: nodes is no list of stages; put back the file as it was written")
        return any((node.get("name"), node.get("status")) == (self.folder.name, "done") for node in nodes)


def pool_folders(run: Path) -> list[Path]:
    """Folders of a run that hold a pool."""
    nodes = (path for folder in NODES for path in sorted(run.glob(f"{folder}/*/{POOL_FILE}")))
    return [path.parent for path in (run / POOL_FILE, *nodes) if path.is_file()]


def locate(text: str) -> PoolPlace:
    """The pool of `RUN`, `RUN@STEP`, `RUN/grpo/NODE` or `RUN/grpo/NODE@STEP`. UserError if there is no such one."""
    given, step = Path(text), ""
    if not given.exists() and "@" in text:
        name, _, step = text.rpartition("@")
        given = Path(name)
    if not given.is_dir():
        raise UserError(f"no run folder at {given}; a run prints its path in its first and last line")
    folder = _only_pool(given, f"@{step}" if step else "")
    return PoolPlace(_run_of(folder), folder, _checkpoint(folder, step) if step else folder / POOL_FILE)


def _run_of(folder: Path) -> Path:
    """The run folder of a folder with a pool. By names, because a live node's folder is a link to somewhere else."""
    whole = folder if len(folder.parts) > 2 else folder.absolute()
    return whole.parent.parent if whole.parent.name in NODES else folder


def _only_pool(given: Path, suffix: str) -> Path:
    folders = pool_folders(given)
    if len(folders) > 1:
        raise UserError(f"{given} holds {len(folders)} pools; give one of {', '.join(f'{f}{suffix}' for f in folders)}")
    if not folders:
        there = sorted(path.name + "/" * path.is_dir() for path in given.iterdir() if not path.name.startswith("."))
        named = ", ".join([*there[:12], *([f"and {len(there) - 12} more"] if len(there) > 12 else [])])
        raise UserError(f"{given} has no curriculum pool ({POOL_FILE}); it holds {named or 'nothing'}")
    return folders[0]


def _checkpoint(folder: Path, step: str) -> Path:
    if not step.isdigit():
        raise UserError(f"{step!r} in {folder}@{step} is no step; give a number, as in {folder}@20")
    path = folder / "checkpoints" / f"step-{step}" / POOL_FILE
    if not path.is_file():
        known = [p.parent.name.removeprefix("step-") for p in path.parent.parent.glob(f"step-*/{POOL_FILE}")]
        steps = ", ".join(sorted(known, key=lambda name: (len(name), name)))
        raise UserError(f"{folder} has no checkpoint of its pool at step {step}; there are: {steps or 'none'}")
    return path
