"""A step makes the host wait for the device once, where the learner reads its numbers.

Three watches: on the CPU no operation runs that waits on CUDA; on the meta device, whose tensors have no values,
nothing can be read at all, before or after; and on a GPU, where there is one, torch itself raises.

What torch does on CUDA inside a step was read, where no GPU could tell: `clip_grad_norm_` keeps norm and factor on the
device (`error_if_nonfinite` is off), and fused AdamW counts its steps there. On the meta device, for which torch has no
fused kernel, the steps are those of the plain one.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from algos.batch import DistillationBatch, FlowBatch, PreferenceBatch, RolloutBatch, TrajectoryBatch, count, indices
from algos.cross_entropy import CrossEntropy
from algos.distillation import Distillation, DistillationOptions
from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from algos.grpo import GRPO, PAPER, GRPOOptions
from rl_lab.benchmarks.rpro import random_batch
from rl_lab.learner import learner as learner_module
from rl_lab.learner.learner import Learner, Optimiser, read
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.token_batches import chat_batch
from tests.language.test_token_batching import chats
from tests.support.models import make_heads, make_policy, vlm_from_policy

ALL = ("vision", "vlm", "expert")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "repeat_interleave"}
"""Operations that read values or make a shape of them; `unique` in all its forms as well."""


class Watch(TorchDispatchMode):
    """Fails at an operation for which the host would wait for a CUDA device, until `over`."""

    over = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if not self.over:
            name = function.overloadpacket.__name__
            waits = name in READS or "unique" in name or self._chooses(name, args) or self._copies(args, kwargs, result)
            assert not waits, f"{function} makes the host wait for the device"
        return result

    @staticmethod
    def _chooses(name: str, args: Any) -> bool:
        """Indexing by a mask, whose true entries have to be counted."""
        if not name.lstrip("_").startswith("index") or len(args) < 2 or not isinstance(args[1], (list, tuple)):
            return False
        return any(isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1])

    @staticmethod
    def _copies(args: Any, kwargs: Any, result: Any) -> bool:
        """A copy from the host that is waited for."""
        source = next((item for item in args if isinstance(item, Tensor)), None)
        moves = isinstance(result, Tensor) and source is not None and result.device.type != source.device.type
        return moves and not (kwargs or {}).get("non_blocking", False)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x.sum()),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.index_put((x > 1,), x[:1]),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(return_inverse=True),
        lambda x: x.repeat_interleave(torch.tensor([1, 2, 3])),
        lambda x: torch.equal(x, x),
        lambda x: x.to("meta"),
    ],
)
def test_the_watch_sees_every_way_to_wait(wait: Callable[[Tensor], Any]) -> None:
    x = torch.arange(3.0)
    with pytest.raises(AssertionError, match="makes the host wait"), Watch():
        wait(x)


def preferences() -> PreferenceBatch:
    torch.manual_seed(1)
    return random_batch(make_policy(), size=6, num_real=2)


def sft() -> tuple[Any, Any, Any]:
    pairs, policy = preferences(), make_policy()
    objective = FlowMatching(ALL, 2, make_heads(policy, 7))
    return policy, objective, FlowBatch(pairs.observation, pairs.winner, truth=torch.zeros(6, 7))


def rpro() -> tuple[Any, Any, Any]:
    return make_policy(), RPRO(make_policy(1).requires_grad_(False), draws_per_sample=2, groups=ALL), preferences()


def rpro_of_trajectories() -> tuple[Any, Any, Any]:
    policy, objective, pairs = rpro()
    batch = TrajectoryBatch(
        pairs.observation,
        pairs.winner,
        pair=torch.tensor([0, 0, 0, 1, 1, 2]),
        is_winner=torch.tensor([True, False, False, True, False, True]),
        source=pairs.source,
        weight_version=pairs.weight_version,
    )
    return policy, objective, batch


def cross_entropy() -> tuple[Any, Any, Any]:
    policy = make_policy()
    return vlm_from_policy(policy), CrossEntropy(), chat_batch(chats(), vlm_processor(policy.config, load_tokenizer()))


def grpo(options: GRPOOptions = PAPER) -> tuple[Any, Any, Any]:
    vlm, _, chat = cross_entropy()
    batch = RolloutBatch(
        **vars(chat),
        rollout_logprobs=torch.where(chat.completion_mask, -1.0, 0.0),
        advantages=torch.tensor([0.5, -0.5, 0.0, 0.0]),
        group=torch.tensor([0, 0, 1, 1]),
        weight_version=torch.tensor([1, 2, 2, 2]),
        finished=torch.tensor([True, False, True, True]),
    )
    return vlm, GRPO(options, reference=vlm_from_policy(make_policy(1)) if options.beta else None), batch


def grpo_with_everything() -> tuple[Any, Any, Any]:
    return grpo(
        GRPOOptions(
            beta=0.1,
            mask_truncated_completions=True,
            importance_sampling_level="sequence",
            vllm_importance_sampling_mode="sequence_mask",
        )
    )


def distillation(top_k: int | None = None) -> tuple[Any, Any, Any]:
    vlm, _, batch = cross_entropy()
    teacher = vlm_from_policy(make_policy(1))
    return vlm, Distillation(DistillationOptions(divergence="jsd", top_k=top_k), teacher=teacher), batch


def distillation_of_top_tokens() -> tuple[Any, Any, Any]:
    return distillation(top_k=3)


def distillation_of_stored_tokens() -> tuple[Any, Any, Any]:
    vlm, _, chat = cross_entropy()
    tokens = torch.arange(3).expand(*chat.input_ids.shape, 3).contiguous()
    logprobs = torch.tensor([-0.5, -1.5, -3.0]).expand_as(tokens)
    batch = DistillationBatch(**vars(chat), teacher_tokens=tokens, teacher_logprobs=logprobs)
    return vlm, Distillation(DistillationOptions(top_k=3)), batch


def make_learner(case: Callable[[], tuple[Any, Any, Any]], device: str) -> tuple[Learner, Any]:
    policy, objective, batch = case()
    held = (getattr(objective, name, None) for name in ("reference", "teacher"))
    for module in (policy, *held, *getattr(objective, "heads", ())):
        if module is not None:
            module.to(device)
    learner = Learner(policy, seed=0)
    learner.add("x", objective, Optimiser(lr=1e-3, steps=5))
    learner.average_weights(0.9, start_step=1)
    return learner, batch.to(device)


on_every_objective = pytest.mark.parametrize(
    "case",
    [
        sft,
        rpro,
        rpro_of_trajectories,
        cross_entropy,
        grpo,
        grpo_with_everything,
        distillation,
        distillation_of_top_tokens,
        distillation_of_stored_tokens,
    ],
)


@on_every_objective
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_step_reads_the_device_once(
    case: Callable[[], tuple[Any, Any, Any]], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, batch = make_learner(case, device)
    for group in learner.tracks["x"].stepper.param_groups:
        group["fused"] = device != "meta"
    reads = []

    def counted(values: Any, of: torch.device) -> list[float]:
        watch.over = True
        reads.append(of.type)
        return [0.0 for _ in values] if device == "meta" else read(values, of)

    monkeypatch.setattr(learner_module, "read", counted)
    for number in (1, 2):
        with Watch() as watch:
            learner.step("x", batch)
        assert reads == [device] * number


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_chunk_is_sampled_without_reading_the_device(device: str) -> None:
    policy, seen = make_policy().to(device), preferences().observation
    assert seen is not None
    observation, noise = seen.to(device), policy.sample_noise(len(seen), torch.Generator())
    with torch.no_grad(), Watch():
        chunks = policy.sample_actions(policy.encode(observation), noise)
    assert chunks.device.type == device


@on_every_objective
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none")
def test_torch_sees_one_wait_in_a_step_on_a_gpu(
    case: Callable[[], tuple[Any, Any, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, batch = make_learner(case, "cuda")
    learner.step("x", batch)  # constants of the model are copied to the device once
    reads = []

    def allowed(values: Any, of: torch.device) -> list[float]:
        torch.cuda.set_sync_debug_mode("default")
        reads.append(read(values, of))
        torch.cuda.set_sync_debug_mode("error")
        return reads[-1]

    monkeypatch.setattr(learner_module, "read", allowed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.step("x", batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(reads) == 1


def test_what_decides_shapes_stays_on_the_host_when_a_batch_moves() -> None:
    batch = grpo()[2].to("meta")
    kept = {name for name, value in vars(batch).items() if isinstance(value, Tensor) and value.device.type == "cpu"}
    assert kept == RolloutBatch.stays_on_host
    assert batch.visual.pixels.is_meta and batch.num_tokens == count(batch.completion_mask)
    assert preferences().to("meta").observation.images.is_meta


def test_the_places_of_a_mask_on_the_device_are_refused_not_waited_for() -> None:
    mask = torch.tensor([[True, False], [False, True]])
    assert indices(mask, "cpu").tolist() == [0, 3]
    with pytest.raises((TypeError, RuntimeError)):
        indices(mask.to("meta"), "meta")


def test_numbers_are_read_exactly_whatever_their_type() -> None:
    values = [torch.tensor(2**40 + 1), torch.tensor(0.1), torch.tensor(True), torch.tensor(1 / 3, dtype=torch.bfloat16)]
    assert read(values, torch.device("cpu")) == [float(value) for value in values]
