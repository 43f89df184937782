"""Low-rank adapters (LoRA, arXiv:2106.09685) on a model's trained groups.

Every adapted product computes W x + alpha / rank * B A x, with B = 0 at the start; W and everything else is frozen. The
base weights therefore stay in memory as they were, and serve as the frozen reference of a preference loss or of a KL
term without a second copy: the same forward pass with the adapters left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

ADAPTER = "default"
"""PEFT can hold several adapters by name; here there is one, which has its names there."""
PREFIX = "lora_"
"""Of the names of adapters."""
IN_LAYER = {
    "attention": re.compile(r"\.(layers|blocks)\.\d+\.(self_)?attn\."),
    "mlp": re.compile(r"\.(layers|blocks)\.\d+\.mlp(_v)?\."),
}
"""Names of the products that may be adapted, by target. The others (merger, projections of states and actions)
are small."""


def adapted_products(model: Any, groups: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Names of the linear layers of these targets in a model's parameter groups; ValueError when there are none."""
    trained = {id(parameter) for group in groups for parameter in model.parameter_groups()[group]}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and id(module.weight) in trained
        and any(IN_LAYER[target].search(name) for target in targets)
    ]
    if not names:
        raise ValueError(f"no linear layer of {list(targets)} in the groups {list(groups)}; choose other targets")
    return names


class LowRank(nn.Module):
    """A linear layer with an adapter: W x + alpha / rank * B A x. Names of weights and all bits are those of PEFT's."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base_layer, self.scaling, self.enabled = base, alpha / rank, True
        down, up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)
        nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
        nn.init.zeros_(up.weight)
        for adapter in (down, up):  # rounded to the layer's type, as PEFT does, and trained in float32
            adapter.to(base.weight.device, base.weight.dtype).float()
        self.lora_A, self.lora_B = nn.ModuleDict({ADAPTER: down}), nn.ModuleDict({ADAPTER: up})

    def forward(self, x: Tensor) -> Tensor:
        """[..., outputs] in the type of the layer's own output."""
        result = self.base_layer(x)
        if not self.enabled:
            return result
        down: Any = self.lora_A[ADAPTER]
        return (result + self.lora_B[ADAPTER](down(x.to(down.weight.dtype))) * self.scaling).to(result.dtype)

    def delta(self) -> Tensor:
        """alpha / rank * B A, [outputs, inputs], float32."""
        down, up = cast(nn.Linear, self.lora_A[ADAPTER]), cast(nn.Linear, self.lora_B[ADAPTER])
        return up.weight @ down.weight * self.scaling


def adapters_of(model: nn.Module) -> dict[str, LowRank]:
    """The adapted layers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside the block the model runs on its base weights."""
    layers = adapters_of(model).values()
    for layer in layers:
        layer.enabled = False
    try:
        yield
    finally:
        for layer in layers:
            layer.enabled = True


class BaseWeights:
    """A view of an adapted model without its adapters: every method runs on the base weights and makes no graph."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._model, name)
        if not callable(value):
            return value

        def on_base_weights(*args: Any, **kwargs: Any) -> Any:
            with torch.no_grad(), adapters_off(self._model):
                return value(*args, **kwargs)

        return on_base_weights

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self.__getattr__("forward")(*args, **kwargs)


class Adapted:
    """A model of which only adapters are trained. To learner and objectives it looks like the model itself.

    `groups` are names of `model.parameter_groups()`, `targets` of `IN_LAYER`. Adapters are drawn from torch's global
    random stream; on bfloat16 weights they are float32, so they need no master copy.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[str], *, rank: int, alpha: float, targets: Sequence[str]
    ) -> None:
        names = adapted_products(model, groups, targets)
        self.model: Any = model.requires_grad_(False)
        for name in names:
            layer = model.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            model.set_submodule(name, LowRank(layer, rank, alpha))
        self.reference = BaseWeights(model)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's forward pass."""
        return self.model(*args, **kwargs)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The adapters alone."""
        return ((name, value) for name, value in self.model.named_parameters() if PREFIX in name)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """The model's groups, each reduced to its adapters."""
        adapters = {id(parameter) for _, parameter in self.named_parameters()}
        groups = self.model.parameter_groups().items()
        return {group: [item for item in parameters if id(item) in adapters] for group, parameters in groups}

    def state_dict(self) -> dict[str, Tensor]:
        """The adapters; the base weights are those of the checkpoint that was adapted."""
        return {name: parameter.detach() for name, parameter in self.named_parameters()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict()` of the same adapters on the same base weights."""
        parameters = dict(self.named_parameters())
        if parameters.keys() != state.keys():
            raise ValueError(f"{len(state)} saved adapters do not fit {len(parameters)}; groups and targets differ")
        for name, value in state.items():
            parameters[name].copy_(value)

    def merged_state_dict(self) -> dict[str, Tensor]:
        """Weights of the model that `merge` would give, under its names; this object stays in use."""
        layers = adapters_of(self.model)
        state = {}
        for name, value in self.model.state_dict().items():
            if PREFIX in name:
                continue
            path, inside, rest = name.rpartition(".base_layer.")
            if inside and rest == "weight":
                value = value + layers[path].delta().to(value.dtype)
            state[f"{path}.{rest}" if inside else name] = value
        return state

    @torch.no_grad()
    def merge(self) -> Any:
        """The model itself with W + alpha / rank * B A in place of W, in W's dtype. Ends the use of this object."""
        for name, layer in adapters_of(self.model).items():
            layer.base_layer.weight += layer.delta()
            self.model.set_submodule(name, layer.base_layer)
        return self.model
