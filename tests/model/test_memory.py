"""The memory encoder: what a frame may see, what it costs, and which recorded frames it is given."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from algos.batch import ObservationBatch
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.vision import History, time_embedding, values_over_time
from tests.support.models import make_policy

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
FRAMES = 4


def with_history(observations: ObservationBatch, frames: int = FRAMES) -> ObservationBatch:
    """The observations with random past frames; the current frame stays."""
    generator = torch.Generator().manual_seed(5)
    shape = (*observations.images.shape[:2], frames - 1, *observations.images.shape[2:])
    past = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return replace(observations, images=torch.cat([past, observations.images[:, :, None]], dim=2))


@pytest.fixture
def memory_policy() -> HyVLAPolicy:
    return make_policy(use_video_encoder=True, spacetime_layer_stride=2, vision_depth=5).eval().requires_grad_(False)


def test_the_oldest_frame_has_no_time_embedding() -> None:
    embedding = time_embedding(3, 8)
    assert not embedding[0].any()
    torch.testing.assert_close(embedding[1, :2], torch.tensor([np.sin(1.0), np.cos(1.0) - 1]).float())
    torch.testing.assert_close(embedding[2, 2], torch.tensor(np.sin(2 * 100.0 ** (-2 / 8))).float())


def test_values_are_mixed_over_this_and_earlier_frames_only() -> None:
    q, k = torch.zeros(2, 3, 1, 2, 4)
    v = torch.tensor([3.0, 6.0, 12.0]).reshape(3, 1, 1, 1).expand(3, 1, 2, 4)
    mixed = values_over_time(q, k, v, frames=3)
    assert mixed[:, 0, 0, 0].tolist() == [3.0, 4.5, 7.0]


@pytest.mark.parametrize("shape", ["one frame", "a history of one"])
def test_one_frame_gives_the_bits_of_the_plain_tower(
    shape: str, memory_policy: HyVLAPolicy, observations: ObservationBatch
) -> None:
    images = observations.images if shape == "one frame" else observations.images[:, :, None]
    plain = make_policy(vision_depth=5).eval().requires_grad_(False)
    assert torch.equal(memory_policy.embed_images(images), plain.embed_images(observations.images))


def test_without_the_memory_encoder_only_the_current_frame_is_read(observations: ObservationBatch) -> None:
    policy = make_policy()
    assert torch.equal(policy.embed_images(with_history(observations).images), policy.embed_images(observations.images))


def test_past_frames_are_seen_but_not_those_of_other_cameras_and_observations(
    memory_policy: HyVLAPolicy, observations: ObservationBatch
) -> None:
    images = with_history(observations).images
    changed = images.clone()
    changed[1, 2, 0] = 255 - changed[1, 2, 0]
    before, after = memory_policy.embed_images(images), memory_policy.embed_images(changed)
    differs = (before != after).unflatten(1, (images.shape[1], -1)).flatten(2).any(2)
    expected = torch.zeros_like(differs)
    expected[1, 2] = True
    assert torch.equal(differs, expected)


def test_dropping_the_past_after_the_last_spacetime_block_changes_nothing() -> None:
    assert History(6, stride=4).cut(27) == 24
    assert History(6, stride=4, drop_layer=27).cut(27) == 24
    assert History(6, stride=4, drop_layer=5).cut(27) == 5
    assert History(6, stride=30).cut(27) == 0


def test_gradients_reach_the_past_frames_up_to_the_drop_layer(observations: ObservationBatch) -> None:
    images = with_history(observations).images.float() / 255
    for drop_layer, reached in ((None, True), (2, True), (1, False)):
        policy = make_policy(
            use_video_encoder=True, spacetime_layer_stride=2, vision_depth=5, past_drop_layer=drop_layer
        )
        leaf = images.clone().requires_grad_()
        policy.embed_images(leaf).square().sum().backward()
        assert leaf.grad is not None and leaf.grad[:, :, -1].any()
        assert bool(leaf.grad[:, :, :-1].any()) is reached, drop_layer


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"spacetime_layer_stride": 0}, "spacetime_layer_stride is 0; use 1 or more"),
        ({"past_drop_layer": 3}, r"past_drop_layer is 3; use null or a block in 0\.\.2"),
    ],
)
def test_impossible_settings_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset_config("nano", **overrides)


def test_a_policy_with_history_trains_and_samples(observations: ObservationBatch, generator: torch.Generator) -> None:
    policy = make_policy(use_video_encoder=True, spacetime_layer_stride=1)
    batch, num = with_history(observations), len(observations)
    noise, time = policy.sample_noise(num, generator), policy.sample_time(num, generator)
    actions = torch.randn(num, policy.chunk_size, 20, generator=generator)
    policy.flow_losses(policy.encode(batch), actions, noise, time).mean().backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in policy.parameters())
    plain = policy.sample_actions(policy.encode(observations), noise)
    assert not torch.allclose(policy.sample_actions(policy.encode(batch), noise), plain)
