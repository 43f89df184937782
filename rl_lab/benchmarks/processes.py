"""Measuring in a process of its own, whose peak memory is that of what is measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def figures_of(module: str, *arguments: Path | int) -> Any:
    """What `python -m MODULE ARGUMENTS` prints, which must be JSON."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def memory_mib(name: str) -> float:
    """Resident memory of this process: `VmRSS` now, `VmHWM` at its peak.

    As Linux counts it: `ru_maxrss` would begin with that of the process that started it.
    """
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024
