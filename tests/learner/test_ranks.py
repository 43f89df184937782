"""A learner of two ranks takes the steps of one process on the same batches, and their checkpoints are the same."""

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from algos.auxiliary import SeeingText
from algos.batch import FlowBatch, PreferenceBatch, RolloutBatch, TrajectoryBatch
from algos.cross_entropy import CrossEntropy
from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from algos.grpo import GRPO, GRPOOptions
from rl_lab.benchmarks.model import image_prompt
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.backbone import Pictures
from rl_lab.model.checkpoint import vlm_config
from rl_lab.model.lora import Adapted
from rl_lab.model.presets import preset_config
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from tests.support.models import make_heads, make_observations, make_policy

RANKS, ROWS, STEPS = 2, 5, 3
"""Rows do not divide by ranks."""
OPTIMISER = Optimiser(lr=1e-3, steps=10, warmup=2, weight_decay=1e-2)


def text_batch(seed: int, pictures_of: tuple[int, ...] = (0, 1, 2)) -> RolloutBatch:
    """Answers with advantages; only some rows show a picture, so that a rank may have none."""
    config = preset_config("nano")
    tokens, pixels, grids = image_prompt(config, ROWS, "cpu")
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(100, 1000, (ROWS, 12), generator=generator)
    shape = (ROWS, tokens.shape[1] + words.shape[1])
    ids, valid = torch.zeros(shape, dtype=torch.long), torch.ones(shape, dtype=torch.bool)
    ids[:, : tokens.shape[1]], ids[:, tokens.shape[1] :] = tokens, words
    for row in set(range(ROWS)) - set(pictures_of):
        ids[row, : tokens.shape[1]], valid[row, : tokens.shape[1]] = 0, False
    learned = torch.zeros(shape, dtype=torch.bool)
    for row in range(ROWS):
        learned[row, shape[1] - 4 - row :] = True
    patches = pixels.split([int(grid.prod()) for grid in grids])
    return RolloutBatch(
        input_ids=ids,
        attention_mask=valid,
        completion_mask=learned,
        visual=Pictures(
            torch.cat([patches[row] for row in pictures_of]),
            tuple(tuple(grids[row].tolist()) for row in pictures_of),
            (False,) * len(pictures_of),
            tuple((pictures_of.index(row),) if row in pictures_of else () for row in range(ROWS)),
        ),
        rollout_logprobs=torch.full(shape, -5.0) * learned,
        advantages=torch.randn(ROWS, generator=generator),
        group=torch.arange(ROWS),
        weight_version=torch.ones(ROWS, dtype=torch.long),
        finished=torch.ones(ROWS, dtype=torch.bool),
    )


def make_vlm() -> HunYuanVLMoTForConditionalGeneration:
    torch.manual_seed(0)
    return HunYuanVLMoTForConditionalGeneration(vlm_config(preset_config("nano")))


def flow_batch(policy, seed: int) -> FlowBatch:
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randn(ROWS, policy.chunk_size, 20, generator=generator)
    return FlowBatch(make_observations(policy, ROWS, seed), actions, torch.randn(ROWS, 3, generator=generator))


def preference_batch(policy, seed: int) -> PreferenceBatch:
    generator = torch.Generator().manual_seed(seed)
    winner, loser = (torch.randn(ROWS, policy.chunk_size, 20, generator=generator) for _ in range(2))
    identical = torch.tensor([False, True, False, False, True])
    loser[identical] = winner[identical]
    source, version = torch.tensor([0, 2, 0, 1, 2]), torch.tensor([2, 0, 2, 1, 0])
    return PreferenceBatch(make_observations(policy, ROWS, seed), winner, loser, identical, source, version)


def trajectory_batch(policy, seed: int) -> TrajectoryBatch:
    """Three pairs, the second of winner rows alone."""
    rows = preference_batch(policy, seed)
    pair, winner = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([True, False, True, True, False])
    return TrajectoryBatch(rows.observation, rows.winner, pair, winner, rows.source, rows.weight_version)


def cross_entropy(at_once=None):
    torch.manual_seed(1)
    objective = SeeingText(CrossEntropy(), make_heads(make_policy(), 3)[1:])
    return make_vlm(), objective, [text_batch(seed, (0, 1)) for seed in range(STEPS)], at_once


def grpo(at_once=None):
    objective = GRPO(GRPOOptions(beta=0.05, loss_type="dapo", temperature=0.9), reference=make_vlm().eval())
    return make_vlm(), objective, [text_batch(seed, (0, 1)) for seed in range(STEPS)], at_once


def flow(at_once=None):
    policy = make_policy()
    torch.manual_seed(1)
    objective = FlowMatching(draws_per_sample=2, heads=make_heads(policy, 3))
    return policy, objective, [flow_batch(policy, seed) for seed in range(STEPS)], at_once


