"""Training on several ranks and in compiled blocks: FSDP2 over decoder layers and vision blocks, and torch.compile.

A rank is a process that holds a part of a learner's weights and takes a part of the rows of every batch: it is one
where torch's process group was initialised (`rl_lab.workers.ranks` does); else there is one.

Every rank keeps a part of each weight, its gradient and its optimizer state; the whole weights of a unit exist while it
computes. Units are the decoder layers of all towers and the vision blocks. The query and key norms of a layer are units
of their own: the action expert uses those of the language tower. What is in no layer (embeddings, merger,
projections) is one unit that stays whole from the first call of a step to the end of its backward pass. What is saved
is whole: `whole` gathers sharded tensors on the first rank, `share_like` gives a rank its part again.

Compiled are a policy's repeated blocks, each vision block and decoder layer, not the whole model: the blocks of a tower
run the same code, so the kernels made for the first serve all, and the time to make them does not grow with depth.
Weights, their names and gradient checkpointing, which works around a block, stay as they are.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from rl_lab.common.errors import UserError
from rl_lab.model.mot import DecoderLayer
from rl_lab.model.vision import VisionBlock

ModelT = TypeVar("ModelT", bound=nn.Module)

ENTRY_POINTS = (
    "encode",
    "flow_losses",
    "velocity",
    "sample_actions",
    "token_logprobs",
    "next_tokens",
    "compare_tokens",
    "group_losses",
)
"""Methods by which a model or a head is called, beside `forward`; inside others its weights may be shards."""


def shard(model: ModelT, mesh: DeviceMesh | None = None, *, compute_dtype: torch.dtype | None = None) -> ModelT:
    """Shard a policy or language model in place over the ranks of `mesh` (default: all) and return it.

    Its parameters become DTensors, to which optimizers are made afterwards. With a `compute_dtype` such as bfloat16
    layers compute in it, while parameters, reduced gradients and so the optimizer stay float32. Gradients are the mean
    over the ranks: those of one process on the joined batch if the ranks' losses are means over equally many rows.
    """
    # Inputs keep their dtype: noise and times must reach the policy in float32, and the layers follow the embeddings.
    precision = MixedPrecisionPolicy(compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for module in model.modules():
        if isinstance(module, DecoderLayer):
            for norm in (module.self_attn.query_layernorm, module.self_attn.key_layernorm):
                fully_shard(norm, mesh=mesh, mp_policy=precision)
        if isinstance(module, DecoderLayer | VisionBlock):
            fully_shard(module, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision, reshard_after_forward=False)
    for name in ENTRY_POINTS:
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)
    return model


def fill_unused_gradients(model: Any, fill: bool) -> None:
    """Whether a rank gives zeros for weights of a unit that its rows do not use; else no rank may use them either."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_reduce_scatter_unused_params(fill, recurse=False)


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` was called on the model, and `join` was not since."""
    return isinstance(model, FSDPModule) and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(value: Any) -> Any:
    """A state (dicts and lists of tensors and plain values) with every sharded tensor whole, on the host.

    All ranks must call it; those after the first get empty tensors in place of sharded ones.
    """
    return _map_tensors(value, _kept_by_the_first)


def whole_tensor(value: Tensor) -> Tensor:
    """A tensor, gathered where it is sharded; all ranks must call it, and all get it."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def _kept_by_the_first(value: Tensor) -> Tensor:
    if not isinstance(value, DTensor):
        return value
    found = value.full_tensor()
    return found.cpu() if dist.get_rank() == 0 else found.new_empty(0, device="cpu")


def _map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, dict):
        return {key: _map_tensors(one, function) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(one, function) for one in value)
    return function(value) if isinstance(value, Tensor) else value


def share_like(value: Tensor, tensor: Tensor) -> Tensor:
    """This rank's part of a whole tensor, sharded as `tensor` is; the value itself where that is not sharded."""
    if not isinstance(tensor, DTensor) or value.shape != tensor.shape:
        return value
    # Every rank has read the same file, so nothing is sent.
    return distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)


@torch.no_grad()
def join(model: nn.Module) -> None:
    """Put whole weights in place of the shards, on every rank; the model can be saved or changed, but not run."""
    known: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(parameter, DTensor):
                if id(parameter) not in known:  # tied weights stay tied
                    known[id(parameter)] = nn.Parameter(parameter.full_tensor(), parameter.requires_grad)
                module.register_parameter(name, known[id(parameter)])


RECOMPILE_LIMIT = 32
"""Variants of one kind of block (prefix, state, actions; with gradients or without; of fixed and of changing shape);
any further one runs as it is, and torch warns."""


def compile_blocks(model: Any) -> None:
    """Compile the blocks of a policy in place, when they first run; copies of the model are not compiled."""
    for module in model.modules():
        if isinstance(module, DecoderLayer | VisionBlock):
            module.compile(recompile_limit=RECOMPILE_LIMIT)


def check_compiler() -> None:
    """UserError if this machine lacks what torch.compile needs: a C++ compiler and Python's headers."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # here, because it takes a second to import
    from torch._inductor.exc import InvalidCxxCompiler

    wanted = "torch.compile needs a C++ compiler and Python's headers (on Debian and Ubuntu g++ and python3-dev), but"
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise UserError(f"{wanted} there is no compiler; install one, or name it in CXX") from error
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        raise UserError(f"{wanted} there is no Python.h in {headers}; install them")


def num_ranks() -> int:
    """How many processes the learner has."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def this_rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if num_ranks() > 1 else 0


def is_first_rank() -> bool:
    """Whether this process writes the files of its learner."""
    return this_rank() == 0


def gather(value: Any) -> list[Any]:
    """A plain value of every rank, on every rank; all must call this."""
    if num_ranks() == 1:
        return [value]
    values: list[Any] = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


def shard_heads(objective: Any) -> None:
    """Shard the modules whose parameters an objective trains; a frozen reference stays whole on every rank."""
    trained = {id(parameter) for parameter in objective.parameters()}
    held = [one for value in vars(objective).values() for one in (value if isinstance(value, tuple) else (value,))]
    for module in held:
        if isinstance(module, nn.Module) and trained & {id(parameter) for parameter in module.parameters()}:
            shard(module)


def share_moments(saved: dict[str, Any], parameters: Sequence[nn.Parameter]) -> dict[str, Any]:
    """An optimizer's state with this rank's parts of all that is as large as the parameters."""

    def share(value: Any, parameter: nn.Parameter) -> Any:
        return share_like(value, parameter) if isinstance(value, Tensor) else value

    state = {
        index: {key: share(value, parameters[index]) for key, value in entry.items()}
        for index, entry in saved["state"].items()
    }
    if "masters" in saved:
        state_of_masters = [share(*pair) for pair in zip(saved["masters"], parameters, strict=True)]
        return saved | {"state": state, "masters": state_of_masters}
    return saved | {"state": state}
