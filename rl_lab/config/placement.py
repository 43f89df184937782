"""Where a run's processes go: a device, or a short block with what each kind of process is given.

    placement: {learner: {ranks: 2, gpus: 1}, engines: {gpus: 1}, simulators: {cpus: 1}, strategy: PACK}

A kind that is named has its resources reserved in a Ray placement group; the others share what there is.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, model_validator

from envs.options import NonNegativeFloat, PositiveFloat, Processes
from rl_lab.config.section import Section


class ProcessPlacement(Section):
    """What each process of a kind is given; their numbers are those of `workers`."""

    cpus: PositiveFloat = 0.5
    """Cores; workers and learners take turns, so a laptop with two cores holds two of each kind."""
    gpus: NonNegativeFloat = 0.0
    """GPUs; engines may share one (0.5), ranks may not."""


class LearnerPlacement(ProcessPlacement):
    """The ranks of every learner."""

    ranks: Processes = 1
    """Processes that share the model's weights (FSDP2) and the rows of every batch; another number gives other
    rounding, so it is part of the result."""

    @model_validator(mode="after")
    def _a_gpu_for_each(self) -> Self:
        if self.ranks > 1 and 0 < self.gpus < 1:
            raise ValueError(f"{self.ranks} ranks with {self.gpus:g} GPUs each, but two ranks cannot share one; give 1")
        return self


class Placement(Section):
    """The whole block."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where learners and a shared policy run; auto: the GPU if there is one."""
    learner: LearnerPlacement | None = None
    engines: ProcessPlacement | None = None
    """vLLM engines, `workers.rollout` of them."""
    teachers: ProcessPlacement | None = None
    """Engines of a teacher that scores answers, as many again."""
    judges: ProcessPlacement | None = None
    """The model of the section `judge`, which the run serves itself."""
    simulators: ProcessPlacement | None = None
    """Simulation workers, `workers.simulation` of them."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's: processes of a kind close together or on different machines, if possible or always."""

    @property
    def ranks(self) -> int:
        """Of every learner."""
        return self.learner.ranks if self.learner else 1

    @property
    def named(self) -> dict[str, ProcessPlacement]:
        """Kinds whose resources are reserved."""
        kinds = {
            "learner": self.learner,
            "engines": self.engines,
            "teachers": self.teachers,
            "judges": self.judges,
            "simulators": self.simulators,
        }
        return {name: kind for name, kind in kinds.items() if kind is not None}

    @model_validator(mode="after")
    def _gpus_are_used(self) -> Self:
        for name, kind in self.named.items():
            if kind.gpus and self.device == "cpu":
                raise ValueError(f"{name}.gpus is {kind.gpus:g} but device is cpu; leave one of them out")
        if self.device == "gpu" and self.learner is not None and not self.learner.gpus:
            raise ValueError("device is gpu but learner.gpus is 0; give the learner its GPUs")
        return self


def _block(value: Any) -> Any:
    """`auto`, `cpu` or `gpu` alone is the block's device."""
    return {"device": value} if isinstance(value, str) else value


PlacementBlock = Annotated[Placement, BeforeValidator(_block)]
