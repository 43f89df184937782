"""The usage of the released model cards, on the golden policy."""

from typing import Any

import pytest
import torch

from rl_lab.benchmarks.golden import ACTIONS, HISTORY, SINGLE_FRAME, Case, load_case, load_processor
from rl_lab.model.policy import predict_action


def released_batch(case: Case) -> dict[str, Any]:
    """The case's inputs with the released names, images as fractions."""
    cameras = {
        name.replace("in.image_uint8", "observation.images"): images.float() / 255
        for name, images in case.tensors.items()
        if name.startswith("in.image_uint8.")
    }
    return {**cameras, "observation.state": case["in.state"], "task": case.task}


@pytest.mark.parametrize("name", SINGLE_FRAME + HISTORY)
def test_a_released_batch_gives_the_reference_actions(name: str) -> None:
    case = load_case(name)
    chunk = predict_action(case.policy, load_processor(), released_batch(case), noise=case["in.noise"])
    torch.testing.assert_close(chunk, case["out.sample.pred_actions"], **ACTIONS)


def test_a_padded_state_and_a_generator_will_do() -> None:
    case, processor = load_case("policy_k6_isolation"), load_processor()
    batch = released_batch(case)
    padded = batch | {"observation.state": case["out.prep.state"]}
    chunks = [
        predict_action(case.policy, processor, item, generator=torch.Generator().manual_seed(1))
        for item in (batch, padded)
    ]
    assert torch.equal(*chunks)
    assert chunks[0].shape == case["out.sample.pred_actions"].shape
    assert not torch.equal(chunks[0], predict_action(case.policy, processor, batch))


def test_without_history_a_batch_of_single_frames_does() -> None:
    case, processor = load_case("policy_k1_patchmask"), load_processor()
    batch = released_batch(case)
    stacked = {key: value[:, None] if "images" in key else value for key, value in batch.items()}
    chunks = [predict_action(case.policy, processor, item, noise=case["in.noise"]) for item in (batch, stacked)]
    assert torch.equal(*chunks)


@pytest.mark.parametrize(
    ("removed", "added"),
    [("task", {}), ("observation.state", {}), ("observation.images.top_head", {}), (None, {"observation.imgs": 0})],
)
def test_a_batch_with_other_names_is_refused(removed: str | None, added: dict[str, Any]) -> None:
    case, processor = load_case("policy_k1_missing_camera"), load_processor()
    batch = {key: value for key, value in released_batch(case).items() if key != removed} | added
    with pytest.raises(ValueError, match=r"batch has the keys .*; expected observation\.state, task and the cameras"):
        predict_action(case.policy, processor, batch)
