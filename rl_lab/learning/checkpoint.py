"""Checkpoint folders: a policy in Hugging Face layout with its processor and what the lab knows about it.

`lab.json` holds what is ours; everything else is what `from_pretrained` of the released code reads as well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from algos.chunks import FirstSlot, Timing
from envs.rollout import NO_MEMORY, Memory
from rl_lab.errors import UserError
from rl_lab.files import write_file
from rl_lab.learning.ranks import is_first_rank
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.sharding import is_sharded, whole
from rl_lab.model.stored_config import read_config_file
from rl_lab.model.tokenizer import check_vocabulary
from rl_lab.reading import fit, parse_json, read_as
from rl_lab.workers.weights import Snapshot, publish

Checked = TypeVar("Checked")
LAB_FILE, CONFIG_FILE = "lab.json", "config.json"
MAX_COUNT = 10**9
"""Of steps, versions and frames; a larger number is no count."""
RELEASED_MEMORY = Memory(frames=6, interval=5)
"""Of Hy-VLA's RoboTwin policy (arXiv:2606.14409, appendix A, and released code), whose config does not hold it."""


@dataclass(frozen=True)
class CheckpointInfo:
    """What the lab records beside the weights."""

    weight_version: int
    """Counts publications on the way to these weights: 1 after SFT, one more each round."""
    steps: int
    """Optimizer steps since initialisation."""
    prompt_suffix: str = ""
    """Text that sampling appends to the instruction (the advantage-conditioned baseline asks for the good mode)."""
    history: int = 1
    """Frames K that the policy sees of each camera, with the present one."""
    history_interval: int = 1
    """Commands between two of them."""
    first_slot: FirstSlot = "next"
    """What slot 0 of a chunk is: the next command, or the pose at the chunk's start (as released)."""

    def __post_init__(self) -> None:
        for name, least in (("weight_version", 0), ("steps", 0), ("history", 1), ("history_interval", 1)):
            if not least <= getattr(self, name) <= MAX_COUNT:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {least} to {MAX_COUNT}")

    @property
    def memory(self) -> Memory:
        """The frames that the policy sees."""
        return Memory(self.history, self.history_interval)

    def timing(self, horizon: int, stride: int) -> Timing:
        """How the policy, which predicts `horizon` commands, reads episodes with `stride` steps between two of them."""
        return Timing(horizon, stride, self.first_slot, self.history, self.history_interval)

    def condition(self, instruction: str) -> str:
        """The instruction as the policy was trained to read it when acting."""
        return f"{instruction} {self.prompt_suffix}" if self.prompt_suffix else instruction


def save_policy(folder: Path, policy: HyVLAPolicy, processor: PolicyProcessor, info: CheckpointInfo) -> None:
    """Write the files of a checkpoint into a folder; a stage's output becomes visible as a whole when it is stored.

    Of several ranks all must call it, and the first writes.
    """
    weights = whole(policy.state_dict()) if is_sharded(policy) else None
    if not is_first_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    policy.save_pretrained(folder, state_dict=weights)
    processor.save_pretrained(folder)
    write_info(folder, info)


def write_info(folder: Path, info: CheckpointInfo) -> None:
    """Record what the lab knows beside the weights."""
    (folder / LAB_FILE).write_text(json.dumps(asdict(info), indent=1) + "\n")


def _unrecorded(settings: dict[str, Any]) -> CheckpointInfo:
    """Of a checkpoint without lab.json; config.json says whether it is a policy and sees past frames."""
    if "n_action_steps" not in settings:
        return CheckpointInfo(0, 0)
    memory = RELEASED_MEMORY if settings.get("use_video_encoder", False) else NO_MEMORY
    return CheckpointInfo(0, 0, history=memory.frames, history_interval=memory.interval, first_slot="current")


def read_info(folder: Path) -> CheckpointInfo:
    """What the lab recorded beside the weights. A checkpoint from elsewhere has version 0 and the habits of the
    released policies: chunks that begin with the present pose and, with the memory encoder, six frames.

    UserError for files that do not hold this."""
    if (folder / LAB_FILE).exists():
        return read_as(folder / LAB_FILE, CheckpointInfo)
    return _unrecorded(read_config_file(folder) if (folder / CONFIG_FILE).exists() else {})


def snapshot_info(snapshot: Snapshot) -> CheckpointInfo:
    """The same of a published checkpoint."""
    for name in (LAB_FILE, CONFIG_FILE):
        if name in snapshot.files:
            where = f"{name} of weights {snapshot.version}"
            content = parse_json(snapshot.files[name], where)
            return fit(content, CheckpointInfo, where) if name == LAB_FILE else _unrecorded(content)
    return _unrecorded({})


def load_policy(folder: Path) -> tuple[HyVLAPolicy, PolicyProcessor, CheckpointInfo]:
    """Read a checkpoint folder; UserError when it is missing or does not fit."""
    with reading(folder):
        policy = HyVLAPolicy.from_pretrained(folder)
        processor = _policy_processor(folder, policy.config)
    return policy, processor, read_info(folder)


def check_policy(folder: Path) -> tuple[HyVLAConfig, PolicyProcessor, CheckpointInfo]:
    """All of a checkpoint folder but the model, which is not made; UserError for what `load_policy` would refuse."""
    with reading(folder):
        config = HyVLAPolicy.check_stored(folder)
        processor = _policy_processor(folder, config)
    return config, processor, read_info(folder)


def _policy_processor(folder: Path, config: HyVLAConfig) -> PolicyProcessor:
    processor = PolicyProcessor.from_pretrained(folder)
    check_vocabulary(processor.tokenizer, config.vlm_sizes.vocab)
    return processor


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """A checkpoint folder, read inside; UserError where it has no config or something in it does not fit."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"no checkpoint in {folder}: config.json is missing; give a folder with a trained model")
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, SafetensorError) as error:
        raise UserError(f"checkpoint {folder} does not fit: {error}") from error


def check_named(where: str, folder: Path, check: Callable[[Path], Checked]) -> Checked:
    """What `check` finds in a checkpoint folder; its UserError in the name of `where`, the setting that gives it."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"{where}: {folder} is no checkpoint folder: {CONFIG_FILE} is missing")
    try:
        return check(folder)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def published(folder: Path) -> Snapshot:
    """A checkpoint folder as a snapshot for workers."""
    return publish(folder, read_info(folder).weight_version)


def save_training_state(path: Path, state: dict) -> None:
    """Write a learner's state dict (tensors and plain values), whole or not at all; later ranks write nothing."""
    if not is_first_rank():
        return
    write_file(path, lambda file: torch.save(state, file))


def load_training_state(path: Path) -> dict:
    """Read a learner's state dict; only tensors and plain values are unpickled."""
    return torch.load(path, weights_only=True)
