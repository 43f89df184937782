"""Observations to tensors and chunks back to commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from envs import se3
from envs.types import ARMS, CAMERAS, Observation
from rl_lab.common.moments import Moments
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor, format_instruction, resize_with_padding
from rl_lab.model.tokenizer import ASSISTANT, load_tokenizer
from tests.support.models import make_policy


def random_poses(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Two-arm `ee` vectors [*shape, 16]."""
    rng = np.random.default_rng(seed)
    quat = se3.normalize(rng.normal(size=(*shape, 2, 4)))
    quat *= np.where(quat[..., :1] < 0, -1.0, 1.0)
    arms = np.concatenate([rng.normal(size=(*shape, 2, 3)), quat, rng.random((*shape, 2, 1))], axis=-1)
    return arms.reshape(*shape, 16)


def fitted(states: np.ndarray, chunks: np.ndarray, std_floor: float = 0.0) -> ActionStats:
    return ActionStats.from_moments(Moments(states), Moments(chunks), std_floor=std_floor)


def make_processor(num: int = 50, std_floor: float = 0.02) -> PolicyProcessor:
    config = preset_config("nano")
    poses, actions = random_poses((num,)), random_poses((num, config.n_action_steps), seed=1)
    stats = fitted(se3.encode_pose(poses), se3.to_relative(actions, poses), std_floor)
    return PolicyProcessor(config, load_tokenizer(), stats)


def make_observation(size: int, seed: int) -> Observation:
    """RoboTwin's nested layout with random content."""
    rng = np.random.default_rng(seed)
    arms = random_poses((), seed).reshape(2, 8)
    endpose = {f"{arm}_endpose": arms[index, :7] for index, arm in enumerate(ARMS)}
    endpose |= {f"{arm}_gripper": arms[index, 7] for index, arm in enumerate(ARMS)}
    views = {camera: {"rgb": rng.integers(0, 256, (size, size, 3), dtype=np.uint8)} for camera in CAMERAS}
    return {"observation": views, "endpose": endpose, "instruction": f"Pick up block {seed}."}


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_decoding_inverts_encoding(seed: int) -> None:
    processor = make_processor()
    poses, actions = random_poses((3,), seed), random_poses((3, 8), seed + 1)
    decoded = processor.decode(processor.encode(actions, poses).numpy(), poses)
    np.testing.assert_allclose(decoded, actions, atol=2e-5)


def test_fitted_chunks_are_standardised_per_slot() -> None:
    processor = make_processor(num=400, std_floor=0.0)
    chunks = processor.encode(random_poses((400, 8), seed=1), random_poses((400,))).numpy()
    np.testing.assert_allclose(chunks.mean(0), 0.0, atol=1e-5)
    np.testing.assert_allclose(chunks.std(0), 1.0, atol=1e-5)


def test_numbers_that_hardly_vary_get_std_one_as_released_or_the_floor() -> None:
    states, chunks = np.zeros((5, 20)), np.zeros((5, 8, 20))
    chunks[:, :, 0] = np.linspace(0.0, 0.01, 5)[:, None]
    released, floored = fitted(states, chunks), fitted(states, chunks, std_floor=0.02)
    assert (released.qpos_std == 1).all() and (released.action_std[:, 1:] == 1).all()
    assert (released.action_std[:, 0] < 0.01).all()
    assert (floored.qpos_std == 0.02).all() and (floored.action_std == 0.02).all()


def test_observations_and_arrays_give_the_same_batch() -> None:
    processor = make_processor()
    observations = [make_observation(64, seed) for seed in range(3)]
    batch = processor(observations)
    images = np.stack([[item["observation"][camera]["rgb"] for camera in CAMERAS] for item in observations])
    poses = np.stack([random_poses((), seed) for seed in range(3)])
    again = processor.batch(images, poses, [str(item["instruction"]) for item in observations])
    for name in ("images", "state", "tokens", "token_mask"):
        assert torch.equal(getattr(batch, name), getattr(again, name)), name
    assert batch.images.dtype == torch.uint8 and batch.images.shape == (3, 3, 3, 64, 64)
    assert torch.equal(batch.images[1, 2], torch.from_numpy(images[1, 2]).permute(2, 0, 1))


