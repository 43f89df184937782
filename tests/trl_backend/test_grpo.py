"""`backend: trl` of GRPO: TRL's steps on fixed answers are those of the Learner."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from algos.grpo import GRPO, GRPOOptions, group_advantages
from rewards.rubric import Breakdown, Rewards
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.checkpoint import CheckpointInfo, read_info
from rl_lab.records.token_batches import rollout_batch
from rl_lab.records.types import Sampling, all_completions, filled
from rl_lab.trl_backend.grpo import Generation, RollOut, train_grpo
from rl_lab.trl_backend.trainer import Settings, load_vlm
from tests.trl_backend.builders import FixedAnswers, make_folder, make_item
from tests.trl_backend.engine import engine

SIZE = 4
FIRST = ("mismatch/", "importance/")
"""What TRL tells of the first of a batch's optimizer steps alone."""


def batches(steps: int) -> list[list[Any]]:
    """Two items a step: one picture, and two or none."""
    return [[make_item(2 * step), make_item(2 * step + 1, num_images=2 * (step % 2))] for step in range(steps)]


class Run:
    """A run of TRL and what it told; without `roll_out` on fixed answers."""

    def __init__(
        self,
        tmp: Path,
        steps: int,
        options: GRPOOptions,
        optimiser: Optimiser,
        roll_out: RollOut | None = None,
        rewards: Rewards | None = None,
    ) -> None:
        self.folder, self.output = make_folder(tmp / "in"), tmp / "out"
        self.answers = FixedAnswers(self.folder, SIZE)
        self.metrics: dict[int, dict[str, float]] = {}
        self.records: list[Generation] = []
        train_grpo(
            self.folder,
            batches(steps),
            options,
            Settings(optimiser),
            roll_out or self.answers,
            rewards or Rewards(),
            self.output,
            self.metrics.__setitem__,
            self.records.append,
        )


def learner_run(run: Run, steps: int, options: GRPOOptions, optimiser: Optimiser) -> tuple[Any, list[dict[str, float]]]:
    """The same steps by the Learner, on the answers and rewards that TRL saw."""
    start = load_vlm(run.folder)
    model: Any = start.model
    reference = load_vlm(run.folder).model if options.beta else None
    objective = GRPO(options, reference=reference)
    learner = Learner(model, seed=0)
    learner.add("grpo", objective, optimiser)
    metrics = []
    for step, items in enumerate(batches(steps)):
        groups, rewards = run.records[step].groups, cast(Any, run.records[step].breakdown.rewards)
        advantages = group_advantages(torch.tensor(rewards).view(len(items), SIZE), options.scale_rewards)
        groups = filled(groups, advantage=advantages.flatten().tolist(), reward=rewards)
        batch = rollout_batch(groups, start.processor.image_processor)
        if options.num_iterations > 1:
            batch = objective.prepare(model, batch)
        lines = [learner.step("grpo", batch) for _ in range(options.num_iterations)]
        metrics.append(lines[-1] | {name: lines[0][name] for name in lines[0] if name.startswith(FIRST)})
    return model, metrics


LOSS: dict[str, Any] = {"abs": 1e-5, "rel": 1e-4}
"""Measured over all tests here: losses 8e-7, gradient norms a relative 6e-6, with one thread on a CPU, in float32."""
WEIGHTS = 1e-3
"""Norm of the difference of all weights over that of the way they went; measured: 1.7e-4 after one step, 6.5e-5 after
three. AdamW steps by the gradient's sign where the gradient is as small as its rounding errors."""


