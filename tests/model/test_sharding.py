"""The sharding plan on two processes: the same steps as one process on the joined batch."""

import copy
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from algos.batch import TokenBatch
from algos.distillation import Distillation, DistillationOptions
from rl_lab.benchmarks.model import image_prompt
from rl_lab.model import backbone
from rl_lab.model.backbone import Pictures
from rl_lab.model.checkpoint import vlm_config
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.sharding import shard
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from tests.support.models import make_observations, make_policy

RANKS, BATCH, STEPS = 2, 4, 3


def loss_of(policy: HyVLAPolicy, rows: torch.Tensor) -> torch.Tensor:
    """Mean flow loss over some rows of a fixed batch."""
    generator = torch.Generator().manual_seed(5)
    actions = torch.randn(BATCH, policy.chunk_size, 20, generator=generator)
    noise = policy.sample_noise(BATCH, generator).to(torch.float32)
    prefix = policy.encode(make_observations(policy, BATCH).select(rows))
    return policy.flow_losses(prefix, actions[rows], noise[rows], torch.linspace(0.1, 1.0, BATCH)[rows]).mean()


def train(policy: HyVLAPolicy, rows: torch.Tensor) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step; plain gradient descent, whose steps scale with rounding errors."""
    parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    history = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_of(policy, rows)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9)
        optimizer.step()
        history.append((loss.item(), (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()))
    return history


def check_language_model(rank: int) -> None:
    """Gradients of the next-token loss are those of one process on all rows."""
    config = preset_config("nano")
    torch.manual_seed(0)
    whole = HunYuanVLMoTForConditionalGeneration(vlm_config(config))
    sharded = shard(copy.deepcopy(whole))
    tokens, pixels, grids = image_prompt(config, BATCH, "cpu")
    whole(tokens, pixel_values=pixels, image_grid_thw=grids, labels=tokens).loss.backward()
    tokens, pixels, grids = (part.chunk(RANKS)[rank] for part in (tokens, pixels, grids))
    sharded(tokens, pixel_values=pixels, image_grid_thw=grids, labels=tokens).loss.backward()
    for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-4, atol=1e-6, msg=name)


def token_batch(tokens: torch.Tensor, pixels: torch.Tensor, grids: torch.Tensor) -> TokenBatch:
    """The last tokens of every row are to be learned; row i shows picture i."""
    rows = range(len(tokens))
    return TokenBatch(
        input_ids=tokens,
        attention_mask=torch.ones_like(tokens, dtype=torch.bool),
        completion_mask=(torch.arange(tokens.shape[1]) >= tokens.shape[1] - 5).expand_as(tokens),
        visual=Pictures(
            pixels, tuple(map(tuple, grids.tolist())), (False,) * len(tokens), tuple((row,) for row in rows)
        ),
    )


def check_token_logprobs(rank: int) -> None:
    """Gradients of chosen tokens' log-probabilities, with logits made in parts, are those of one process."""
    config = preset_config("nano")
    torch.manual_seed(0)
    whole = HunYuanVLMoTForConditionalGeneration(vlm_config(config))
    sharded = shard(copy.deepcopy(whole))
    batch = token_batch(*image_prompt(config, BATCH, "cpu"))
    whole.token_logprobs(batch, temperature=0.8).logprobs.sum().div(batch.num_tokens).backward()
    backbone.LOGITS_AT_ONCE = 3 * config.vlm_sizes.vocab
    batch = batch.select(torch.arange(BATCH).chunk(RANKS)[rank])
    sharded.token_logprobs(batch, temperature=0.8).logprobs.sum().div(batch.num_tokens).backward()
    for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-4, atol=1e-6, msg=name)


def check_distillation(rank: int) -> None:
    """A sharded student learns from a sharded teacher, in parts, what one process learns from one teacher."""
    config = preset_config("nano")
    torch.manual_seed(0)
    whole, teacher = (HunYuanVLMoTForConditionalGeneration(vlm_config(config)) for _ in range(2))
    sharded = shard(copy.deepcopy(whole))
    batch = token_batch(*image_prompt(config, BATCH, "cpu"))
    objective = Distillation(DistillationOptions(), teacher=teacher)
    objective.loss(whole, batch, torch.Generator())[0].backward()
    backbone.LOGITS_AT_ONCE = 2 * 3 * config.vlm_sizes.vocab
    objective = Distillation(DistillationOptions(), teacher=shard(copy.deepcopy(teacher)))
    objective.loss(sharded, batch.select(torch.arange(BATCH).chunk(RANKS)[rank]), torch.Generator())[0].backward()
    for (name, one), other in zip(whole.named_parameters(), sharded.parameters(), strict=True):
        torch.testing.assert_close(other.grad.full_tensor(), one.grad, rtol=1e-4, atol=1e-6, msg=name)


def check_rank(rank: int, folder: Path, expected: dict) -> None:
    """One process of the test."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    policy = make_policy()
    half = copy.deepcopy(policy)
    rows = torch.arange(BATCH).chunk(RANKS)[rank]

    shard(policy)
    stored = sum(parameter.to_local().numel() for parameter in policy.parameters())
    assert stored < 0.51 * sum(parameter.numel() for parameter in policy.parameters())
    history = torch.tensor(train(policy, rows))
    losses = history[:, 0].clone()
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / RANKS, torch.tensor(expected["history"])[:, 0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(history[:, 1], torch.tensor(expected["history"])[:, 1], rtol=1e-5, atol=1e-5)
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(parameter.full_tensor(), expected["weights"][name], rtol=1e-5, atol=1e-5)
    actions = policy.sample_actions(policy.encode(make_observations(policy, 2)), expected["noise"])
    torch.testing.assert_close(actions, expected["actions"], rtol=1e-4, atol=1e-4)

    check_language_model(rank)
    check_token_logprobs(rank)
    check_distillation(rank)
    half.gradient_checkpointing_enable()
    half.train()
    shard(half, compute_dtype=torch.bfloat16)
    loss = loss_of(half, rows)
    loss.backward()
    assert abs(loss.item() - history[0, 0]) < 0.02 * abs(history[0, 0])
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in half.parameters() if parameter.grad is not None} == {torch.float32}
    dist.destroy_process_group()


def test_two_ranks_take_the_steps_of_one_process_on_the_joined_batch(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # the processes import this file
    policy = make_policy()
    history = train(policy, torch.arange(BATCH))
    noise = policy.sample_noise(2, torch.Generator().manual_seed(8))
    expected = {
        "history": history,
        "weights": {name: parameter.detach() for name, parameter in policy.named_parameters()},
        "noise": noise,
        "actions": policy.sample_actions(policy.encode(make_observations(policy, 2)), noise),
    }
    mp.start_processes(check_rank, args=(tmp_path, expected), nprocs=RANKS, start_method="fork")
