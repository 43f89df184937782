"""torch.compile of a policy's repeated blocks in training: each vision block and decoder layer, not the whole model.

The blocks of a tower run the same code, so the kernels made for the first serve all, and the time to make them does not
grow with depth. Weights, their names and gradient checkpointing, which works around a block, stay as they are.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any

from rl_lab.errors import UserError
from rl_lab.model.mot import DecoderLayer
from rl_lab.model.vision import VisionBlock

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
