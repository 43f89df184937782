"""Versioned weight snapshots: published once, pulled and checked by every worker.

A snapshot is the bytes of a checkpoint folder with a SHA-256, so it travels through Ray's object store to machines
that share no disk, and a worker never acts with weights that are not exactly those the learner published.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint folder in memory."""

    version: int
    digest: str
    files: dict[str, bytes]


def digest(files: dict[str, bytes]) -> str:
    """SHA-256 over names, sizes and bytes of all files."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{len(files[name])}\0".encode())
        whole.update(files[name])
    return whole.hexdigest()


def publish(folder: Path, version: int) -> Snapshot:
    """Read a checkpoint folder (its files, no subfolders)."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return Snapshot(version, digest(files), files)


def verify(snapshot: Snapshot) -> None:
    """RuntimeError if the bytes are not those that were published."""
    if digest(snapshot.files) != snapshot.digest:
        raise RuntimeError(f"weights of version {snapshot.version} arrived damaged: the checksum does not match")


def pull(snapshot: Snapshot, folder: Path) -> Path:
    """Write the snapshot into `folder`; RuntimeError if the bytes are not those that were published."""
    verify(snapshot)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in snapshot.files.items():
        (folder / name).write_bytes(content)
    return folder
