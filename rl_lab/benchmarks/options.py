"""What several benchmarks check of their options; bounds of numbers are those of a run (`envs.options`)."""

from __future__ import annotations

from typing import Literal

import torch

from rl_lab.common.errors import UserError

Device = Literal["cpu", "cuda"]


def check_device(device: str) -> None:
    """UserError for a device that is not there."""
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise UserError(f"device {device!r} is not available; use cpu, or cuda where torch sees a GPU")


def check_divides(name: str, part: int, of: str, whole: int) -> None:
    """UserError unless `part` divides `whole`."""
    if whole % part:
        raise UserError(f"{of} is {whole}, which {name} of {part} do not divide; give a multiple of it")
