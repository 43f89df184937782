"""Sizes of the Mixture-of-Transformers policy, with the fields and names of the released `config.json`.

The released file is flat, keeps the whole language-model config under `vlm_config_dict`, and leaves out what the
released code hard-codes (vision sizes, expert MLP, token ids). Those are fields of ours here; a file without them is
completed from the checkpoint's tensor shapes and tokenizer (`rl_lab.model.loading`). The released loader drops keys
it does not know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar, Literal

from envs.types import BIMANUAL, Layout, Numbers
from rl_lab.model.vlm_config import (
    MAX_SIZE,
    MERGE,
    RELEASED_VISION_HEADS,
    HyVLMConfig,
    StoredConfig,
    TowerSizes,
    VisionSizes,
    check_size,
    check_sizes,
    tower_sizes,
)

CAMERA_PREFIX = "observation.images."


CLEAN_CHUNK_MARK = "expert_predicts_clean_chunks"
"""Key of every camera in a written config whose expert predicts clean chunks. The released loader drops unknown keys of
a config and would read the expert's output as a velocity; on an unknown key of a camera it stops, naming the key."""
MAX_IMAGE_SIZE = 4096
"""Side of the input image, pixels."""
_MOST = {
    "chunk_size": 10_000,
    "n_action_steps": 10_000,
    "num_steps": 10_000,
    "tokenizer_max_length": 2**20,
    "proj_width": MAX_SIZE,
    "expert_intermediate_size": MAX_SIZE,
    "max_state_dim": MAX_SIZE,
    "max_action_dim": MAX_SIZE,
}
"""Sizes of which a larger value is a damaged file."""


def _released_cameras() -> dict[str, Any]:
    names = ("top_head", "hand_left", "hand_right")
    return {f"observation.images.{name}": {"type": "VISUAL", "shape": [3, 480, 640]} for name in names}


