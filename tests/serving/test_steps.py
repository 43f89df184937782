"""What a step holds, and what an engine is refused for."""

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

import torch
import torch.nn.functional as F

from rl_lab.model.chat import image_tokens
from rl_lab.model.serving.attention import attend_within, before_image, isolated, step_segments
from rl_lab.model.serving.model import served_name
from rl_lab.model.serving.processor import SCHEDULER, check_engine


def image(offset, length):
    return SimpleNamespace(mm_position=SimpleNamespace(offset=offset, length=length))


def test_segments_of_a_step_are_found_by_request_and_length():
    # Request 0 is decoding, request 1 starts with two images, request 2 continues after one.
    ranges = {0: [(2, 7)], 1: [(1, 6), (9, 11)], 2: [(0, 3), (6, 8)]}
    assert step_segments(ranges, [0, 1, 13, 18], [20, 12, 10]) == {6: [2], 3: [10, 14]}


def test_a_step_that_holds_a_part_of_an_image_is_an_error():
    with pytest.raises(RuntimeError, match="tokens 4..9 is split by a step over 0..7"):
        step_segments({0: [(4, 9)]}, [0, 8], [8])
    with pytest.raises(RuntimeError, match="tokens 4..9 is split by a step over 6..9"):
        step_segments({0: [(4, 9)]}, [0, 4], [10])


@pytest.mark.parametrize("end, expected", [(3, 3), (4, 4), (5, 4), (9, 4), (10, 10), (12, 12), (13, 12), (20, 20)])
def test_a_cached_prefix_ends_before_an_image_or_after_it(end, expected):
    assert before_image([image(4, 6), image(12, 3)], end) == expected


def test_a_segment_attends_to_itself_with_shared_key_heads():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(10, heads, 8, generator=generator) for heads in (4, 2, 2))
    attended = attend_within(q, k, v, torch.tensor([[2, 3, 4], [6, 7, 8]]), scale=0.3)
    weights = F.softmax(0.3 * q[6:9, 3] @ k[6:9, 1].T, dim=-1)
    torch.testing.assert_close(attended[1, :, 3], weights @ v[6:9, 1])


def test_an_image_is_its_rows_of_patches_each_closed_by_a_separator():
    assert image_tokens((4, 6), 9, 11) == [9, 9, 9, 11, 9, 9, 9, 11]


def test_a_backend_that_would_not_attend_within_images_is_refused():
    backend = type("Backend", (), {"get_name": staticmethod(lambda: "FLASHINFER")})
    with pytest.raises(ValueError, match="FLASHINFER is not known to attend within images"):
        isolated(backend)


def settings(**changes):
    """The parts of vLLM's configuration that are checked, right but for the changes."""
    values = {
        "scheduler_cls": SCHEDULER,
        "max_num_batched_tokens": 512,
        "enable_chunked_prefill": False,
        "long_prefill_token_threshold": 0,
        "max_model_len": 512,
        "enforce_eager": True,
        "quantization": None,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "world_size": 1,
    } | changes
    part = SimpleNamespace(**values)
    connector = values.get("kv_transfer_config")
    return SimpleNamespace(
        scheduler_config=part,
        model_config=part,
        parallel_config=part,
        kv_transfer_config=connector,
        speculative_config=values.get("speculative_config"),
    )


def test_an_engine_set_up_by_the_hook_is_accepted():
    check_engine(settings())


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scheduler_cls": None}, "scheduler_cls"),
        ({"enable_chunked_prefill": True}, "--enable-chunked-prefill"),
        ({"long_prefill_token_threshold": 64}, "--long-prefill-token-threshold"),
        ({"max_num_batched_tokens": 256}, "max_num_batched_tokens 256 is below max_model_len 512"),
        ({"enforce_eager": False}, "--enforce-eager"),
        ({"tensor_parallel_size": 2, "world_size": 2}, "tensor_parallel_size 2"),
        ({"quantization": "fp8"}, "quantization fp8"),
        ({"kv_transfer_config": "x"}, "kv_transfer_config"),
        ({"speculative_config": "x"}, "speculative"),
    ],
)
def test_an_engine_that_would_give_wrong_numbers_is_refused_by_the_name_of_its_setting(changes, message):
    with pytest.raises(ValueError, match=message):
        check_engine(settings(**changes))


@pytest.mark.parametrize(
    "name, served",
    [
        ("model.visual.merger.proj1.bias", "model.visual.merger.proj1.bias"),
        ("model.dual_tower.vlm.model.visual.merger.proj1.bias", "model.visual.merger.proj1.bias"),
        (
            "model.dual_tower.vlm.model.language_model.lm_head.weight",
            "model.language_model.model.embed_tokens.weight",
        ),
        ("model.dual_tower.expert.model.norm.weight", None),
        ("model.action_time_mlp_in.bias", None),
        ("model.state_proj.weight", None),
        ("model.visual.vision_tower.attn_pool.x", None),
        ("action_mean", None),
        ("qpos_std", None),
    ],
)
def test_tensors_of_a_policy_and_of_a_vlm_have_one_name(name, served):
    assert served_name(name) == served
