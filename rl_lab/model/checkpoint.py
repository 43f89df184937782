"""Checkpoint folders of a VLM or of a policy around one, in Hugging Face layout: with processor, versions and language.

`lab.json` holds what is ours; everything else is what `from_pretrained` of the released code reads as well. A policy
and its vision-language model are the same modules under another class and config, and each is made from the other.

Weights travel as versioned snapshots, published once, pulled and checked by every worker. A snapshot is the bytes of a
checkpoint folder with a SHA-256, so it travels through Ray's object store to machines that share no disk, and a worker
never acts with weights that are not exactly those the learner published.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from algos.chunks import FirstSlot, Timing
from algos.policy import Policy, PolicySizes
from envs.by_name import OwnCodeError
from envs.rollout import NO_MEMORY, Memory
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file
from rl_lab.common.reading import fit, parse_json, read_as
from rl_lab.common.seeding import integer
from rl_lab.config.section import ModelConfig
from rl_lab.model.chat import HunYuanVLMoTProcessor, ImageProcessor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.policies.own import is_own_policy, load_own, save_own
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import calibrate_vision, preset_config, smooth_numbers
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.sharding import is_first_rank, is_sharded, whole
from rl_lab.model.tokenizer import check_vocabulary, load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.model.vlm_config import MERGE, HyVLMConfig, TowerSizes, read_config_file

LAB_FILE, CONFIG_FILE = "lab.json", "config.json"

KINDS = (HyVLMConfig.model_type, HyVLAConfig.model_type)
"""What config.json may call a model that reads and writes text here."""

MAX_COUNT = 10**9
"""Of steps, versions and frames; a larger number is no count."""

RELEASED_MEMORY = Memory(frames=6, interval=5)
"""Of Hy-VLA's RoboTwin policy (arXiv:2606.14409, appendix A, and released code), whose config does not hold it."""

Checked = TypeVar("Checked")


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

    def after(self, steps: int, versions: int = 1) -> Self:
        """The same so many optimizer steps and publications later."""
        return replace(self, weight_version=self.weight_version + versions, steps=self.steps + steps)

    def condition(self, instruction: str) -> str:
        """The instruction as the policy was trained to read it when acting."""
        return f"{instruction} {self.prompt_suffix}" if self.prompt_suffix else instruction


@dataclass
class LanguageModel:
    """A model that reads and writes text, with what belongs to its checkpoint."""

    model: HunYuanVLMoTForConditionalGeneration | HyVLAPolicy
    processor: HunYuanVLMoTProcessor
    info: CheckpointInfo
    actions: PolicyProcessor | None = None
    """Of a policy: what its checkpoint holds for actions."""

    def save(self, folder: Path, info: CheckpointInfo, weights: dict[str, Tensor] | None = None) -> None:
        """Write the checkpoint with what is now recorded beside it; `weights` in place of the model's own.

        Of several ranks all must call it, and the first writes.
        """
        if is_sharded(self.model):
            weights = whole(dict(self.model.state_dict()) if weights is None else weights)
        if not is_first_rank():
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(folder, **({} if weights is None else {"state_dict": weights}))
        (self.actions or self.processor).save_pretrained(folder)
        write_info(folder, info)

    def calibrate(self, images: Sequence[np.ndarray]) -> None:
        """Fit random weights to pictures and numbers; see `rl_lab.model.presets`."""
        dtype = next(self.model.parameters()).dtype
        self.model.float()  # statistics in bfloat16 would be off by as much as they correct
        backbone = self.model.model.vlm if isinstance(self.model, HyVLAPolicy) else self.model.model
        smooth_numbers(backbone.language_model.model.embed_tokens, self.processor.tokenizer)
        cut = [self.processor.image_processor(image) for image in images]
        sizes = Counter(grid for _, grid in cut)
        if sizes:
            (_, height, width), _ = sizes.most_common(1)[0]
            pixels = np.concatenate([patches for patches, grid in cut if grid[1:] == (height, width)])
            calibrate_vision(backbone, torch.from_numpy(pixels), (height, width))
        self.model.to(dtype)  # type: ignore[arg-type]


def load_language_model(folder: Path) -> LanguageModel:
    """Read the checkpoint folder of a VLM or of a policy; UserError when there is none or it does not fit."""
    if is_policy(folder):
        policy, actions, info = load_policy(folder)
        return LanguageModel(policy, vlm_processor(policy.config, actions.tokenizer), info, actions)
    with reading(folder):
        model = HunYuanVLMoTForConditionalGeneration.from_pretrained(folder)
        processor = HunYuanVLMoTProcessor.from_pretrained(folder)
        check_vocabulary(processor.tokenizer, model.config.text.vocab_size)
    return LanguageModel(model, processor, read_info(folder))