def rpro(at_once=None):
    policy = make_policy()
    objective = RPRO(copy.deepcopy(policy).eval().requires_grad_(False), draws_per_sample=2)
    return policy, objective, [preference_batch(policy, seed) for seed in range(STEPS)], at_once


def rpro_trajectory(at_once=None):
    policy, objective, _, _ = rpro()
    return policy, objective, [trajectory_batch(policy, seed) for seed in range(STEPS)], at_once


def adapted(at_once=None):
    model, objective, batches, _ = cross_entropy()
    torch.manual_seed(3)
    trained = Adapted(model, objective.groups, rank=4, alpha=8.0, targets=("attention", "mlp"))
    return trained, objective, batches, at_once


CASES = {
    "cross_entropy": (cross_entropy, None),
    "grpo": (grpo, None),
    "grpo_in_parts": (grpo, 2),
    "flow": (flow, None),
    "flow_in_parts": (flow, 2),
    "rpro": (rpro, None),
    "rpro_trajectory": (rpro_trajectory, None),
    "adapters": (adapted, None),
}


def make_learner(case: str) -> tuple[Learner, list, int | None]:
    make, at_once = CASES[case]
    policy, objective, batches, at_once = make(at_once)
    learner = Learner(policy, seed=7)
    learner.add("method", objective, OPTIMISER)
    learner.average_weights(0.5, start_step=2)
    return learner, batches, at_once


def run(case: str) -> dict:
    """Metrics of each step, and the state after the first steps and after all."""
    learner, batches, at_once = make_learner(case)
    first = learner.step("method", batches[0], at_once)
    middle = copy.deepcopy(learner.state_dict())
    lines = [first] + [learner.step("method", batch, at_once) for batch in batches[1:]]
    return {"lines": lines, "middle": middle, "end": learner.state_dict()}


def assert_states_close(state, expected, path: str = "") -> None:
    if isinstance(expected, dict):
        assert state.keys() == expected.keys(), path
        for key, value in expected.items():
            assert_states_close(state[key], value, f"{path}/{key}")
    elif isinstance(expected, (list, tuple)):
        for index, value in enumerate(expected):
            assert_states_close(state[index], value, f"{path}/{index}")
    elif isinstance(expected, torch.Tensor):
        # AdamW divides by the root of the second moment: where a gradient is a rounding error, so is its step's sign.
        off = ~torch.isclose(state, expected, rtol=1e-4, atol=2e-5)
        assert off.sum() <= 2 + 1e-4 * off.numel(), f"{path}: {off.sum()} of {off.numel()}"
        torch.testing.assert_close(state, expected, rtol=1e-4, atol=OPTIMISER.lr, msg=lambda text: f"{path}: {text}")
    else:
        assert state == expected, path


def check_case(case: str, folder: Path, expected: dict) -> None:
    """The steps of one process, and the same from the checkpoint that one process saved."""
    found = run(case)
    for line, wanted in zip(found["lines"], expected["lines"], strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=2e-4, abs=2e-5), (case, name)
    learner, batches, at_once = make_learner(case)
    assert any(isinstance(parameter, DTensor) for parameter in learner.tracks["method"].parameters)
    learner.load_state_dict(expected["middle"])
    for batch in batches[1:]:
        learner.step("method", batch, at_once)
    resumed = learner.state_dict()
    if dist.get_rank() == 0:
        for state in (found["end"], resumed):
            assert_states_close(state, expected["end"], case)
        torch.save(found["middle"], folder / f"{case}.two.pt")


def check_rank(rank: int, cases: list[str], folder: Path) -> None:
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    for case in cases:
        check_case(case, folder, torch.load(folder / f"{case}.one.pt", weights_only=True))
        dist.barrier()
    dist.destroy_process_group()


def check_on_two_ranks(cases: list[str], folder: Path) -> None:
    """All cases, by one process and by two, which start from its imports."""
    for case in cases:
        torch.save(run(case), folder / f"{case}.one.pt")
    mp.start_processes(check_rank, args=(cases, folder), nprocs=RANKS, start_method="fork")
    for case in cases:
        learner, batches, at_once = make_learner(case)
        learner.load_state_dict(torch.load(folder / f"{case}.two.pt", weights_only=True))
        for batch in batches[1:]:
            learner.step("method", batch, at_once)
        end = torch.load(folder / f"{case}.one.pt", weights_only=True)["end"]
        assert_states_close(learner.state_dict(), end, case)


USUAL = ("grpo_in_parts", "rpro", "adapters")
"""Between them these shard every kind of batch, reference and parameter; the others take as long again."""


@pytest.mark.parametrize(
    "cases",
    [USUAL, pytest.param(sorted(CASES.keys() - set(USUAL)), marks=pytest.mark.slow)],
    ids=["usual", "others"],
)
def test_two_ranks_take_the_steps_of_one_process_and_checkpoints_pass_between_them(tmp_path, cases):
    check_on_two_ranks(list(cases), tmp_path)
