"""Sizes: presets, validation, and both spellings of the language-model config."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import PRESETS, preset_config

MILLIONS = {"nano": (2, 3), "small": (11, 13), "mini": (47, 53), "mot-2b": (4515, 4530)}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_a_preset_has_its_size_and_heads_that_can_be_served(name: str) -> None:
    config = preset_config(name)
    with torch.device("meta"):
        policy = HyVLAPolicy(config)
    low, high = MILLIONS[name]
    assert low < sum(value.numel() for value in policy.parameters()) / 1e6 < high
    tower = config.vlm_sizes
    assert tower.head_dim in (32, 64, 128)
    assert tower.hidden == tower.num_heads * tower.head_dim


def test_released_defaults_are_untouched_by_the_released_sizes() -> None:
    config = preset_config("mot-2b")
    assert (config.prediction, config.time_density, config.loss_weight_clip) == ("velocity", "beta", None)
    assert config.vlm_sizes.rope_base == pytest.approx(1.116e7, rel=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vision_heads": 5}, "5 vision heads do not divide the vision width 96"),
        ({"n_action_steps": 9}, "n_action_steps is 9 but chunk_size is 8"),
        ({"resize_imgs_with_padding": [64, 48]}, "image size 64x48 must be square"),
        ({"prediction": "noise"}, "prediction is 'noise'; use 'velocity' or 'action'"),
        ({"time_density": "normal"}, "time_density is 'normal'"),
        ({"loss_weight_clip": 0.0}, r"loss_weight_clip is 0.0; use null or a time in \(0, 1\]"),
        ({"chunksize": 4}, r"unknown model options \['chunksize'\]"),
    ],
)
def test_sizes_that_cannot_work_are_refused_with_their_values(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_config("nano", **overrides)


def test_an_unknown_preset_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown model preset 'micro'; choose one of nano, small, mini, mot-2b"):
        preset_config("micro")


def test_flat_and_newer_language_configs_mean_the_same(nano: HyVLAConfig) -> None:
    assert nano.vlm_config_dict is not None
    text = dict(nano.vlm_config_dict["text_config"])
    rope = text.pop("rope_scaling")
    renamed = text | {"rope_parameters": {"rope_type": "dynamic", "alpha": rope["alpha"], "rope_theta": 10000.0}}
    renamed["attention_head_dim"] = renamed.pop("head_dim")
    flat = preset_config("nano", vlm_config_dict=renamed)
    assert flat.vlm_sizes == nano.vlm_sizes


def test_cameras_keep_their_order_through_a_file(nano: HyVLAConfig, tmp_path) -> None:
    nano.save_pretrained(tmp_path)
    again = HyVLAConfig.from_pretrained(tmp_path)
    assert list(again.image_features) == [
        f"observation.images.{name}" for name in ("top_head", "hand_left", "hand_right")
    ]
    assert again.vision_sizes == nano.vision_sizes and again.expert_sizes == nano.expert_sizes


@dataclass
class ReleasedCamera:
    """What the released loader makes of a camera: an unknown key is an error there."""

    type: str
    shape: list[int]


@pytest.mark.parametrize("prediction", ["velocity", "action"])
def test_the_released_loader_stops_at_an_expert_that_it_would_misread(prediction: str, tmp_path: Path) -> None:
    config = preset_config("nano", prediction=prediction)
    config.save_pretrained(tmp_path)
    again = HyVLAConfig.from_pretrained(tmp_path)
    assert again.prediction == prediction and again.image_features == config.image_features
    cameras = json.loads((tmp_path / "config.json").read_text())["image_features"]
    if prediction == "velocity":
        assert [ReleasedCamera(**camera).shape for camera in cameras.values()] == [[3, 480, 640]] * 3
    else:
        for camera in cameras.values():
            with pytest.raises(TypeError, match="expert_predicts_clean_chunks"):
                ReleasedCamera(**camera)


def test_cameras_that_are_no_features_are_refused() -> None:
    with pytest.raises(ValueError, match="image_features must give each camera by name"):
        preset_config("nano", image_features={"observation.images.top_head": 3})


def test_heads_of_a_tower_of_another_width_are_never_assumed() -> None:
    assert preset_config("mot-2b").vision_sizes.num_heads == 16
    with pytest.raises(ValueError, match="does not give the attention heads of its vision tower of width 96"):
        preset_config("nano", vision_heads=None)
