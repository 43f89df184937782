"""The auxiliary losses of vision tokens: equations, stand-ins for a teacher, and heads in the imitation objective."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.auxiliary import (
    GlobalFeature,
    NextCode,
    PoseProbe,
    current_views,
    fit_codebook,
    fit_components,
    global_loss,
    nearest_codes,
    next_code_loss,
    thumbnails,
    token_patches,
    whole_pictures,
)
from algos.flow_matching import FlowMatching
from rl_lab.model.vision import patchify
from tests.support.flow_policies import (
    HIDDEN,
    FakePolicy,
    TapePolicy,
    check_accumulation,
    flow_batch,
    generator,
    observations,
)


def seen(num: int):
    """Rows whose pictures have 2 x 2 tokens of four pixels."""
    batch = flow_batch(num)
    batch.observation.images = torch.randint(0, 256, (num, 3, 3, 4, 4), dtype=torch.uint8, generator=generator(5))
    return batch


def heads() -> list:
    torch.manual_seed(0)
    centres = torch.rand(5, 3, generator=generator(6))
    components = fit_components(torch.rand(20, 3 * 16 * 16, generator=generator(7)))
    return [NextCode(HIDDEN, centres, 0.5), GlobalFeature(HIDDEN, *components, 2.0)]


@given(st.integers(1, 3), st.integers(1, 3))
def test_a_tokens_patches_are_those_that_the_model_merges(grid, patch_size):
    images = torch.rand(2, 3, 2 * grid * patch_size, 4 * grid * patch_size)
    cut = token_patches(images, patch_size)
    assert cut.shape == (2, 2 * grid**2, 4, 3 * patch_size**2) and torch.equal(whole_pictures(cut, grid), images)
    assert torch.equal(cut.flatten(1, 2), patchify(images, patch_size))


def test_a_picture_that_does_not_divide_into_tokens_is_refused():
    with pytest.raises(ValueError, match="images of 6 pixels do not divide into tokens of 4"):
        token_patches(torch.rand(1, 3, 6, 6), 2)


def test_the_next_code_by_hand():
    logits, codes = torch.zeros(2, 4, 3), torch.tensor([[0, 0, 0, 0], [1, 2, 0, 1]])
    assert next_code_loss(logits, codes) == pytest.approx(math.log(3))
    logits[0, :, 1] = math.log(2)  # p = 1/4, 1/2, 1/4
    assert next_code_loss(logits, codes) == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4)
    logits[1] = torch.randn(4, 3)
    other = codes.clone()
    other[0] = 2
    assert next_code_loss(logits, other) == next_code_loss(logits, codes), "the last has no next, the first is none's"
    assert next_code_loss(logits[:1], codes[:1]) == 0, "a picture of one token has no next"


@given(st.integers(0, 100), st.floats(0.01, 100))
def test_the_global_loss_is_minus_the_cosine_whatever_the_lengths(seed, length):
    mapped, feature = torch.randn(2, 3, 7, generator=generator(seed))
    found = global_loss(mapped, feature)
    assert torch.allclose(found, global_loss(length * mapped, feature), atol=1e-5) and (found.abs() <= 1 + 1e-6).all()
    assert torch.allclose(global_loss(length * feature, feature), torch.tensor(-1.0))


def test_the_global_loss_by_hand():
    mapped = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    assert global_loss(mapped, torch.tensor([[1.0, 0.0], [5.0, 0.0]])).tolist() == pytest.approx([-0.6, 0.0])


def test_the_codebook_finds_the_clusters_of_different_patches():
    patches = torch.tensor([[0.0, 0.0], [0.0, 0.2], [1.0, 1.0], [1.0, 0.8]]).repeat(1, 1)
    patches = torch.cat([patches, patches[:1].expand(1000, -1)])  # what never moves counts once
    centres = fit_codebook(patches, 2, seed=0)
    assert sorted(centres.tolist()) == [pytest.approx([0.0, 0.1]), pytest.approx([1.0, 0.9])]
    assert torch.equal(centres, fit_codebook(patches, 2, seed=0))
    codes = nearest_codes(patches[:4].view(2, 2, 2), centres)
    assert codes[0, 0] == codes[0, 1] != codes[1, 0] == codes[1, 1]
    with pytest.raises(ValueError, match="5 codes of 4 different patches"):
        fit_codebook(patches, 5, seed=0)


def test_components_are_white_on_what_they_were_fitted_to():
    small = torch.randn(200, 50, generator=generator(1)) * torch.linspace(0.01, 1, 50)
    mean, basis = fit_components(small)
    assert torch.allclose(((small - mean) @ basis).T.cov(), torch.eye(32), atol=1e-3)
    with pytest.raises(ValueError, match="all alike"):
        fit_components(small[:1].expand(10, -1))


def test_of_a_history_the_present_frame_is_told():
    observation = observations(2)
    observation.images = torch.randint(0, 256, (2, 3, 4, 3, 8, 8), dtype=torch.uint8)
    views = current_views(observation)
    assert torch.equal(views, observation.images[:, :, -1] / 255) and thumbnails(views).shape == (2, 3, 768)


def test_heads_add_their_weighted_losses_and_train_the_tower_through_the_tokens():
    policy, batch, objective = FakePolicy(), seen(4), FlowMatching(heads=heads())
    loss, metrics = objective.loss(policy, batch, generator())
    plain, _ = FlowMatching().loss(policy, batch, generator())
    added = 0.5 * metrics["flow/code"] + 2 * metrics["flow/global"]
    assert loss.detach() == pytest.approx(float((plain + added).detach()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())


def test_an_absent_camera_has_nothing_to_tell():
    code, whole = heads()
    batch, vision = seen(2), torch.randn(2, 3, 4, HIDDEN)
    for head in (code, whole):
        batch.observation.images = batch.observation.images[:, :2]
        assert head.losses(vision, head.target(batch)).shape == (2,)


def test_accumulating_eight_parts_equals_one_batch():
    batch = seen(8)
    batch.truth = torch.randn(8, 5, generator=generator(3))
    check_accumulation(FlowMatching(draws_per_sample=2, heads=[PoseProbe(HIDDEN, 5), *heads()]), TapePolicy(), batch)


def test_the_probe_reads_every_head_camera_token_and_no_other():
    probe = PoseProbe(HIDDEN, 2)
    vision, truth = torch.randn(3, 3, 4, HIDDEN), torch.randn(3, 2)
    losses = probe.losses(vision, truth)
    assert losses.shape == (3,)
    others = vision.clone()
    others[:, 1:] = 0
    assert torch.equal(probe.losses(others, truth), losses)
    for token in range(4):
        changed = vision.clone()
        changed[:, 0, token] += torch.randn(HIDDEN)
        assert not torch.equal(probe.losses(changed, truth), losses)


def test_the_probe_adds_its_weighted_loss_and_trains_the_tower_through_the_tokens():
    policy, batch = FakePolicy(), flow_batch(4)
    batch.truth = torch.randn(4, 5, generator=generator(3))
    objective = FlowMatching(heads=[PoseProbe(HIDDEN, 5, 0.5)])
    loss, metrics = objective.loss(policy, batch, generator())
    plain, _ = FlowMatching().loss(policy, batch, generator())
    assert loss.detach() == pytest.approx(float((plain + 0.5 * metrics["flow/probe"]).detach()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in objective.parameters())
    assert list(FlowMatching().parameters()) == []


def test_a_probe_without_truth_or_without_trained_towers_is_refused():
    probe = PoseProbe(HIDDEN, 5)
    with pytest.raises(ValueError, match="leave the probe out"):
        FlowMatching(groups=("expert",), heads=[probe])
    with pytest.raises(ValueError, match="needs FlowBatch.truth"):
        FlowMatching(heads=[probe]).loss(FakePolicy(), flow_batch(2), generator())
