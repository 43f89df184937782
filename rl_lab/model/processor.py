"""Observations to tensors, normalised chunks to commands.

Letters: N samples, V cameras, K frames, H commands of a chunk, C action tokens of the model; A numbers of a command, S
of a state, D and E of their encoded forms (`envs.types.Layout`); pictures are H x W, S x S where the model reads them.

Actions are absolute commands of the config's layout. Of two arms they are `ee` commands [16]; the model works on poses
relative to the measured pose at the start of the chunk, encoded as xyz, rot6d (rows), gripper per arm [20], and
normalised per chunk slot. If the statistics cover
absolute chunks as well, the model predicts both, C = 2 H, and the commands are halfway between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from algos.batch import ObservationBatch
from algos.policy import PolicySizes
from envs.commands import CommandError, check_commands, encoded_name
from envs.se3 import blend, decode_absolute
from envs.types import Layout, Observation, camera_images, measured_state
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.loading import checkpoint_folder
from rl_lab.model.norm_stats import RELEASED_STATS_FILE, STATS_FILE, ActionStats
from rl_lab.model.tokenizer import ASSISTANT, load_tokenizer, save_tokenizer
from rl_lab.model.vlm_config import refuse_unknown

WIDTH_LIMIT = 1000.0
"""Standard deviations. Of N numbers none lies further than sqrt(N - 1) of them from their mean (Samuelson's
inequality), so what was learned from a million chunks stays within it; the lab's own policies stay within 4."""
STATE_KEY, TASK_KEY = "observation.state", "task"
"""Released names in a batch, beside the cameras of the config."""


def resize_with_padding(images: Tensor, width: int, height: int) -> Tensor:
    """Fit images [M, 3, H, W] in [0, 1] into a box of width x height pixels.

    Aspect kept, bilinear without antialiasing, centred on black; an odd pixel of padding goes to the right and bottom.
    """
    ratio = max(images.shape[-1] / width, images.shape[-2] / height)
    new_height, new_width = int(images.shape[-2] / ratio), int(images.shape[-1] / ratio)
    resized = F.interpolate(images, (new_height, new_width), mode="bilinear", align_corners=False)
    top, left = (height - new_height) // 2, (width - new_width) // 2
    return F.pad(resized, (left, width - new_width - left, top, height - new_height - top))


def format_instruction(instruction: str) -> str:
    """The language prompt of an instruction: underscores and line breaks become spaces, the assistant tag closes it."""
    text = instruction.strip().replace("_", " ").replace("\n", " ")
    return text if ASSISTANT in text else text + ASSISTANT