class HyVLAConfig(StoredConfig):
    """Config of `HyVLAPolicy`: released fields first, ours after them, all with the released values as defaults."""

    model_type = "hy_vla"

    type: str = "hy"
    """Read by the released loader."""
    chunk_size: int = 50
    n_action_steps: int = 50
    """Action tokens C of the suffix; at most `chunk_size`."""
    image_features: dict[str, Any] = field(default_factory=_released_cameras)
    """Cameras in order: name -> {"type": "VISUAL", "shape": [3, height, width]}."""
    max_state_dim: int = 32
    max_action_dim: int = 32
    resize_imgs_with_padding: list[int] = field(default_factory=lambda: [224, 224])
    """[width, height] of the square input image, pixels."""
    empty_cameras: int = 0
    """Up to so many trailing cameras may be absent from a batch."""
    tokenizer_max_length: int = 64
    proj_width: int = 1024
    """Hidden size of the expert."""
    num_steps: int = 10
    """Euler steps of the sampler."""
    freeze_vision_encoder: bool = False
    train_expert_only: bool = False
    train_state_proj: bool = True
    vlm_config_dict: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    """The output embedding is the input embedding, whatever a file says."""
    use_video_encoder: bool = False
    """Read the K frames of images [.., K, 3, S, S] (memory encoder); False: only the last of them."""
    spacetime_layer_stride: int = 4
    """Every so many vision blocks the frames meet."""
    past_drop_layer: int | None = None
    """Vision block that only the current frame enters; null: the past frames run to the end."""
    visual_segment_isolation: bool = False
    """True: an image's tokens see their own image only; False: only patch-patch entries are bidirectional."""

    vision_width: int = 1152
    vision_depth: int = 27
    vision_heads: int | None = None
    """None: those of the released tower if the width is its own; a config of another width must give them."""
    vision_mlp: int = 4304
    vision_patch_size: int = 16
    vision_position_grid: int = 128
    expert_intermediate_size: int = 2048
    special_token_ids: dict[str, int] = field(default_factory=dict)
    """Ids by role (`rl_lab.model.tokenizer.ROLES`), looked up by name in the tokenizer."""
    prediction: Literal["velocity", "action"] = "velocity"
    """Output of the expert: the velocity (released) or the clean chunk a_hat, v = (x_t - a_hat) / t."""
    time_density: Literal["beta", "uniform"] = "beta"
    """Training times: 0.001 + 0.999 Beta(1.5, 1) (released) or uniform on [0, 1)."""
    command_numbers: Numbers = BIMANUAL.numbers
    """What its states and commands are; see `envs.types.Layout`."""
    command_dim: int = BIMANUAL.action_dim
    measured_dim: int = BIMANUAL.state_dim
    loss_weight_clip: float | None = None
    """None (released): plain velocity error. c: error times (t / max(t, c))^2."""
    truth_size: ClassVar[int] = 0
    """See `algos.policy.PolicySizes`: it sees pictures."""

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        cameras = self.image_features or _released_cameras()
        if not isinstance(cameras, dict) or not all(isinstance(camera, dict) for camera in cameras.values()):
            raise ValueError('image_features must give each camera by name as {"type": "VISUAL", "shape": [3, H, W]}')
        self.image_features = {
            name: {key: value for key, value in camera.items() if key != CLEAN_CHUNK_MARK}
            for name, camera in cameras.items()
        }
        if self.vlm_config_dict is not None:
            self.check()

    @classmethod
    def check_stored(cls, content: Mapping[str, Any], where: str) -> None:
        """As of every config, and the same of the language model's."""
        super().check_stored(content, where)
        HyVLMConfig.check_stored(content.get("vlm_config_dict") or {}, f"{where}, vlm_config_dict")

    def check(self) -> None:
        """ValueError, naming the values, for sizes that no model has, or that cannot work together."""
        vision, layout = self.vision_sizes, self.layout
        check_sizes(self.vlm_sizes, vision, self.special_token_ids)
        if len(self.resize_imgs_with_padding) != 2:
            raise ValueError(f"resize_imgs_with_padding is {self.resize_imgs_with_padding}; expected [width, height]")
        width, height = self.resize_imgs_with_padding
        for name, most in _MOST.items():
            check_size(name, getattr(self, name), most)
        check_size("image size", width, MAX_IMAGE_SIZE)
        cell = MERGE * vision.patch_size
        problems = {
            f"n_action_steps is {self.n_action_steps} but chunk_size is {self.chunk_size}; it may not be larger": (
                self.n_action_steps > self.chunk_size
            ),
            f"spacetime_layer_stride is {self.spacetime_layer_stride}; use 1 or more": self.spacetime_layer_stride < 1,
            f"past_drop_layer is {self.past_drop_layer}; use null or a block in 0..{vision.depth}": (
                self.past_drop_layer is not None and not 0 <= self.past_drop_layer <= vision.depth
            ),
            f"proj_width {self.proj_width} must be even (sine and cosine halves)": self.proj_width % 2 != 0,
            f"image size {width}x{height} must be square and a multiple of {cell} (2 patches)": (
                width != height or width % cell != 0
            ),
            f"max_state_dim {self.max_state_dim} and max_action_dim {self.max_action_dim} must be at least "
            f"{layout.encoded_state_dim} and {layout.encoded_action_dim}": (
                self.max_state_dim < layout.encoded_state_dim or self.max_action_dim < layout.encoded_action_dim
            ),
            f"prediction is {self.prediction!r}; use 'velocity' or 'action'": (
                self.prediction not in ("velocity", "action")
            ),
            f"time_density is {self.time_density!r}; use 'beta' or 'uniform'": (
                self.time_density not in ("beta", "uniform")
            ),
            f"loss_weight_clip is {self.loss_weight_clip}; use null or a time in (0, 1]": (
                self.loss_weight_clip is not None and not 0 < self.loss_weight_clip <= 1
            ),
        }
        for message, wrong in problems.items():
            if wrong:
                raise ValueError(message)

    def to_json_string(self, use_diff: bool = True) -> str:
        """As in transformers, but in our order: the released loader takes the cameras in the order of the file, and
        must not take a checkpoint whose output it would misread (`CLEAN_CHUNK_MARK`)."""
        fields = self.to_diff_dict() if use_diff else self.to_dict()
        if self.prediction == "action":
            cameras = self.image_features.items()
            fields["image_features"] = {name: camera | {CLEAN_CHUNK_MARK: True} for name, camera in cameras}
        return json.dumps(fields, indent=2) + "\n"

    @property
    def layout(self) -> Layout:
        """Of its states, commands and cameras; ValueError for sizes that none has."""
        cameras = tuple(name.removeprefix(CAMERA_PREFIX) for name in self.image_features)
        return Layout(self.command_numbers, self.command_dim, self.measured_dim, cameras)

    def learn(self, layout: Layout) -> None:
        """Take another layout, whose cameras need other names only where there are not as many; ValueError for one that
        is too large."""
        sizes = {"command_numbers": layout.numbers, "command_dim": layout.action_dim, "measured_dim": layout.state_dim}
        self.update(sizes)
        if len(layout.cameras) != self.num_cameras:
            shape = [3, self.image_size, self.image_size]
            self.image_features = {CAMERA_PREFIX + name: {"type": "VISUAL", "shape": shape} for name in layout.cameras}
        self.check()

    @property
    def num_cameras(self) -> int:
        """Cameras of a full batch."""
        return len(self.image_features)

    @property
    def image_size(self) -> int:
        """Side of the square input image, pixels."""
        return self.resize_imgs_with_padding[0]

    @property
    def token_grid(self) -> int:
        """Side of an image's grid of merged tokens."""
        return self.image_size // (MERGE * self.vision_patch_size)

    @property
    def vlm_sizes(self) -> TowerSizes:
        """Sizes of the language tower, from a nested (`text_config`) or flat language-model config."""
        if self.vlm_config_dict is None:
            raise ValueError("config has no vlm_config_dict: the sizes of the language tower are unknown; add it")
        return tower_sizes(self.vlm_config_dict.get("text_config") or self.vlm_config_dict)

    @property
    def expert_sizes(self) -> TowerSizes:
        """The expert: the language tower with its own hidden and MLP sizes."""
        shared = vars(self.vlm_sizes)
        return TowerSizes(**{**shared, "hidden": self.proj_width, "intermediate": self.expert_intermediate_size})

    @property
    def vision_sizes(self) -> VisionSizes:
        """Sizes of the vision tower."""
        return VisionSizes(
            width=self.vision_width,
            depth=self.vision_depth,
            num_heads=self.vision_heads or RELEASED_VISION_HEADS.get(self.vision_width),
            mlp=self.vision_mlp,
            patch_size=self.vision_patch_size,
            position_grid=self.vision_position_grid,
            output=self.vlm_sizes.hidden,
            init_std=self.vlm_sizes.init_std,
        )