def initial_language_model(model: ModelConfig, seed: int) -> LanguageModel:
    """What a cold start begins with: a preset with random weights of the seed, or the checkpoint of the config."""
    if model.path is not None:
        found = load_language_model(Path(model.path))
    else:
        torch.manual_seed(integer(seed, "initialisation"))
        made = HunYuanVLMoTForConditionalGeneration(vlm_config(preset_config(model.preset)))
        found = LanguageModel(made, model_processor(model), CheckpointInfo(0, 0))
    if model.named_dtype is not None:
        found.model.to(getattr(torch, model.named_dtype))
    return found


def check_language_model(folder: Path) -> HunYuanVLMoTProcessor:
    """The processor of a checkpoint folder; UserError for what `load_language_model` would refuse. No model is made."""
    if is_policy(folder):
        _, actions, _ = check_policy(folder)
        return vlm_processor(cast(HyVLAConfig, actions.config), actions.tokenizer)
    with reading(folder):
        sizes = HunYuanVLMoTForConditionalGeneration.check_stored(folder)
        processor = HunYuanVLMoTProcessor.from_pretrained(folder)
        check_vocabulary(processor.tokenizer, sizes.text.vocab_size)
    read_info(folder)
    return processor


def is_policy(folder: Path) -> bool:
    """Whether a checkpoint folder holds a policy and not a VLM alone. UserError where it says nothing of the kind."""
    with reading(folder):
        return read_config_file(folder).get("model_type") == HyVLAConfig.model_type


def language_sizes(folder: Path) -> TowerSizes:
    """Sizes of the language tower of a checkpoint folder. UserError for a folder that has none."""
    with reading(folder):
        kind = HyVLAConfig if is_policy(folder) else HyVLMConfig
        return kind.from_pretrained(folder).vlm_sizes


def load_chat_processor(folder: Path) -> HunYuanVLMoTProcessor:
    """The processor of a checkpoint folder without its model. UserError for a folder that has none."""
    with reading(folder):
        if is_policy(folder):
            return vlm_processor(HyVLAConfig.from_pretrained(folder), load_tokenizer(folder))
        return HunYuanVLMoTProcessor.from_pretrained(folder)


def model_processor(model: ModelConfig) -> HunYuanVLMoTProcessor:
    """The processor of the model that a config names, a checkpoint or a preset, without the model."""
    if model.path is not None:
        return load_chat_processor(Path(model.path))
    return vlm_processor(preset_config(model.preset), load_tokenizer())


def vlm_processor(config: HyVLAConfig, tokenizer: PreTrainedTokenizerFast) -> HunYuanVLMoTProcessor:
    """Processor for the vision-language side of a policy: pictures of one token up to the policy's own image size."""
    cell = MERGE * config.vision_patch_size
    return HunYuanVLMoTProcessor(
        ImageProcessor(config.vision_patch_size, MERGE, cell**2, config.image_size**2), tokenizer
    )


def vlm_config(config: HyVLAConfig) -> HyVLMConfig:
    """Config of a policy's vision-language side; its vision section is true even where the policy's copy is stale."""
    stated = {
        key: value for key, value in (config.vlm_config_dict or {}).items() if key not in ("architectures", "dtype")
    }
    sizes = config.vision_sizes
    vision = (stated.pop("vision_config", None) or {}) | {
        "hidden_size": sizes.width,
        "num_hidden_layers": sizes.depth,
        "num_attention_heads": sizes.num_heads,
        "intermediate_size": sizes.mlp,
        "patch_size": sizes.patch_size,
        "position_grid": sizes.position_grid,
        "max_image_size": sizes.position_grid * sizes.patch_size,
    }
    return HyVLMConfig(**stated | {"vision_config": vision, "special_token_ids": config.special_token_ids})


def load_policy(folder: Path, code: str | None = None) -> tuple[Any, PolicyProcessor, CheckpointInfo]:
    """Read a checkpoint folder with an `algos.policy.Policy`; UserError when it is missing or does not fit.

    `code` is the class of a policy of one's own, which alone is run for it; OwnCodeError for what that raises.
    """
    with reading(folder):
        if is_own_policy(folder):
            own = load_own(folder, code)
            return own, _own_processor(folder, own), read_info(folder)
        policy = HyVLAPolicy.from_pretrained(folder)
        processor = _policy_processor(folder, policy.config)
    return policy, processor, read_info(folder)


def _own_processor(folder: Path, policy: Policy) -> PolicyProcessor:
    token_ids = getattr(policy, "token_ids", None)
    return PolicyProcessor(policy.config, load_tokenizer(folder), ActionStats.find(folder), token_ids)


def check_policy(folder: Path, code: str | None = None) -> tuple[PolicySizes, PolicyProcessor, CheckpointInfo]:
    """All of a checkpoint folder but the model, which is only made where it is one of one's own; UserError for what
    `load_policy` would refuse."""
    if is_own_policy(folder):
        policy, processor, info = load_policy(folder, code)
        return policy.config, processor, info
    with reading(folder):
        config = HyVLAPolicy.check_stored(folder)
        processor = _policy_processor(folder, config)
    return config, processor, read_info(folder)


