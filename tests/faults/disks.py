"""Small disks for tests: real file systems of a size, that fill up or become read-only."""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FILLER = "filler"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory of this size at `folder`. Skips the test where this user may not mount one."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root with the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", "-R", str(folder)], check=True)


def fill(disk: Path, leave: int = 0) -> None:
    """Take all space of a disk but `leave` bytes, also while others write to it."""
    with open(disk / FILLER, "ab") as file:
        while (free := os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - leave) > 0:
            with contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, free)


def free(disk: Path) -> None:
    """Give back what `fill` took."""
    (disk / FILLER).unlink()


def remount(disk: Path, mode: str) -> None:
    """Make a disk read-only (`ro`) or writable (`rw`)."""
    subprocess.run(["mount", "-o", f"remount,{mode}", str(disk)], check=True)


def protect(folder: Path) -> None:
    """Make a folder read-only under the feet of those who use it."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)


def unprotect(folder: Path) -> None:
    """Take back `protect`."""
    subprocess.run(["umount", "-l", str(folder)], check=True)
