"""What the lab asks of a policy, from what it sees to a flow over chunks of commands; and a start for one of your own.

Collection, learner, objectives and evaluation use a policy as `Policy` says and in no other way. `FlowModel` has all of
that but the network. Letters: B observations, V cameras, K frames, S image side (pixels), E numbers of an encoded
state, N rows of actions, C commands of a chunk, D numbers of an encoded command, A the size that noise is drawn with
(D, or more where a policy pads). States and commands are normalised to mean 0 and standard deviation 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from algos.batch import ObservationBatch, send, take_rows
from algos.flow_matching import chunk_loss, interpolate, loss_weight, velocity_target
from algos.objective import FlowPolicy
from envs.by_name import OwnCodeError
from envs.types import Layout

GROUPS = ("vision", "vlm", "expert")
"""Names of parameter groups: `encode` uses vision and vlm alone, what follows it expert alone."""
CHUNK = 8
"""Commands of a chunk where nothing else is said."""


class PolicySizes(Protocol):
    """What a policy is made for: its `config`."""

    @property
    def layout(self) -> Layout:
        """What states and commands are, and which cameras there are."""

    @property
    def n_action_steps(self) -> int:
        """Action tokens C."""

    @property
    def image_size(self) -> int:
        """S; other pictures are resized before the policy sees them."""

    @property
    def image_features(self) -> dict[str, Any]:
        """By the cameras' names in a batch, in order."""

    @property
    def empty_cameras(self) -> int:
        """So many of them may be missing from a batch."""

    @property
    def tokenizer_max_length(self) -> int:
        """Longest instruction, in tokens."""

    @property
    def truth_size(self) -> int:
        """Numbers of the simulator's truth that it reads, of a policy of studies; 0 of all others."""

    def learn(self, layout: Layout) -> None:
        """Take another layout; ValueError if it cannot."""


class Policy(FlowPolicy, Protocol):
    """A `torch.nn.Module` that acts, and learns by any objective: `FlowPolicy` and this.

    The same weights, observation and noise must give the same chunk, in a batch of any size up to rounding; nothing is
    random but what `sample_noise` and `sample_time` draw from their generator, in training mode as well. A policy with
    a tokenizer of its own also has `token_ids(instruction: str) -> list[int]`; else it gets those of the lab's.
    """

    @property
    def config(self) -> PolicySizes:
        """Of a policy of one's own the `PolicySpec` that it was made with."""

    @property
    def device(self) -> torch.device:
        """Where its weights are."""

    def sample_actions(self, prefix: Any, noise: Tensor) -> Tensor:
        """Normalised chunks [B, C, D] that the flow makes of `noise` [B, C, A]; row i reads prefix row i."""

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All trainable parameters, each in one of `GROUPS`; a policy need not have all of these."""


@dataclass(frozen=True)
class PolicySpec:
    """What a policy of one's own is made for; stands in its checkpoint."""

    layout: Layout = field(default_factory=Layout)
    chunk_size: int = CHUNK
    """C."""
    image_size: int = 64
    """S."""
    frames: int = 1
    """K: of each camera the policy sees so many, `ObservationBatch.images` has them as an axis where there are more."""
    vocabulary: int = 0
    """Ids of instruction tokens are below this."""
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    """What its class is called with beside this."""
    truth_size: int = 0
    """See `PolicySizes`."""
    empty_cameras: ClassVar[int] = 0
    tokenizer_max_length: ClassVar[int] = 64

    @property
    def num_cameras(self) -> int:
        """V."""
        return len(self.layout.cameras)

    @property
    def state_size(self) -> int:
        """E: 20 of two arms as poses."""
        return self.layout.encoded_state_dim

    @property
    def command_size(self) -> int:
        """D: 20 of two arms as poses."""
        return self.layout.encoded_action_dim

    @property
    def n_action_steps(self) -> int:
        """See `PolicySizes`."""
        return self.chunk_size

    @property
    def image_features(self) -> dict[str, Any]:
        """See `PolicySizes`."""
        shape = [3, self.image_size, self.image_size]
        return {f"observation.images.{name}": {"type": "VISUAL", "shape": shape} for name in self.layout.cameras}

    def learn(self, layout: Layout) -> None:
        """See `PolicySizes`: only one like its own."""
        if not self.layout.is_like(layout):
            raise ValueError(f"the policy was made for {self.layout}, and cannot change")