class PolicyProcessor:
    """Everything between environment and model; built from the model's config, a tokenizer and statistics."""

    def __init__(
        self,
        config: PolicySizes,
        tokenizer: PreTrainedTokenizerFast,
        stats: ActionStats | None = None,
        token_ids: Callable[[str], list[int]] | None = None,
    ) -> None:
        """`token_ids` gives those of an instruction for a policy with a tokenizer of its own."""
        if stats is not None and len(stats.action_mean) == config.n_action_steps:
            stats = stats.relative_only()  # a released file may hold statistics that its model has no tokens for
        if stats is not None and not (stats.num_tokens == config.n_action_steps and stats.fit(config.layout)):
            raise ValueError(
                f"action statistics have shape {stats.token_mean.shape} but the model predicts "
                f"({config.n_action_steps}, {config.layout.encoded_action_dim}) from states of "
                f"{config.layout.encoded_state_dim}; fit them on chunks of that length and such states"
            )
        self.config = config
        self.tokenizer = tokenizer
        self._stats = stats
        self._own_ids = token_ids

    @property
    def stats(self) -> ActionStats:
        """The statistics; ValueError for a checkpoint that came without them."""
        if self._stats is None:
            raise ValueError(f"no normalisation statistics: {STATS_FILE} is missing; fit ActionStats on the data")
        return self._stats

    @property
    def has_stats(self) -> bool:
        """Whether there are statistics: a checkpoint may come without them."""
        return self._stats is not None

    @property
    def num_commands(self) -> int:
        """Commands H of a chunk."""
        return len(self.stats.action_mean)

    def tokenize(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids int64 [N, T] and their mask bool [N, T], right-padded to the longest of these instructions.

        One longer than the config's `tokenizer_max_length` loses its end. The released code pads to that length; the
        policy's outputs are the same up to rounding.
        """
        unique = {text: row for row, text in enumerate(dict.fromkeys(instructions))}
        ids = [self._token_ids(text)[: self.config.tokenizer_max_length] for text in unique]
        length = max(map(len, ids))
        padding = self.tokenizer.pad_token_id if self._own_ids is None else 0
        padded = [row + [padding] * (length - len(row)) for row in ids]
        rows = torch.tensor([unique[text] for text in instructions])
        lengths = torch.tensor([len(row) for row in ids])[rows]
        return torch.tensor(padded)[rows], torch.arange(length) < lengths[:, None]

    def _token_ids(self, instruction: str) -> list[int]:
        if self._own_ids is not None:
            return self._own_ids(instruction)
        return self.tokenizer.encode(format_instruction(instruction), add_special_tokens=False)

    def images(self, images: np.ndarray | Tensor) -> Tensor:
        """Views uint8 [N, V, H, W, 3] or [N, V, K, H, W, 3] to [N, V, 3, S, S] or [N, V, K, 3, S, S].

        Unchanged at the model's size, else resized and in [0, 1].
        """
        return self.fit_images(torch.as_tensor(images).movedim(-1, -3))

    def fit_images(self, views: Tensor) -> Tensor:
        """Views [..., 3, H, W], uint8 or in [0, 1], to [..., 3, S, S]; only what is resized becomes float."""
        size = self.config.image_size
        if views.shape[-2:] == (size, size):
            return views.contiguous()
        fractions = views.float() / 255 if views.dtype == torch.uint8 else views
        return resize_with_padding(fractions.flatten(0, -4), size, size).unflatten(0, views.shape[:-3])

    def observe(self, batch: Mapping[str, Any]) -> ObservationBatch:
        """Model input from a batch with the released names.

        `observation.images.<camera>`: float in [0, 1] or uint8, [B, 3, H, W] or [B, K, 3, H, W] with the current frame
        last, any size; cameras that the config allows to be missing may be, and then count as the *last* ones, as in
        the released code. `observation.state`: normalised, [B, E] or zero-padded. `task`: B instructions.
        ValueError, naming the keys, for a batch that lacks or does not know one.
        """
        cameras = [name for name in self.config.image_features if name in batch]
        unknown = batch.keys() - self.config.image_features.keys() - {STATE_KEY, TASK_KEY}
        missing = {STATE_KEY, TASK_KEY} - batch.keys()
        if unknown or missing or len(self.config.image_features) - len(cameras) > self.config.empty_cameras:
            raise ValueError(
                f"batch has the keys {sorted(batch)}; expected {STATE_KEY}, {TASK_KEY} and the cameras "
                f"{', '.join(self.config.image_features)}, of which {self.config.empty_cameras} may be missing"
            )
        views = torch.stack([self.fit_images(batch[name]) for name in cameras], dim=1)
        state = batch[STATE_KEY][..., : self.config.layout.encoded_state_dim]
        return ObservationBatch(views, state, *self.tokenize(batch[TASK_KEY]))

    def normalize_state(self, poses: np.ndarray) -> Tensor:
        """Measured states [N, S] to the state input, float32 [N, E]."""
        state = (self.config.layout.encode(poses) - self.stats.qpos_mean) / self.stats.qpos_std
        return torch.from_numpy(state.astype(np.float32))

    @property
    def reads_truth(self) -> bool:
        """Whether the policy is one of a study, which reads the simulator's truth."""
        return self.config.truth_size > 0

    def batch(
        self,
        images: np.ndarray,
        poses: np.ndarray,
        instructions: Sequence[str],
        seen: np.ndarray | None = None,
        truth: np.ndarray | None = None,
    ) -> ObservationBatch:
        """Model input from arrays: images uint8 [N, V, H, W, 3] or [N, V, K, H, W, 3], measured states [N, S], N
        instructions, and of a policy that reads it the simulator's truth [N, n]. With the frames that each row has
        `seen` [N, K] images are those of all rows, [F, V, H, W, 3]."""
        tokens, mask = self.tokenize(instructions)
        numbers = None if seen is None else torch.from_numpy(seen)
        known = None if truth is None else torch.from_numpy(truth.astype(np.float32))
        return ObservationBatch(self.images(images), self.normalize_state(poses), tokens, mask, numbers, known)

    def __call__(self, observations: Sequence[Observation]) -> ObservationBatch:
        """Model input from environment observations."""
        return self.batch(
            np.stack([camera_images(observation) for observation in observations]),
            np.stack([measured_state(observation) for observation in observations]),
            [str(observation["instruction"]) for observation in observations],
        )

    def encode(self, actions: np.ndarray, poses: np.ndarray) -> Tensor:
        """Commanded chunks [N, H, A] from measured start states [N, S] to normalised chunks, float32 [N, C, D]."""
        layout = self.config.layout
        tokens = layout.encode_chunks(actions, poses)
        if self.stats.has_absolute:
            tokens = np.concatenate([tokens, layout.encode(actions)], axis=-2)
        chunks = (tokens - self.stats.token_mean) / self.stats.token_std
        return torch.from_numpy(chunks.astype(np.float32))

    def decode(self, chunks: np.ndarray, poses: np.ndarray) -> np.ndarray:
        """Normalised chunks [N, C, D] to absolute commands, float64 [N, H, A]; inverse of `encode`.

        CommandError for chunks that are not finite or lie `WIDTH_LIMIT` widths of the training data outside it, and for
        commands beyond the bounds of `envs.commands`.
        """
        layout = self.config.layout
        _check_widths(np.asarray(chunks), layout)
        tokens = np.asarray(chunks) * self.stats.token_std + self.stats.token_mean
        if self.stats.has_absolute:
            relative, absolute = np.split(tokens, 2, axis=-2)
            commands = blend(layout.decode_chunks(relative, poses), decode_absolute(absolute))
        else:
            commands = layout.decode_chunks(tokens, poses)
        check_commands(commands, unit=True, layout=layout)
        return commands

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer and statistics, these for the released code too; the sizes are in the model's config.json."""
        save_tokenizer(self.tokenizer, folder)
        if self._stats is not None:
            for name in (STATS_FILE, RELEASED_STATS_FILE):
                self._stats.save(Path(folder) / name)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Read a checkpoint folder or hub id (`revision`, `cache_dir`, ...); statistics may be absent."""
        folder = checkpoint_folder(pretrained_model_name_or_path, kwargs)
        refuse_unknown(kwargs)
        return cls(HyVLAConfig.from_pretrained(folder), load_tokenizer(folder), ActionStats.find(folder))


def _check_widths(chunks: np.ndarray, layout: Layout) -> None:
    """CommandError, naming the first, for normalised numbers that no training data can have."""
    far = ~(np.abs(chunks) <= WIDTH_LIMIT)  # True for NaN
    if far.any():
        *_, token, place = np.argwhere(far)[0].tolist()
        raise CommandError(
            f"action token {token} is refused: its {encoded_name(layout, place)} (number {place}) is "
            f"{chunks[far][0]:.6g} widths from the mean of the training data, expected at most {WIDTH_LIMIT:g}"
        )
