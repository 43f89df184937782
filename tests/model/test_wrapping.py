"""What wraps a module works on the policy: its forward pass has a loss, from tensors with names."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from rl_lab.model.policy import HyVLAPolicy
from tests.support.models import make_observations

ROWS = 4


@pytest.fixture
def batch(policy: HyVLAPolicy) -> dict[str, Tensor]:
    observation = make_observations(policy, ROWS)
    fields = {name: getattr(observation, name) for name in ("images", "state", "tokens", "token_mask")}
    return fields | {"actions": torch.randn(ROWS, policy.chunk_size, 20, generator=torch.Generator().manual_seed(1))}


class Rows(Dataset[dict[str, Tensor]]):
    """The rows of a batch."""

    def __init__(self, batch: dict[str, Tensor]) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[index] for name, value in self.batch.items()}


def moved(policy: HyVLAPolicy, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that are no longer what they were."""
    return {name for name, value in policy.named_parameters() if not torch.equal(value, before[name])}


def test_the_loss_is_the_mean_of_the_rows(policy: HyVLAPolicy, batch: dict[str, Tensor]) -> None:
    noise = policy.sample_noise(ROWS, torch.Generator().manual_seed(2))
    time = torch.linspace(0.1, 0.9, ROWS)
    out = policy(**batch, noise=noise, time=time)
    expected = policy.flow_losses(policy.encode(make_observations(policy, ROWS)), batch["actions"], noise, time)
    assert torch.equal(out.losses, expected) and torch.equal(out.loss, expected.mean())
    loss, losses = policy(**batch, noise=noise, time=time, return_dict=False)
    assert torch.equal(losses, expected) and torch.equal(loss, out.loss)
    torch.manual_seed(0)
    first = policy(**batch).loss
    assert first != policy(**batch).loss, "noise and time are drawn anew"


def test_the_trainer_trains_it(policy: HyVLAPolicy, batch: dict[str, Tensor], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in policy.named_parameters()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, per_device_train_batch_size=2, report_to=[], use_cpu=True, save_strategy="no"
    )
    Trainer(policy, arguments, train_dataset=Rows(batch)).train()
    changed = moved(policy, before)
    groups = {id(value) for group in policy.parameter_groups().values() for value in group}
    assert {"model.state_proj.weight", "model.action_out_proj.weight"} <= changed
    assert all(id(policy.get_parameter(name)) in groups for name in changed)


def test_ddp_steps_as_the_policy_alone(policy: HyVLAPolicy, batch: dict[str, Tensor]) -> None:
    given: dict[str, Any] = batch | {
        "noise": policy.sample_noise(ROWS, torch.Generator()),
        "time": torch.full((ROWS,), 0.5),
    }
    policy(**given).loss.backward()
    expected = {name: value.grad for name, value in policy.named_parameters() if value.grad is not None}
    policy.zero_grad()
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(policy, find_unused_parameters=True)
        for _ in range(2):
            policy.zero_grad()
            wrapped(**given).loss.backward()
    finally:
        destroy_process_group()
    assert all(torch.equal(policy.get_parameter(name).grad, grad) for name, grad in expected.items())


def test_adapters_alone_are_trained(policy: HyVLAPolicy, batch: dict[str, Tensor], tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in policy.named_parameters()}
    adapted: Any = get_peft_model(policy, LoraConfig(r=2, target_modules="all-linear"))
    optimizer = torch.optim.SGD([value for value in adapted.parameters() if value.requires_grad], lr=0.01)
    given = batch | {"noise": policy.sample_noise(ROWS, torch.Generator()), "time": torch.full((ROWS,), 0.5)}
    first = adapted(**given).loss
    first.backward()
    optimizer.step()
    assert adapted(**given).loss < first
    adapted.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file()
    merged = adapted.merge_and_unload()
    assert merged is policy and set(before) == {name for name, _ in policy.named_parameters()} and moved(policy, before)
