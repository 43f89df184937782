"""Which model a run starts from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from algos.chunks import FirstSlot
from rl_lab.config.section import ControlSteps, Fraction, Rounds, Section

Preset = Literal["nano", "small", "mini", "mot-2b"]


class MemoryConfig(Section):
    """Past frames that the policy sees (memory encoder of Hy-VLA, no weights of its own)."""

    frames: Annotated[int, Field(ge=2, le=64)] = 6
    """K, with the present one."""
    interval: ControlSteps = 5
    """Commands between two of them."""
    layer_stride: Rounds | None = None
    """Every so many blocks of the vision tower frames meet; None: as the preset or the checkpoint says (4)."""


class ModelConfig(Section):
    """The policy that SFT starts from."""

    preset: Preset = "nano"
    """Random weights of these sizes; ignored when `path` is given."""
    path: str | None = None
    """A checkpoint folder to start from instead."""
    prediction: Literal["velocity", "action"] | None = None
    """What the expert outputs; None: as the preset or the checkpoint says. Small models learn faster with action."""
    time_density: Literal["beta", "uniform"] | None = None
    """Density of the flow time in training; None: as the preset or the checkpoint says."""
    loss_weight_clip: Fraction | None = None
    """t_min of the weight (t / max(t, t_min))^2 on the velocity error, 0 for none; None: as the preset says."""
    chunk_size: ControlSteps | None = None
    """Commands of a chunk; None: as the preset or the checkpoint says."""
    absolute_half: bool | None = None
    """Predict every chunk twice, relative to its start and absolute, and command the mean; None: as the checkpoint."""
    first_slot: FirstSlot | None = None
    """Slot 0 of a chunk is the next command, or (as released) the pose at its start; None: as the checkpoint, next."""
    visual_segment_isolation: bool | None = None
    """An image's tokens see their own image only (as Hy-VLA's RoboTwin policy); None: as the preset or checkpoint."""
    memory: MemoryConfig | None = None
    """None: as the checkpoint, else the present frame alone."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and layers; None: as the checkpoint, float32 without one. Training keeps float32 master weights."""

    def options(self) -> dict[str, Any]:
        """The model options that are set here, but for those of chunks."""
        fields = {"prediction", "time_density", "loss_weight_clip", "visual_segment_isolation"}
        options = self.model_dump(include=fields, exclude_none=True)
        if self.loss_weight_clip == 0:
            options["loss_weight_clip"] = None
        if self.memory is not None:
            options["use_video_encoder"] = True
            if self.memory.layer_stride is not None:
                options["spacetime_layer_stride"] = self.memory.layer_stride
        return options

    def chunk_options(self, num_tokens: int, has_absolute: bool) -> dict[str, Any]:
        """The same of chunks, for a model of `num_tokens` action tokens, of which half may be absolute poses."""
        commands = self.chunk_size or num_tokens // (2 if has_absolute else 1)
        tokens = commands * (2 if self.predicts_absolute(has_absolute) else 1)
        return {"chunk_size": tokens, "n_action_steps": tokens}

    def predicts_absolute(self, has_absolute: bool) -> bool:
        """Whether half of the action tokens are absolute poses, where the checkpoint has them or has not."""
        return has_absolute if self.absolute_half is None else self.absolute_half
