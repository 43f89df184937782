"""A joint learner of two ranks takes the steps of one process, and their states pass between them."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.tensor import DTensor

from rl_lab.learner.joint import JointTraining
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import load_policy, load_training_state, save_training_state
from tests.joint.test_training import plan, warm_plan
from tests.support.questions import make_groups

RANKS = 2


def joint_steps(start: Path, demos: Path, rounds: tuple[Path, ...], folder: Path, begin: Path | None = None) -> dict:
    """Both objectives in turn, a roll-back and one more step; the state after the first two is saved on the way."""
    training, lines = JointTraining(plan(start, demos)), []
    training.use_pairs(rounds[:1])
    if begin is None:
        lines += [training.learn(make_groups(start)), training.learn_pairs(1)]
        save_training_state(folder / "middle.pt", training.state_dict())
        _meet()
    else:
        training.load_state_dict(load_training_state(begin))
    lines.append(training.learn(make_groups(start, seed=4)))  # with the cosine of both gradients
    middle = begin or folder / "middle.pt"
    training.roll_back(load_training_state(middle), "rpro", 0.5)
    lines.append(training.learn_pairs(1))
    training.finish(folder / "policy")
    without = training.publish_without("grpo")
    _meet()
    return {"lines": lines, "without": len(without.files), "version": training.version}


def warm_steps(demos: Path, questions: Path, folder: Path) -> dict:
    """A warm start, whose weight average starts on the way and is loaded once."""
    plan, lines = warm_plan(demos, questions), []
    training = Training(plan)
    for _ in range(6):
        lines.append(training.run_step())
    save_training_state(folder / "warm.pt", training.state_dict())
    _meet()
    resumed = Training(plan)
    resumed.load_state_dict(load_training_state(folder / "warm.pt"))
    for _ in range(2):
        lines.append(resumed.run_step())
    resumed.finish(folder / "warm")
    return {"lines": lines}


def _meet() -> None:
    """What the first rank writes, the others may read."""
    if dist.is_initialized():
        dist.barrier()


def on_rank(rank: int, arguments: tuple, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=RANKS)
    mine = folder / "two"
    found = run(*arguments, mine)
    assert any(isinstance(p, DTensor) for p in JointTraining(plan(*arguments[:2])).policy.parameters())
    if rank == 0:
        torch.save(found, mine / "found.pt")
    dist.barrier()
    dist.destroy_process_group()


def run(start, demos, rounds, questions, folder: Path) -> dict:
    """All of it into a folder."""
    folder.mkdir(exist_ok=True)
    return {
        "joint": joint_steps(start, demos, rounds, folder),
        "warm": warm_steps(demos, questions, folder),
    }


def close(found: dict, expected: dict) -> None:
    assert len(found["lines"]) == len(expected["lines"])
    for line, wanted in zip(found["lines"], expected["lines"], strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            assert line[name] == pytest.approx(value, rel=2e-3, abs=1e-4), name


def same_policy(one: Path, other: Path) -> None:
    weights, others = load_policy(one)[0].state_dict(), load_policy(other)[0].state_dict()
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], atol=2e-4, rtol=1e-3, msg=name)


def test_two_ranks_take_the_joint_steps_of_one_process(start, demos, rounds, questions, tmp_path):
    arguments = start, demos, rounds, questions
    expected = run(*arguments, tmp_path / "one")
    mp.start_processes(on_rank, args=(arguments, tmp_path), nprocs=RANKS, start_method="fork")
    found = torch.load(tmp_path / "two" / "found.pt", weights_only=True)
    for part in ("joint", "warm"):
        close(found[part], expected[part])
    for policy in ("policy", "warm"):
        same_policy(tmp_path / "two" / policy, tmp_path / "one" / policy)
    (tmp_path / "back").mkdir()
    resumed = joint_steps(start, demos, rounds, tmp_path / "back", begin=tmp_path / "two" / "middle.pt")
    close({"lines": resumed["lines"]}, {"lines": expected["joint"]["lines"][2:]})
    assert found["joint"]["version"] == expected["joint"]["version"] == resumed["version"]