def _policy_processor(folder: Path, config: HyVLAConfig) -> PolicyProcessor:
    processor = PolicyProcessor.from_pretrained(folder)
    check_vocabulary(processor.tokenizer, config.vlm_sizes.vocab)
    return processor


def save_policy(folder: Path, policy: Any, processor: PolicyProcessor, info: CheckpointInfo) -> None:
    """Write the files of a checkpoint into a folder; a stage's output becomes visible as a whole when it is stored.

    Of several ranks all must call it, and the first writes.
    """
    weights = whole(policy.state_dict()) if is_sharded(policy) else None
    if not is_first_rank():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, HyVLAPolicy):
        policy.save_pretrained(folder, state_dict=weights)
    else:
        save_own(folder, policy)
    processor.save_pretrained(folder)
    write_info(folder, info)


def read_info(folder: Path) -> CheckpointInfo:
    """What the lab recorded beside the weights. A checkpoint from elsewhere has version 0 and the habits of the
    released policies: chunks that begin with the present pose and, with the memory encoder, six frames.

    UserError for files that do not hold this."""
    if (folder / LAB_FILE).exists():
        return read_as(folder / LAB_FILE, CheckpointInfo)
    return _unrecorded(read_config_file(folder) if (folder / CONFIG_FILE).exists() else {})


def write_info(folder: Path, info: CheckpointInfo) -> None:
    """Record what the lab knows beside the weights."""
    (folder / LAB_FILE).write_text(json.dumps(asdict(info), indent=1) + "\n")


def _unrecorded(settings: dict[str, Any]) -> CheckpointInfo:
    """Of a checkpoint without lab.json; config.json says whether it is a policy and sees past frames."""
    if "n_action_steps" not in settings:
        return CheckpointInfo(0, 0)
    memory = RELEASED_MEMORY if settings.get("use_video_encoder", False) else NO_MEMORY
    return CheckpointInfo(0, 0, history=memory.frames, history_interval=memory.interval, first_slot="current")


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """A checkpoint folder, read inside; UserError where it has no config or something in it does not fit."""
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(f"no checkpoint in {folder}: config.json is missing; give a folder with a trained model")
    try:
        yield
    except (UserError, OwnCodeError):
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


def checkpoint_dtype(folder: Path) -> str:
    """In what a checkpoint folder says that its weights are, float32 where it is silent."""
    config = read_config_file(folder)
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")


@dataclass(frozen=True)
class Snapshot:
    """A checkpoint folder in memory."""

    version: int
    digest: str
    files: dict[str, bytes]
    code: str | None = None
    """The class of a policy of one's own: said by the run, not by the folder."""


def published(folder: Path, code: str | None = None) -> Snapshot:
    """A checkpoint folder as a snapshot for workers; `code` as in `load_policy`."""
    return publish(folder, read_info(folder).weight_version, code)


def publish(folder: Path, version: int, code: str | None = None) -> Snapshot:
    """Read a checkpoint folder (its files, no subfolders)."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
    return Snapshot(version, digest(files), files, code)


def pull(snapshot: Snapshot, folder: Path) -> Path:
    """Write the snapshot into `folder`; RuntimeError if the bytes are not those that were published."""
    verify(snapshot)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in snapshot.files.items():
        (folder / name).write_bytes(content)
    return folder


def verify(snapshot: Snapshot) -> None:
    """RuntimeError if the bytes are not those that were published."""
    if digest(snapshot.files) != snapshot.digest:
        raise RuntimeError(f"weights of version {snapshot.version} arrived damaged: the checksum does not match")


def digest(files: dict[str, bytes]) -> str:
    """SHA-256 over names, sizes and bytes of all files."""
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{name}\0{len(files[name])}\0".encode())
        whole.update(files[name])
    return whole.hexdigest()


def snapshot_info(snapshot: Snapshot) -> CheckpointInfo:
    """The same of a published checkpoint."""
    for name in (LAB_FILE, CONFIG_FILE):
        if name in snapshot.files:
            where = f"{name} of weights {snapshot.version}"
            content = parse_json(snapshot.files[name], where)
            return fit(content, CheckpointInfo, where) if name == LAB_FILE else _unrecorded(content)
    return _unrecorded({})


def save_training_state(path: Path, state: dict) -> None:
    """Write a learner's state dict (tensors and plain values), whole or not at all; later ranks write nothing."""
    if not is_first_rank():
        return
    write_file(path, lambda file: torch.save(state, file))


def load_training_state(path: Path) -> dict:
    """Read a learner's state dict; only tensors and plain values are unpickled."""
    return torch.load(path, weights_only=True)
