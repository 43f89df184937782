"""GRPO against TRL's own `GRPOTrainer`, from rewards to loss and gradients, on the lab's language model.

TRL scores given answers (`_generate_and_score_completions`), the weights then move, and TRL computes its loss
(`_compute_loss`). The same answers go through `group_advantages`, `GRPO.prepare` and `GRPO.loss`.
"""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head

from algos.batch import RolloutBatch
from algos.grpo import GRPO, GRPOOptions, LossType, engine_correction, group_advantages
from rl_lab.model import backbone
from rl_lab.model.tokenizer import load_tokenizer
from tests.support.models import gradients_of, make_policy, vlm_from_policy

GROUPS, SIZE = 3, 4
REWARDS = torch.tensor([[1.0, 0.0, 0.5, 0.25], [1.0, 1.0, 1.0, 1.0], [0.0, float("nan"), 1.0, 0.75]])
"""The second group has no signal; one reward call failed."""
VERSION = torch.zeros(GROUPS * SIZE, dtype=torch.long)
CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}


def answers(eos: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and answers as token ids; every third answer is cut off."""
    draw = torch.Generator().manual_seed(0)
    prompts, completions = [], []
    for row in range(GROUPS * SIZE):
        length = int(torch.randint(2, 7, (1,), generator=draw))
        prompts.append([100 + row // SIZE] * (3 + row // SIZE))
        drawn = torch.randint(200, 3000, (length,), generator=draw).tolist()
        completions.append(drawn if row % 3 == 2 else [*drawn[:-1], eos])
    return prompts, completions


def tokenizer() -> Any:
    return load_tokenizer()


def make_trainer(model: nn.Module, folder: Path, options: dict[str, Any]) -> Any:
    """TRL's trainer with these options; the answers and rewards above stand in for generation."""
    args = GRPOConfig(
        str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        num_generations=SIZE,
        per_device_train_batch_size=GROUPS * SIZE,
        remove_unused_columns=False,
        **options,
    )

    def reward(completions: list[Any], **_: Any) -> list[float | None]:
        return [None if value != value else value for value in REWARDS.flatten().tolist()]

    data = Dataset.from_list([{"prompt": "where"}] * GROUPS * SIZE)
    trainer: Any = GRPOTrainer(model, reward_funcs=reward, args=args, train_dataset=data, processing_class=tokenizer())  # type: ignore[arg-type]
    trainer.current_gradient_accumulation_steps = 1
    return trainer


def noisy(logprobs: Tensor, mask: Tensor) -> Tensor:
    """The trainer's log-probabilities as an engine with small errors, and a large one, would give them."""
    noise = 0.1 * torch.randn(logprobs.shape, generator=torch.Generator().manual_seed(3))
    noise[0, -1] += 2.0
    return (logprobs + noise) * mask


class Both:
    """One model, one batch of answers, scored by TRL and by us."""

    def __init__(self, folder: Path, options: dict[str, Any], beta: float = 0.0) -> None:
        self.model: Any = vlm_from_policy(make_policy())
        self.reference = copy.deepcopy(self.model) if beta else None
        self.trainer = make_trainer(self.model, folder, options)
        if self.reference is not None:
            with torch.no_grad():
                perturb(self.reference, 0.05, seed=5)
        self.objective = GRPO(
            GRPOOptions(**options | {"num_generations": SIZE, "beta": beta}), reference=self.reference
        )
        self.batch = self.our_batch()
        before = self.objective.prepare(self.model, self.batch)
        assert before.old_logprobs is not None
        self.batch = replace(before, rollout_logprobs=noisy(before.old_logprobs, before.completion_mask))
        if not self.objective.options.vllm_importance_sampling_correction:
            self.batch = replace(self.batch, old_logprobs=None)  # then TRL does not recompute them either
        self.inputs = self.trl_inputs(beta)
        with torch.no_grad():
            perturb(self.model, 0.03, seed=7)

    def our_batch(self) -> RolloutBatch:
        eos = tokenizer().eos_token_id
        prompts, completions = answers(eos)
        rows = [prompt + answer for prompt, answer in zip(prompts, completions, strict=True)]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
        valid, learned = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
        for index, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            ids[index, : len(row)] = torch.tensor(row)
            valid[index, : len(row)], learned[index, len(prompt) : len(row)] = True, True
        return RolloutBatch(
            input_ids=ids,
            attention_mask=valid,
            completion_mask=learned,
            rollout_logprobs=torch.zeros(ids.shape),
            advantages=group_advantages(REWARDS, self.objective.options.scale_rewards).flatten(),
            group=torch.arange(GROUPS).repeat_interleave(SIZE),
            weight_version=VERSION,
            finished=torch.tensor([answer[-1] == eos for answer in completions]),
        )

    def trl_inputs(self, beta: float) -> dict[str, Any]:
        prompts, completions = answers(tokenizer().eos_token_id)
        pairs = zip(self.batch.rollout_logprobs, self.batch.completion_mask, strict=True)
        logprobs = [row[mask].tolist() for row, mask in pairs]
        texts = ["" for _ in completions]
        trainer = self.trainer
        trainer._generate = lambda _: (prompts, completions, None, texts, logprobs, {}, None, None)
        trainer.use_vllm = True  # its correction of the engine's log-probabilities
        trainer.beta = beta
        if self.reference is not None:
            trainer.ref_model = copy.deepcopy(self.reference)
            add_fused_lm_head(trainer.ref_model, temperature=trainer.temperature)
        return trainer._generate_and_score_completions([{"prompt": "where"}] * GROUPS * SIZE)

    def losses(self) -> tuple[Tensor, Tensor]:
        ours, self.metrics = self.objective.loss(self.model, self.batch, torch.Generator())
        return ours, self.trainer._compute_loss(self.model, self.inputs)


def perturb(model: nn.Module, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.add_(scale * torch.randn(parameter.shape, generator=draw) * parameter.abs().mean())


@pytest.fixture(autouse=True)
def _same_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRL scores the whole vocabulary; the lab leaves out what its engine never draws."""
    monkeypatch.setattr(backbone, "NEVER_DRAWN_BIAS", 0.0)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"epsilon_high": 0.35},
    {"delta": 1.02},
    {"importance_sampling_level": "sequence"},
    {"mask_truncated_completions": True},
    {"temperature": 0.7},
    {"vllm_importance_sampling_correction": False},
    {"scale_rewards": "none", "max_completion_length": 64},
    {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.05},
    {"vllm_importance_sampling_mode": "sequence_truncate", "vllm_importance_sampling_clip_max": 1.05},
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda item: "-".join(map(str, item.values())) or "default")
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_loss_and_gradients_are_trls(loss_type: str, options: dict[str, Any], tmp_path: Path) -> None:
    both = Both(tmp_path, {"loss_type": loss_type, "epsilon": 0.01, "epsilon_high": 0.012} | options)
    ours, theirs = both.losses()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    found, expected = gradients_of(both.model, ours), gradients_of(both.model, theirs)
    assert found.keys() == expected.keys()
    assert max(value.abs().max() for value in expected.values()) > 1e-3
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("corrected", [True, False])
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("loss_type", get_args(LossType))
def test_the_kl_term_is_trls(loss_type: str, level: str, corrected: bool, tmp_path: Path) -> None:
    options = {"loss_type": loss_type, "importance_sampling_level": level, "use_bias_correction_kl": corrected}
    both = Both(tmp_path, options, beta=0.3)
    ours, theirs = both.losses()
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert both.metrics["kl"] > 1e-4
    found, expected = gradients_of(both.model, ours), gradients_of(both.model, theirs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_the_advantages_are_trls(scale: str, tmp_path: Path) -> None:
    both = Both(tmp_path, {"scale_rewards": scale})
    torch.testing.assert_close(both.batch.advantages, both.inputs["advantages"], **CLOSE)


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_engines_correction_is_trls(mode: str, tmp_path: Path) -> None:
    options = {"vllm_importance_sampling_mode": mode, "vllm_importance_sampling_clip_max": 1.1}
    both = Both(tmp_path, options | {"vllm_importance_sampling_clip_min": 0.9})
    batch, mask = both.batch, both.batch.completion_mask
    assert batch.old_logprobs is not None
    found = engine_correction(batch.old_logprobs, batch.rollout_logprobs, mask, both.objective.options)
    theirs = both.inputs["importance_sampling_ratio"]
    if mode.startswith("token"):
        found, theirs = found[mask], theirs[both.inputs["completion_mask"].bool()]
    torch.testing.assert_close(found, theirs, **CLOSE)


def test_the_metrics_are_trls(tmp_path: Path) -> None:
    both = Both(tmp_path, {"epsilon": 0.01, "epsilon_high": 0.012})
    both.losses()
    theirs = {name: values[-1] for name, values in both.trainer._metrics["train"].items()}
    names = {
        "clip/low": "clip_ratio/low_mean",
        "clip/high": "clip_ratio/high_mean",
        "clip/region": "clip_ratio/region_mean",
        "entropy": "entropy",
        "mismatch/mean": "sampling/sampling_logp_difference/mean",
        "mismatch/max": "sampling/sampling_logp_difference/max",
    }
    found = {name: float(both.metrics[name]) for name in names}
    assert found == pytest.approx({name: theirs[other] for name, other in names.items()}, rel=1e-4, abs=1e-6)
    assert found["clip/low"] > 0
    assert found["clip/high"] > 0


def test_the_defaults_are_trls(tmp_path: Path) -> None:
    config = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    ours = vars(GRPOOptions())
    assert ours == {name: getattr(config, name) for name in ours}
