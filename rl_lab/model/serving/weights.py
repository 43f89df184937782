"""A checkpoint's tensors into the served model: of a VLM, or of a policy, whose expert is left out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
from vllm.platforms import current_platform

from rl_lab.model.vision import MergerPooler
from rl_lab.model.weights import IGNORED_KEYS, Shapes, check_fit

POLICY = "model.dual_tower."
POLICY_VLM = POLICY + "vlm."
STATISTICS = re.compile(r"(action|qpos)_(mean|std)(_abs)?")
"""Of states and chunks, in a file of their own beside a policy's weights; vLLM reads all files of tensors."""
PROJECTIONS = ("model.state_proj.", "model.action_")
"""The policy's own layers beside its two towers."""
TIED = ("model.language_model.model.embed_tokens.weight", "model.language_model.lm_head.weight")


def served_name(name: str) -> str | None:
    """A checkpoint's name of a tensor as the model's; None for one that serving does not use.

    The tied embedding gets its input name under either of its names.
    """
    if name.startswith(POLICY_VLM):
        name = name.removeprefix(POLICY_VLM)
    elif name.startswith((POLICY, *PROJECTIONS)) or STATISTICS.fullmatch(name):
        return None
    if any(re.search(rule, name) for rule in IGNORED_KEYS):
        return None
    return TIED[0] if name == TIED[1] else name


def served_shapes(shapes: Shapes) -> Shapes:
    """A checkpoint's shapes under the model's names."""
    return {served: shape for name, shape in shapes.items() if (served := served_name(name)) is not None}


def expected_shapes(model: nn.Module) -> Shapes:
    """Shapes of all tensors that a checkpoint must bring, under the model's names."""
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


@torch.no_grad()
def load_weights(model: nn.Module, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
    """Copy tensors into the model's parameters and return the names of those that were set.

    ValueError, naming them, for tensors that are missing, unexpected or of another shape; the tensors that do
    fit are copied then, so check a live model's update before (`served_shapes` and `check_fit`).
    """
    parameters = dict(model.named_parameters())
    found: Shapes = {}
    for name, tensor in weights:
        served = served_name(name)
        if served is None:
            continue
        found[served] = tuple(tensor.shape)
        target = parameters.get(served)
        if target is not None and target.shape == tensor.shape:
            target.copy_(tensor)
    check_fit(found, expected_shapes(model), TIED)
    if current_platform.is_cpu():
        pack_linears(model)
    return set(found)


class PackedLinear(nn.Linear):
    """A linear layer that multiplies by vLLM's kernel for this CPU, on a copy of the weight in that kernel's order.

    In float32 on AMD machines that is more than twice as fast as torch's product.
    """

    cpu_linear: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """As in the base class."""
        return self.cpu_linear(x, self.weight, self.bias)


def pack_linears(model: nn.Module) -> None:
    """Bring every linear layer's weight into the order of the kernel, again after every change of the weights.

    Not the merger's layer whose weight is used in two halves: it never multiplies as a whole, and some kernels keep
    their layer's bias in float32.
    """
    halved = {id(module.predictor["0"]) for module in model.modules() if isinstance(module, MergerPooler)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module) not in halved:
            module.__class__ = PackedLinear
            dispatch_cpu_unquantized_gemm(module, remove_weight=False)
