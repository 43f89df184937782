"""In which type a model is trained where `model.dtype` is auto: in the one whose steps take less time here.

Steps of the very training are timed, so sizes, batch, draws and threads are the run's. What they learn is thrown away.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from rl_lab.common.machine import has_bfloat16, seconds
from rl_lab.config.section import ModelConfig
from rl_lab.learner.plans import DataPlan

FLOAT32, BFLOAT16 = "float32", "bfloat16"
MARGIN = 1.05
"""bfloat16 rounds, so it must be so many times as fast."""
TIMED_STEPS = 2


class FromModel(DataPlan):
    """A plan that makes its model from the configuration, and so may choose its type."""

    model: ModelConfig

    @property
    def dtype(self) -> str | None:
        """`model.dtype`."""
        return self.model.dtype

    def in_dtype(self, dtype: str) -> Self:
        """The same in this type."""
        plan: Any = self
        return replace(plan, model=self.model.replace(dtype=dtype))


def step_seconds(plan: Any, device: str) -> dict[str, float]:
    """Seconds of a training step of a `FromModel` by type, the least of some after one of warm-up; {} where the device
    has no arithmetic of bfloat16."""
    if device == "cpu" and not has_bfloat16():
        return {}
    found = {}
    for dtype in (FLOAT32, BFLOAT16):
        training = plan.in_dtype(dtype).training(device)
        training.run_step()
        found[dtype] = min(seconds(training.run_step, device) for _ in range(TIMED_STEPS))
    return found


def faster(times: Mapping[str, float]) -> str:
    """The type to train in, of what `step_seconds` found."""
    return BFLOAT16 if times and times[FLOAT32] > MARGIN * times[BFLOAT16] else FLOAT32