def distance(one: Any, other: Any) -> float:
    """Norm of the difference of two models' weights."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return sum(float((left - right).float().square().sum()) for left, right in pairs) ** 0.5


def check_same(run: Run, steps: int, options: GRPOOptions, optimiser: Optimiser) -> None:
    model, metrics = learner_run(run, steps, options, optimiser)
    assert sorted(run.metrics) == list(range(1, len(metrics) + 1))
    for step, ours in enumerate(metrics, start=1):
        theirs = run.metrics[step]
        names = [name for name in theirs if name in ours and name != "weight_version"]
        assert {"loss", "grad_norm", "lr", "entropy", "clip/region"} <= set(names)
        assert {name: theirs[name] for name in names} == pytest.approx({name: ours[name] for name in names}, **LOSS)
    theirs, start = load_vlm(run.output).model, load_vlm(run.folder).model
    assert distance(model, theirs) < WEIGHTS * distance(start, theirs)


def test_a_step_of_trl_on_a_table_of_answers_is_the_learners(tmp_path: Path) -> None:
    options, optimiser = GRPOOptions(num_generations=SIZE, max_completion_length=32), Optimiser(lr=2e-4, steps=1)
    run = Run(tmp_path, 1, options, optimiser)
    check_same(run, 1, options, optimiser)
    told = run.metrics[1]
    assert told["grad_norm"] > 0.1
    assert told["reward/mean"] == told["reward/answer"] > 0
    assert told["mismatch/mean"] > 0.01
    step = run.records[0]
    assert (step.number, [group.item.id for group in step.groups]) == (1, ["item-0", "item-1"])
    assert sum(step.breakdown.rewards) / 8 == pytest.approx(told["reward/mean"])


def test_the_checkpoint_is_like_the_first_one(tmp_path: Path) -> None:
    options = GRPOOptions(num_generations=SIZE, max_completion_length=32, beta=0.1)
    run = Run(tmp_path, 1, options, Optimiser(lr=2e-4, steps=1))
    names = {path.name for path in run.folder.iterdir()}
    assert {path.name for path in run.output.iterdir()} == names | {"lab.json"}
    for name in names - {"model.safetensors"}:
        assert (run.output / name).read_bytes() == (run.folder / name).read_bytes(), name
    before, after = (load_file(folder / "model.safetensors") for folder in (run.folder, run.output))
    assert {name: tensor.shape for name, tensor in before.items()} == {name: t.shape for name, t in after.items()}
    assert read_info(run.output) == CheckpointInfo(weight_version=1, steps=1)


VARIANTS: list[dict[str, Any]] = [
    {},
    {"beta": 0.1},
    {"num_iterations": 2},
    {"temperature": 0.8, "loss_type": "grpo", "epsilon_high": 0.35},
    {"vllm_importance_sampling_mode": "token_truncate", "vllm_importance_sampling_clip_max": 1.02},
    {"mask_truncated_completions": True, "scale_rewards": "none", "loss_type": "dr_grpo"},
    {"vllm_importance_sampling_correction": False, "importance_sampling_level": "sequence", "loss_type": "bnpo"},
]


@pytest.mark.slow
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda item: "-".join(map(str, item.values())) or "default")
def test_the_first_steps_are_the_learners(changes: dict[str, Any], tmp_path: Path) -> None:
    options = GRPOOptions(**{"num_generations": SIZE, "max_completion_length": 32} | changes)
    optimiser = Optimiser(lr=2e-4, steps=3 * options.num_iterations, warmup=2, weight_decay=0.1)
    run = Run(tmp_path, 3, options, optimiser)
    check_same(run, 3, options, optimiser)
    assert run.answers.versions == [0, 1, 2]
    assert all(values["grad_norm"] > 0 for values in run.metrics.values())


def test_answers_and_items_that_do_not_fit_are_told(tmp_path: Path) -> None:
    options, optimiser = GRPOOptions(num_generations=SIZE), Optimiser(lr=2e-4, steps=1)
    with pytest.raises(ValueError, match=r"2 prompts need 4 answers each, not \[3, 3\]"):
        Run(tmp_path, 1, options, optimiser, lambda prompts, snapshot: [[cast(Any, None)] * 3 for _ in prompts])
    uneven, nothing = [[make_item(0)], [make_item(1), make_item(2)]], cast(Any, None)
    with pytest.raises(ValueError, match=r"batches have \[1, 2\] items"):
        train_grpo(tmp_path, uneven, options, Settings(optimiser), nothing, Rewards(), tmp_path, nothing)


class Spread(Rewards):
    """A model without training earns nothing; this tells its answers apart."""

    def breakdown(self, prompts: Any, completions: Any, **columns: Any) -> Breakdown:
        rewards: list[float | None] = [len(text) % 5 / 4 for text in completions]
        return Breakdown(rewards, {"answer": rewards})


@pytest.mark.slow
def test_the_first_steps_with_an_engine_are_the_learners(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
    options = GRPOOptions(num_generations=SIZE, max_completion_length=12)
    optimiser = Optimiser(lr=2e-4, steps=3)
    with engine(make_folder(tmp_path / "first"), Sampling(max_tokens=12, num_generations=SIZE)) as roll_out:
        run = Run(tmp_path, 3, options, optimiser, roll_out, Spread())
    check_same(run, 3, options, optimiser)
    for step, told in run.metrics.items():
        assert told["mismatch/max"] < 1e-3, "the engine drew with other weights than the trainer's"
        assert told["grad_norm"] > 0
        assert {answer.weight_version for answer in all_completions(run.records[step - 1].groups)} == {step - 1}
