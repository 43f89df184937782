"""Memory that a training step of a policy needs, counted without allocating it.

The policy and its batch are built as fake tensors, which have shapes, types and a graph but no data; so the counts are
those of the code that trains, at any size. Not counted: the allocator's fragmentation and a library's workspaces, for
which a tenth should be left free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from algos.batch import ObservationBatch
from algos.policy import GROUPS
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.layout import prefix_layout, token_ids
from rl_lab.model.lora import adapted_products
from rl_lab.model.policy import HyVLAPolicy


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one step."""

    weights: int
    """Of the policy, adapters included, and of the reference where it is a copy."""
    masters: int
    """float32 copies of trained weights that are not float32."""
    moments: int
    """AdamW's two, float32."""
    gradients: int
    """As the backward pass leaves them."""
    step_gradients: int
    """As AdamW reads them, float32; the others are gone by then."""
    activations: int
    """Kept for the backward pass, and while it runs those of the one layer that is recomputed."""

    @property
    def peak(self) -> int:
        """The larger of the end of the forward and backward pass, and the optimizer's step."""
        constant = self.weights + self.masters + self.moments
        return constant + max(self.gradients + self.activations, self.step_gradients)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, each storage once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def saved_activations(policy: HyVLAPolicy, batch: int, draws: int) -> int:
    """Bytes that the forward pass of a flow loss keeps; weights are not counted."""
    config, kept = policy.config, {}
    own = {parameter.untyped_storage()._cdata for parameter in policy.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        # The storage itself is held, so that no other takes its address.
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    size, rows = config.image_size, torch.arange(batch).repeat_interleave(draws)
    observation = ObservationBatch(
        images=torch.zeros(batch, config.num_cameras, 3, size, size, dtype=torch.uint8),
        state=torch.zeros(batch, policy.config.layout.encoded_state_dim),
        tokens=torch.zeros(batch, config.tokenizer_max_length, dtype=torch.int64),
        token_mask=torch.ones(batch, config.tokenizer_max_length, dtype=torch.bool),
    )
    actions = torch.zeros(batch * draws, policy.chunk_size, policy.used_dim)
    noise, time = torch.zeros(batch * draws, policy.chunk_size, policy.action_dim), torch.ones(batch * draws)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = policy.flow_losses(policy.encode(observation), actions, noise, time, rows).mean()
    del loss
    return sum(storage.nbytes() for key, storage in kept.items() if key not in own)


def num_adapters(policy: HyVLAPolicy, groups: Sequence[str], rank: int, targets: Sequence[str]) -> int:
    """Numbers in the adapters of `rl_lab.model.lora`: rank x (inputs + outputs) for every adapted product."""
    shapes = [policy.get_submodule(name).weight.shape for name in adapted_products(policy, groups, targets)]
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)  # type: ignore[misc]


def memory_plan(
    config: HyVLAConfig,
    *,
    batch: int,
    draws: int = 1,
    groups: Sequence[str] = GROUPS,
    lora: dict[str, Any] | None = None,
    reference_copy: bool = False,
    recompute: bool = True,
    dtype: torch.dtype = torch.bfloat16,
) -> MemoryPlan:
    """Plan of a step with `batch` observations and `draws` chunks of each; `lora` are the options of `Adapted`.

    Instructions are as long as the config lets them be. `draws` counts every chunk that passes the expert: two for a
    preference tuple. With `reference_copy` the weights are there a second time, as a preference loss needs without
    adapters. Activations under adapters are taken to be those of training the groups' weights.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        policy = HyVLAPolicy._from_config(config, dtype=dtype).train()
        base = size_of(policy.parameters())
        for group, parameters in policy.parameter_groups().items():
            for parameter in parameters:
                parameter.requires_grad_(group in groups)
        activations = _activations(policy, batch, draws, recompute)
    for cached in (prefix_layout, token_ids):  # they now hold fake tensors
        cached.cache_clear()
    weights = base + (base if reference_copy else 0)
    if lora is not None:
        count = num_adapters(policy, groups, lora["rank"], lora["targets"])
        return MemoryPlan(weights + 4 * count, 0, 8 * count, 4 * count, 4 * count, activations)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    count = sum(parameter.numel() for parameter in trained)
    masters = 0 if dtype == torch.float32 else 4 * count
    return MemoryPlan(weights, masters, 8 * count, size_of(trained), 4 * count, activations)


def _activations(policy: HyVLAPolicy, batch: int, draws: int, recompute: bool) -> int:
    plain = saved_activations(policy, batch, draws)
    if not recompute:
        return plain
    policy.gradient_checkpointing_enable()
    kept = saved_activations(policy, batch, draws)
    return kept + (plain - kept) // policy.config.vlm_sizes.num_layers
