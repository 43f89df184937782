"""Whole training stages on synthetic records: adapters instead of weights, over two rounds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import LoRAConfig, ModelConfig
from rl_lab.learner.actions import OptimisePlan, SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.model.lora import BaseWeights
from rl_lab.records.episodes import write_episodes, write_pairs
from tests.support.episodes import episode, pair
from tests.support.trainings import trained

STEPS = {"steps": 4, "batch_size": 4, "warmup": 1}
LORA = LoRAConfig(rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> Path:
    """Demonstrations, pairs, and a policy after SFT."""
    folder = tmp_path_factory.mktemp("records")
    write_episodes(folder / "demos", [episode(1), episode(2)])
    write_pairs(folder / "pairs", [pair(1), pair(2)])
    plan = SFTPlan(ModelConfig(), SFTConfig(**STEPS), folder / "demos", stride=1, seed=0)
    trained(plan, folder / "sft")
    return folder


def optimise_plan(records: Path, policy: str = "sft", **changes) -> OptimisePlan:
    plan = OptimisePlan(
        method="rpro",
        round=1,
        settings=OptimiseConfig(**STEPS, train=("vision", "vlm", "expert"), lora=LORA),
        objective=ObjectiveConfig(),
        mix=(0.8, 0.2),
        policy=records / policy,
        sft=records / "sft",
        demos=records / "demos",
        stride=1,
        pairs=(records / "pairs",),
        seed=0,
    )
    return replace(plan, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(one: Path, other: Path) -> set[str]:
    before, after = weights(one), weights(other)
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_a_round_with_adapters_changes_the_adapted_products_and_keeps_the_layout(records, tmp_path):
    training = trained(optimise_plan(records), tmp_path / "round1")
    assert isinstance(training.parts.objective.reference, BaseWeights)
    names = changed(records / "sft", tmp_path / "round1")
    assert names and all("_proj" in name or "attn" in name or "mlp" in name for name in names)


def test_the_next_round_takes_the_merged_policy_as_base_and_reference(records, tmp_path):
    trained(optimise_plan(records), tmp_path / "round1")
    second = optimise_plan(records, policy=tmp_path / "round1", round=2, pairs=(records / "pairs",) * 2)
    second = replace(second, mix=(0.7, 0.15, 0.15))
    training = trained(second, tmp_path / "round2")
    assert isinstance(training.parts.objective.reference, BaseWeights)
    assert changed(tmp_path / "round1", tmp_path / "round2")
    against_sft = replace(second, objective=ObjectiveConfig(reference="sft"))
    assert not isinstance(Training(against_sft).parts.objective.reference, BaseWeights)


def test_a_stage_resumed_from_its_saved_adapters_gives_the_bits_of_the_unbroken_one(records, tmp_path):
    plan = optimise_plan(records)
    trained(plan, tmp_path / "whole")
    trained(plan, tmp_path / "resumed", kill_at=2)
    assert not changed(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("method", ["continued_sft", "dagger", "rpro_trajectory"])
def test_other_methods_train_adapters_too(records, tmp_path, method):
    settings = OptimiseConfig(**STEPS, lora=LORA)
    trained(optimise_plan(records, method=method, settings=settings), tmp_path / method)
    names = changed(records / "sft", tmp_path / method)
    assert names and all(".expert." in name and "_v." in name for name in names)


def test_imitation_adapts_a_checkpoint(records, tmp_path):
    settings = SFTConfig(**STEPS, lora=LORA, ema=0.0)
    plan = SFTPlan(ModelConfig(path=str(records / "sft")), settings, records / "demos", stride=1, seed=0)
    trained(plan, tmp_path / "adapted")
    assert changed(records / "sft", tmp_path / "adapted")


def test_a_bfloat16_policy_with_recomputed_activations_goes_through_both_stages(records, tmp_path):
    settings = SFTConfig(**STEPS, gradient_checkpointing=True, ema_start=2)
    plan = SFTPlan(ModelConfig(dtype="bfloat16"), settings, records / "demos", stride=1, seed=0)
    trained(plan, tmp_path / "sft")
    assert {value.dtype for value in weights(tmp_path / "sft").values()} == {torch.bfloat16}
    settings = OptimiseConfig(**STEPS, train=("vision", "vlm", "expert"), gradient_checkpointing=True, lora=LORA)
    trained(optimise_plan(records, policy=tmp_path / "sft", settings=settings), tmp_path / "round1")
    assert changed(tmp_path / "sft", tmp_path / "round1")


def test_a_codebook_larger_than_the_pictures_give_is_refused(records):
    plan = SFTPlan(ModelConfig(), SFTConfig(**STEPS, code_weight=1.0), records / "demos", stride=1, seed=0)
    with pytest.raises(UserError, match="^sft.num_codes: 64 codes of 15 different patches; use fewer$"):
        plan.build("cpu")


def test_a_batch_in_two_halves_gives_the_gradient_of_the_whole(records):
    batch = {"steps": 1, "batch_size": 32, "warmup": 0, "ema": 0.0}
    lines, moved = [], []
    for at_once in (None, 16):
        auxiliary = {"code_weight": 0.5, "num_codes": 4, "global_weight": 0.5}
        settings = SFTConfig(**batch, **auxiliary, rows_at_once=at_once, schedule="warmup_stable_decay")
        plan = SFTPlan(ModelConfig(), settings, records / "demos", stride=1, seed=0)
        training = Training(plan)
        lines.append(training.run_step())
        (weights,) = (p.grad for p in training.parts.model.parameter_groups()["expert"][:1])
        moved.append(weights)
    assert lines[1] == pytest.approx(lines[0], rel=1e-5)
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-7)
