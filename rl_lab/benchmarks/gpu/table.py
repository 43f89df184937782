"""Rows of a table as JSON and Markdown under the machine and versions they were measured with."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from rl_lab.common.files import write_whole
from rl_lab.common.machine import devices, git_commit

NAME = "bench_gpu"
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "pydantic", "triton")
DRIVER_FIELDS = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit", "mig.mode.current")
"""What is asked of the driver's own tool."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    what: str
    value: float | str
    """A number, or what is to be said in its place: why it is not there."""
    unit: str = ""
    note: str = ""
    check: str = ""
    """Filled in by the table."""


def skipped(what: str, why: str) -> Row:
    """A row that was not measured."""
    return Row(what, f"skipped: {why}")


class Table:
    """The rows so far, on disk after each."""

    def __init__(self, folder: Path, head: dict[str, str]) -> None:
        self.folder, self.head, self.rows = folder, head, list[Row]()
        folder.mkdir(parents=True, exist_ok=True)
        self.write()

    def add(self, row: Row) -> None:
        """Append a row and write everything anew."""
        self.rows.append(row)
        self.write()

    def write(self) -> None:
        """Both files, each whole or as it was."""
        rows = [asdict(row) for row in self.rows]
        write_whole(self.folder / f"{NAME}.json", json.dumps({"head": self.head, "rows": rows}, indent=1) + "\n")
        write_whole(self.folder / f"{NAME}.md", self.markdown())

    def markdown(self) -> str:
        """The head as a list, then a table of all rows."""
        lines = [f"- {key}: {value}" for key, value in self.head.items()]
        lines += ["", "| check | what | value | unit | note |", "|---|---|---|---|---|"]
        for row in self.rows:
            cells = (row.check, row.what, in_words(row.value), row.unit, row.note)
            lines.append("| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in cells) + " |")
        return "\n".join(lines) + "\n"


def in_words(value: float | str) -> str:
    """A number with four significant digits; a text as it is."""
    return value if isinstance(value, str) else f"{value:.4g}"


def head(device: str, started: str, command: str) -> dict[str, str]:
    """Where and with what the table is measured."""
    machine = devices()
    named = [f"python {platform.python_version()}", *filter(None, map(_version, PACKAGES))]
    found: dict[str, Any] = {
        "command": command,
        "started": started,
        "device": device if device == "cpu" else _gpu(),
        "driver": "" if device == "cpu" else _driver(),
        "host": f"{machine['machine']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['platform']}",
        "versions": ", ".join(named),
        "CUDA, cuDNN": "" if device == "cpu" else f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
        "commit": git_commit(),
    }
    return {key: str(value) for key, value in found.items() if value}


def _version(package: str) -> str:
    try:
        return f"{package} {metadata.version(package)}"
    except metadata.PackageNotFoundError:
        return ""


def _gpu() -> str:
    found = torch.cuda.get_device_properties(0)
    capability = f"{found.major}.{found.minor}"
    return f"{found.name}, {found.total_memory / 2**30:.1f} GiB, {found.multi_processor_count} SMs, sm {capability}"


def _driver() -> str:
    """What the driver's tool says; empty without the tool."""
    query = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(DRIVER_FIELDS)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    values = said.strip().splitlines()[:1]
    parts: Iterable[tuple[str, str]] = zip(DRIVER_FIELDS, values[0].split(", ") if values else (), strict=False)
    return ", ".join(f"{name} {value}" for name, value in parts)