def test_images_of_another_size_are_resized_and_padded() -> None:
    processor = make_processor()
    views = np.full((2, 3, 48, 64, 3), 255, dtype=np.uint8)
    images = processor.images(views)
    assert images.shape == (2, 3, 3, 64, 64) and images.dtype == torch.float32
    assert images[..., 8:56, :].eq(1).all() and images[..., :8, :].eq(0).all() and images[..., 56:, :].eq(0).all()


def test_a_history_of_views_is_prepared_like_its_frames() -> None:
    processor = make_processor()
    views = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 48, 64, 3), dtype=np.uint8)
    images = processor.images(views)
    assert images.shape == (2, 3, 4, 3, 64, 64)
    for frame in range(4):
        assert torch.equal(images[:, :, frame], processor.images(views[:, :, frame]))
    batch = processor.batch(views, random_poses((2,)), ["Lift it."] * 2)
    assert torch.equal(batch.images, images)


def test_an_odd_pixel_of_padding_goes_to_the_right_and_bottom() -> None:
    padded = resize_with_padding(torch.ones(1, 3, 4, 4), width=7, height=4)
    assert padded[0, 0, 0].tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_instructions_are_padded_to_the_longest_of_them() -> None:
    processor = make_processor()
    short, longer = "Lift it.", "Lift the red block."
    lengths = [processor.tokenize([text])[1].sum(1).item() for text in (short, longer)]
    tokens, mask = processor.tokenize([short, longer])
    assert lengths[0] < lengths[1] < processor.config.tokenizer_max_length
    assert mask.sum(1).tolist() == lengths and tokens.shape == mask.shape == (2, lengths[1])


def test_instructions_are_cleaned_padded_and_truncated() -> None:
    processor = make_processor()
    assert format_instruction(" pick_up the\nblock ") == f"pick up the block{ASSISTANT}"
    long = "lift the pot " * 20
    tokens, mask = processor.tokenize(["Lift it.", long, "Lift it."])
    assert tokens.shape == mask.shape == (3, processor.config.tokenizer_max_length)
    assert torch.equal(tokens[0], tokens[2]) and mask[1].all()
    assert processor.tokenizer.decode(tokens[0][mask[0]]) == f"Lift it.{ASSISTANT}"
    assert (tokens[0][~mask[0]] == processor.tokenizer.pad_token_id).all()


def test_a_saved_processor_is_the_same(tmp_path: Path) -> None:
    processor = make_processor()
    make_policy().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = PolicyProcessor.from_pretrained(tmp_path)
    observation = [make_observation(64, 5)]
    assert torch.equal(processor(observation).state, again(observation).state)
    assert torch.equal(processor(observation).tokens, again(observation).tokens)
    chunks = np.random.default_rng(0).normal(size=(1, 8, 20))
    assert np.array_equal(processor.decode(chunks, random_poses((1,))), again.decode(chunks, random_poses((1,))))
    again.save_pretrained(tmp_path / "second")
    for path in (tmp_path / "second").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_statistics_must_fit_the_chunk_and_must_be_there(nano: HyVLAConfig) -> None:
    stats = fitted(np.zeros((2, 20)), np.zeros((2, 5, 20)))
    with pytest.raises(ValueError, match=r"action statistics have shape \(5, 20\) but the model predicts \(8, 20\)"):
        PolicyProcessor(nano, load_tokenizer(), stats)
    with pytest.raises(ValueError, match="no normalisation statistics"):
        PolicyProcessor(nano, load_tokenizer()).normalize_state(random_poses((1,)))