class FlowModel(nn.Module):
    """A policy whose `encode` and `velocity` are yours. The rest is as most have it, and may be yours as well.

    Made as `CLASS(spec, **settings)`.
    """

    num_steps = 10
    """Euler steps of the sampler."""
    loss_weight_clip: float | None = None
    """See `algos.flow_matching.loss_weight`; 0.3, say, for a network that predicts clean chunks."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.config = spec

    def encode(self, observation: ObservationBatch) -> Any:
        """What the flow reads of an observation, computed once for many points of the flow: a tensor whose first axis
        are the B rows, or a `algos.batch.TensorRecord` of such."""
        raise NotImplementedError(f"{type(self).__name__} has no encode(observation)")

    def velocity(self, prefix: Any, x_t: Tensor, time: Tensor) -> Tensor:
        """dx/dt at x_t [N, C, D] and time [N] in [0, 1], 1 being noise: [N, C, D]. Row i reads prefix row i.

        A network that predicts the clean chunk gives `algos.flow_matching.velocity_from_clean`.
        """
        raise NotImplementedError(f"{type(self).__name__} has no velocity(prefix, x_t, time)")

    @property
    def chunk_size(self) -> int:
        """See `FlowPolicy`."""
        return self.config.chunk_size

    @property
    def action_dim(self) -> int:
        """See `FlowPolicy`: D, without padding."""
        return self.config.command_size

    @property
    def device(self) -> torch.device:
        """See `Policy`."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Those of the attributes `self.vision` and `self.vlm`, where there are any; all others are the expert's."""
        named = {name: list(child.parameters()) for name, child in self.named_children() if name in GROUPS[:2]}
        taken = {id(parameter) for group in named.values() for parameter in group}
        return named | {"expert": [parameter for parameter in self.parameters() if id(parameter) not in taken]}

    def flow_losses(
        self, prefix: Any, actions: Tensor, noise: Tensor, time: Tensor, rows: Tensor | None = None
    ) -> Tensor:
        """See `FlowPolicy`."""
        past = prefix if rows is None else take_rows(prefix, rows)
        velocity = self._velocity(past, interpolate(actions, noise, time), time)
        weight = loss_weight(time, self.loss_weight_clip)
        return chunk_loss(velocity, velocity_target(actions, noise), weight, self.action_dim)

    @torch.no_grad()
    def sample_actions(self, prefix: Any, noise: Tensor) -> Tensor:
        """See `Policy`: Euler steps from t = 1 to 0."""
        x_t = noise
        for step in range(self.num_steps):
            time = torch.full((len(x_t),), 1 - step / self.num_steps, device=x_t.device)
            x_t = x_t - self._velocity(prefix, x_t, time) / self.num_steps
        return x_t

    def _velocity(self, prefix: Any, x_t: Tensor, time: Tensor) -> Tensor:
        """`velocity`; OwnCodeError for one of another shape, which could be broadcast unseen."""
        velocity = self.velocity(prefix, x_t, time)
        found = getattr(velocity, "shape", None)
        if found != x_t.shape:
            given = type(velocity).__name__ if found is None else list(found)
            raise OwnCodeError(f"velocity gives {given}; expected {list(x_t.shape)}, as x_t has it")
        return velocity

    def sample_noise(self, num: int, generator: torch.Generator) -> Tensor:
        """See `FlowPolicy`."""
        shape = (num, self.chunk_size, self.action_dim)
        return send(torch.randn(shape, generator=generator, device=generator.device), self.device)

    def sample_time(self, num: int, generator: torch.Generator) -> Tensor:
        """See `FlowPolicy`: uniform."""
        return send(torch.rand(num, generator=generator, device=generator.device), self.device)
