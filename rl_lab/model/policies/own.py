"""Policies of a user's own, `algos.policy.Policy`: made from a class by name, saved, and read again.

A checkpoint folder holds the weights, and in config.json what the policy was made for; never the code, nor where that
lies: which code is run is said by who loads it, `model.code` in a run.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

from algos.policy import CHUNK, GROUPS, Policy, PolicySpec
from envs.by_name import OwnCodeError, blamed, brief, calling, load, needs, split
from envs.types import BIMANUAL, Layout
from rl_lab.common.errors import UserError
from rl_lab.common.reading import read_as
from rl_lab.common.seeding import integer
from rl_lab.config.section import ModelConfig
from rl_lab.model.loading import check_finite, stored_tensors
from rl_lab.model.tokenizer import load_tokenizer

MODEL_TYPE = "own_flow_policy"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


@dataclass(frozen=True)
class OwnConfig:
    """config.json of a policy of one's own."""

    model_type: str
    class_name: str
    """For people: of the class that was saved."""
    spec: PolicySpec


def own_spec(
    model: ModelConfig, layout: Layout = BIMANUAL, image_size: int = PolicySpec.image_size, truth_size: int = 0
) -> PolicySpec:
    """What the policy of `model.code` is made for; of a checkpoint (`model.path`) what it was. ValueError if that is
    something else."""
    memory = model.memory
    if model.path is None:
        frames = 1 if memory is None else memory.frames
        vocabulary = len(load_tokenizer())
        chunk, settings = model.chunk_size or CHUNK, dict(model.settings)
        return PolicySpec(layout, chunk, image_size, frames, vocabulary, settings, truth_size)
    found = read_own(Path(model.path)).spec
    if model.chunk_size is not None and model.chunk_size != found.chunk_size:
        raise ValueError(f"chunk_size is {model.chunk_size}, but {model.path} predicts {found.chunk_size} commands")
    if memory is not None and memory.frames != found.frames:
        raise ValueError(f"memory.frames is {memory.frames}, but {model.path} sees {found.frames}")
    if changed := sorted(key for key, value in model.settings.items() if found.settings.get(key) != value):
        raise ValueError(f"settings.{changed[0]} is not what {model.path} was made with; leave it out")
    return found


def make_own(code: str, spec: PolicySpec, seed: int | None = None) -> Policy:
    """What a class makes of a spec, with random weights of the seed. OwnCodeError, with file and line, for whatever it
    raises, and where that is no `Policy`."""
    if seed is not None:
        torch.manual_seed(integer(seed, "initialisation"))
    with blamed():
        made = load(code)
        if not (isinstance(made, type) and issubclass(made, nn.Module)):
            raise OwnCodeError(f"{code} is no class of torch.nn.Module; inherit from algos.policy.FlowModel")
        policy: Any = calling(code, "an algos.policy.PolicySpec", **spec.settings)(spec, **spec.settings)
        lacking = [name for name in dir(Policy) if name[0] != "_" and not hasattr(policy, name)]
        if lacking:
            raise OwnCodeError(f"{code} makes no policy: it has no {lacking[0]}; inherit from algos.policy.FlowModel")
        if policy.config is not spec:
            raise OwnCodeError(
                f"{code}: config is not the PolicySpec that it was made with; call super().__init__(spec)"
            )
        _check_groups(code, policy)
        needs(code, policy, "policy", encode="observation", flow_losses="prefix, actions, noise, time, rows")
    return policy


def _check_groups(code: str, policy: Any) -> None:
    """OwnCodeError unless every trainable parameter is in one group, and the groups have known names."""
    groups = policy.parameter_groups()
    if not isinstance(groups, dict):
        raise OwnCodeError(f"{code}: parameter_groups gives {brief(groups)}; expected a dict of lists of parameters")
    if unknown := sorted(groups.keys() - set(GROUPS)):
        raise OwnCodeError(f"{code}: parameter_groups has {unknown[0]!r}; call them {', '.join(GROUPS)}")
    listed = [id(parameter) for parameters in groups.values() for parameter in parameters]
    if not listed:
        raise OwnCodeError(f"{code} has no parameters to train; make its layers in __init__")
    if len(set(listed)) < len(listed):
        raise OwnCodeError(f"{code}: parameter_groups has a parameter twice; each is in one group")
    trained = ((name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad)
    if left := [name for name, parameter in trained if id(parameter) not in listed]:
        raise OwnCodeError(f"{code}: parameter_groups leaves out {left[0]}; put it into a group, or freeze it")


def save_own(folder: Path, policy: Policy) -> None:
    """Write config.json and weights."""
    config = OwnConfig(MODEL_TYPE, type(policy).__name__, policy.config)  # type: ignore[arg-type]
    (folder / CONFIG_FILE).write_text(json.dumps(asdict(config), indent=1) + "\n")
    save_model(policy, str(folder / WEIGHTS_FILE))  # type: ignore[arg-type]


def is_own_policy(folder: Path) -> bool:
    """Whether a checkpoint folder holds one."""
    path = folder / CONFIG_FILE
    return path.is_file() and f'"{MODEL_TYPE}"' in path.read_text(errors="replace")


def read_own(folder: Path) -> OwnConfig:
    """Its config.json. UserError for a file that is none of a policy of one's own."""
    if not is_own_policy(folder):
        raise UserError(f"{folder} holds no policy of one's own, but model.code names one; leave one of both out")
    return read_as(folder / CONFIG_FILE, OwnConfig)


def load_own(folder: Path, code: str | None) -> Policy:
    """The policy of a folder, made by the class that `code` names.

    UserError without code; ValueError for weights that are not its; OwnCodeError for what its code raises.
    """
    config = read_own(folder)
    if code is None:
        raise UserError(
            f"{folder} holds a policy of one's own, {config.class_name}; code is run only where you name it: "
            f"model.code=FILE.py:{config.class_name} (of rl_lab.serve --code FILE.py:{config.class_name})"
        )
    policy = make_own(code, config.spec)
    check_finite(stored_tensors(folder), folder)
    try:
        load_model(policy, str(folder / WEIGHTS_FILE))  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ValueError(f"weights are not those of {split(code)[1]}: {' '.join(str(error).split())[:200]}") from error
    return policy
