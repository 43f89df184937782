"""Compiled blocks give the numbers of the same blocks as they are written, and leave everything else as it was."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.eval_frame import _debug_get_cache_entry_list
from torch._inductor import config as inductor

from algos.flow_matching import FlowMatching
from rl_lab.benchmarks.rpro import random_batch
from rl_lab.common.errors import UserError
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.lora import Adapted
from rl_lab.model.mot import DecoderLayer
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.sharding import RECOMPILE_LIMIT, check_compiler, compile_blocks
from tests.support.models import make_policy

ALL = ("vision", "vlm", "expert")
CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> None:
    torch.compiler.reset()


def test_compiled_vision_blocks_give_the_same_features_and_gradients_and_keep_their_names() -> None:
    visual = make_policy().model.vlm.visual
    compiled = copy.deepcopy(visual)
    compile_blocks(compiled)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    results = []
    for module in (visual, compiled, compiled):
        module.zero_grad()
        features = module(images)
        features.square().mean().backward()
        results.append((features, [parameter.grad.clone() for parameter in module.parameters()]))
    torch.testing.assert_close(results[1], results[0], **CLOSE)
    assert all(torch.equal(*pair) for pair in zip(results[1][1], results[2][1], strict=True))
    assert visual.state_dict().keys() == compiled.state_dict().keys()
    assert all(block._compiled_call_impl for block in compiled.vision_tower.blocks)
    assert not any(block._compiled_call_impl for block in copy.deepcopy(compiled).vision_tower.blocks)


def step(policy: HyVLAPolicy | Adapted, length: int, rows: int) -> tuple[dict[str, float], list[Tensor]]:
    """Metrics and gradients of a step on a batch whose instructions have this length."""
    torch.manual_seed(length)
    batch = random_batch(policy, rows, rows)  # type: ignore[arg-type]  # adapters look like the model
    seen = batch.observation
    assert seen is not None
    cut = replace(seen, tokens=seen.tokens[:, :length], token_mask=seen.token_mask[:, :length])
    learner = Learner(policy, seed=0)
    learner.add("sft", FlowMatching(ALL, 2), Optimiser(lr=1e-3, steps=10))
    metrics = learner.step("sft", replace(batch, observation=cut))
    gradients = [value.grad for group in policy.parameter_groups().values() for value in group]
    return metrics, [gradient.clone() for gradient in gradients if gradient is not None]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("lora", [False, True])
def test_a_compiled_step_has_the_loss_and_gradients_of_a_plain_one(lora: bool, checkpointing: bool) -> None:
    results = []
    for is_compiled in (False, True, True):
        policy: Any = make_policy()
        if checkpointing:
            policy.gradient_checkpointing_enable()
        if lora:
            policy = Adapted(policy, ALL, rank=2, alpha=4.0, targets=("attention", "mlp"))
        if is_compiled:
            compile_blocks(policy)
        results.append([step(policy, length, rows=3) for length in (12, 9, 11, 12)])
    for plain, once, again in zip(*results, strict=True):
        assert once[0] == pytest.approx(plain[0], rel=1e-4)
        torch.testing.assert_close(once[1], plain[1], atol=1e-4, rtol=1e-3)
        assert once[0] == again[0]


@pytest.mark.slow
def test_changing_lengths_and_rows_do_not_compile_without_end() -> None:
    policy = make_policy()
    compile_blocks(policy)
    counts = []
    for length, rows in ((12, 4), (9, 4), (11, 3), (8, 5), (13, 4), (10, 6)):
        step(policy, length, rows)
        counts.append(len(_debug_get_cache_entry_list(DecoderLayer.forward.__code__)))
    assert counts[-1] == counts[3] < RECOMPILE_LIMIT


def test_a_machine_without_a_compiler_is_refused_with_the_remedy() -> None:
    check_compiler()
    with (
        inductor.patch({"cpp.cxx": (None, "no-such-compiler")}),
        pytest.raises(UserError, match=r"g\+\+ and python3-dev.* there is no compiler; install one"),
    ):
        check_compiler()
