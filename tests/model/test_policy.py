"""The policy's contract: what may be shared, what may not be seen, what is trained."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from algos.batch import ObservationBatch
from rl_lab.benchmarks.direct import padded
from rl_lab.config.section import ModelConfig
from rl_lab.learner.actions import starting_policy
from rl_lab.model.layout import prefix_layout
from rl_lab.model.policy import HyVLAPolicy
from tests.model.joint import joint_forward
from tests.support.models import make_observations, make_policy

CLOSE: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-4}


def draw(policy: HyVLAPolicy, num: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    actions = torch.randn(num, policy.chunk_size, 20, generator=generator)
    return actions, policy.sample_noise(num, generator), policy.sample_time(num, generator)


def test_a_preset_takes_pictures_of_another_size() -> None:
    policy = starting_policy(ModelConfig(image_size=96), seed=0, stride=1).policy
    batch = make_observations(policy, 2)
    assert batch.images.shape[-2:] == (96, 96)
    assert policy.embed_images(batch.images).shape[:2] == (2, 3 * 9)


@pytest.mark.parametrize("cameras", [3, 2])
@pytest.mark.parametrize("isolation", [True, False])
def test_prefix_then_suffix_equals_one_joint_attention_also_in_gradients(
    isolation: bool, cameras: int, generator: torch.Generator
) -> None:
    policy = make_policy(visual_segment_isolation=isolation, prediction="velocity", empty_cameras=1)
    batch = make_observations(policy, 3)
    batch = replace(batch, images=batch.images[:, :cameras])
    x_t, time = policy.sample_noise(3, generator), policy.sample_time(3, generator)
    weight = torch.randn(x_t.shape, generator=generator)

    joint = joint_forward(policy, batch, x_t, time).velocity
    torch.sum(joint * weight).backward()
    expected = {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}
    policy.zero_grad()
    velocity = policy.velocity(policy.encode(batch), x_t, time)
    torch.sum(velocity * weight).backward()

    torch.testing.assert_close(velocity, joint, **CLOSE)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-3)
        else:
            assert name not in expected or not expected[name].any(), f"{name} lost its gradient"


def test_rows_that_share_a_prefix_equal_rows_that_recompute_it(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    rows = torch.tensor([0, 0, 3, 1, 2, 3, 3])
    actions, noise, time = draw(policy, len(rows), generator)
    shared = policy.flow_losses(policy.encode(observations), actions, noise, time, rows)
    again = policy.flow_losses(policy.encode(observations.select(rows)), actions, noise, time)
    selected = policy.flow_losses(policy.encode(observations).select(rows), actions, noise, time)
    torch.testing.assert_close(shared, again, **CLOSE)
    torch.testing.assert_close(shared, selected, **CLOSE)

    losses = [policy.flow_losses(policy.encode(observations), actions, noise, time, rows).mean(), again.mean()]
    gradients = [torch.autograd.grad(loss, policy.model.vlm.visual.merger.proj1.weight)[0] for loss in losses]
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-3)


def test_padding_tokens_cannot_be_seen(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    other = torch.where(observations.token_mask, observations.tokens, torch.full_like(observations.tokens, 77))
    noise = policy.sample_noise(len(observations), generator)
    actions = [
        policy.sample_actions(policy.encode(replace(observations, tokens=tokens)), noise)
        for tokens in (observations.tokens, other)
    ]
    assert torch.equal(*actions)


@pytest.mark.parametrize("isolation", [True, False])
def test_trimmed_and_fully_padded_instructions_give_the_same_losses_gradients_and_actions(
    isolation: bool, generator: torch.Generator
) -> None:
    policy = make_policy(visual_segment_isolation=isolation)
    longest = policy.config.tokenizer_max_length
    full = make_observations(policy, 4)
    full = replace(full, token_mask=full.token_mask & (torch.arange(longest) < longest // 2))
    trimmed = replace(full, tokens=full.tokens[:, : longest // 2], token_mask=full.token_mask[:, : longest // 2])
    rows = torch.tensor([0, 0, 3, 1, 2, 3])
    drawn, results = draw(policy, len(rows), generator), []
    for observation in (trimmed, padded(trimmed, longest), full):
        losses = policy.flow_losses(policy.encode(observation), *drawn, rows)
        policy.zero_grad()
        losses.mean().backward()
        gradients = [value.grad for value in policy.parameters() if value.grad is not None]
        results.append((losses, policy.sample_actions(policy.encode(observation), drawn[1][:4]), gradients))
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, atol=1e-5, rtol=1e-5)


def test_the_side_of_the_padding_does_not_matter(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    shifts = (~observations.token_mask).sum(1)
    sides = [torch.roll(row, int(shift)) for row, shift in zip(observations.tokens, shifts, strict=True)]
    left = replace(observations, tokens=torch.stack(sides), token_mask=observations.token_mask.flip(1))
    noise = policy.sample_noise(len(left), generator)
    actions = [policy.sample_actions(policy.encode(batch), noise) for batch in (observations, left)]
    torch.testing.assert_close(*actions, **CLOSE)


def test_an_instruction_of_padding_only_gives_finite_losses_and_gradients(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    empty = replace(observations, token_mask=torch.zeros_like(observations.token_mask))
    losses = policy.flow_losses(policy.encode(empty), *draw(policy, len(empty), generator))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert all(value.grad.isfinite().all() for value in policy.parameters() if value.grad is not None)


def test_an_absent_camera_is_allowed_only_if_the_config_says_so(observations: ObservationBatch) -> None:
    two = replace(observations, images=observations.images[:, :2])
    black = replace(observations, images=observations.images.clone())
    black.images[:, 2] = 0
    tolerant = make_policy(empty_cameras=1)
    noise = tolerant.sample_noise(len(two), torch.Generator().manual_seed(0))
    without = tolerant.sample_actions(tolerant.encode(two), noise)
    assert not torch.allclose(without, tolerant.sample_actions(tolerant.encode(black), noise)), (
        "a black picture is seen, an absent one is not"
    )
    with pytest.raises(ValueError, match=r"images have shape \(4, 2, 3, 64, 64\)"):
        make_policy().encode(two)


@pytest.mark.parametrize("isolation", [True, False])
def test_nothing_of_an_absent_camera_reaches_the_actions(
    isolation: bool, observations: ObservationBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy(visual_segment_isolation=isolation, empty_cameras=2).eval()
    batch = replace(observations, images=observations.images[:, :1])
    noise = policy.sample_noise(len(batch), torch.Generator().manual_seed(0))
    expected = policy.sample_actions(policy.encode(batch), noise)
    per_camera = policy.config.token_grid**2

    def other_tokens(images: torch.Tensor) -> torch.Tensor:
        tokens = HyVLAPolicy.embed_images(policy, images).detach().clone()
        tokens[:, per_camera:] = 5.0
        return tokens

    monkeypatch.setattr(policy, "embed_images", other_tokens)
    assert torch.equal(policy.sample_actions(policy.encode(batch), noise), expected)


def test_vision_features_are_the_patch_tokens_before_the_last_layer(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    prefix, vision = policy.encode(observations, return_vision=True)
    sizes, grid = policy.config.vlm_sizes, policy.config.token_grid
    assert vision.shape == (len(observations), 3, grid * grid, sizes.hidden)
    _, noise, time = draw(policy, len(observations), generator)
    hidden = joint_forward(policy, observations, noise, time)
    patches = hidden.prefix_hidden[-2][:, hidden.layout.sequence[: hidden.layout.num_patches]]
    torch.testing.assert_close(vision.flatten(1, 2), patches, **CLOSE)


def test_images_as_bytes_and_as_fractions_are_the_same(policy: HyVLAPolicy, observations: ObservationBatch) -> None:
    fractions = replace(observations, images=observations.images.float() / 255)
    torch.testing.assert_close(policy.encode(observations).keys, policy.encode(fractions).keys, **CLOSE)


def test_parameter_groups_hold_every_trainable_parameter_once(policy: HyVLAPolicy) -> None:
    groups = policy.parameter_groups()
    assert set(groups) == {"vision", "vlm", "expert"}
    grouped = [id(parameter) for group in groups.values() for parameter in group]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in policy.parameters() if parameter.requires_grad}


def test_one_euler_step_of_a_clean_chunk_network_returns_its_prediction(
    policy: HyVLAPolicy, observations: ObservationBatch, generator: torch.Generator
) -> None:
    noise = policy.sample_noise(len(observations), generator)
    prefix = policy.encode(observations)
    clean = policy.model.expert_output(policy.model.with_state(prefix), noise, torch.ones(len(noise)))
    torch.testing.assert_close(policy.sample_actions(prefix, noise, num_steps=1), clean[..., :20], **CLOSE)


def test_released_times_follow_the_beta_density_and_uniform_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    beta = make_policy(time_density="beta").sample_time(20_000, generator)
    uniform = make_policy(time_density="uniform").sample_time(20_000, generator)
    assert beta.min() >= 0.001 and beta.max() <= 1.0
    assert beta.mean().item() == pytest.approx(0.001 + 0.999 * 0.6, abs=0.01)  # the mean of Beta(1.5, 1) is 0.6
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.01)


def test_a_policy_first_used_in_inference_mode_can_be_trained(observations: ObservationBatch) -> None:
    prefix_layout.cache_clear()
    policy = make_policy()
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        policy.sample_actions(policy.encode(observations), policy.sample_noise(len(observations), generator))
    policy.flow_losses(policy.encode(observations), *draw(policy, len(observations), generator)).mean().backward()


def test_the_same_seed_gives_the_same_bits_twice(observations: ObservationBatch) -> None:
    def run() -> torch.Tensor:
        policy, generator = make_policy(), torch.Generator().manual_seed(3)
        prefix = policy.encode(observations)
        loss = policy.flow_losses(prefix, *draw(policy, len(observations), generator)).mean()
        loss.backward()
        gradients = [value.grad.flatten() for value in policy.parameters() if value.grad is not None]
        return torch.cat([loss.detach().flatten(), *gradients])

    assert torch.equal(run(), run())


@pytest.mark.parametrize("prediction", ["velocity", "action"])
def test_a_few_steps_on_a_fixed_batch_lower_the_loss(
    prediction: str, observations: ObservationBatch, generator: torch.Generator
) -> None:
    policy = make_policy(prediction=prediction)
    batch = draw(policy, len(observations), generator)
    optimizer = torch.optim.AdamW([value for value in policy.parameters() if value.requires_grad], lr=2e-3)
    losses = []
    for _ in range(12):
        loss = policy.flow_losses(policy.encode(observations), *batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
