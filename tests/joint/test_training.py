"""The joint learner on a nano policy: both objectives step on one set of weights, and a saved state is all of it."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from algos.grpo import GRPOOptions
from algos.methods import find_method
from rl_lab.common.errors import UserError
from rl_lab.config.actions import BuffersConfig, ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.language import ColdStartConfig, RLConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.joint import JointPlan, JointTraining
from rl_lab.learner.plans import Training
from rl_lab.learner.warm_start import ACTIONS, WarmStartPlan
from rl_lab.model.checkpoint import (
    CheckpointInfo,
    load_policy,
    load_training_state,
    read_info,
    save_policy,
    save_training_state,
)
from rl_lab.model.policy import HyVLAPolicy
from tests.support.models import save_nano_language_model
from tests.support.questions import make_groups

ALL = ("vision", "vlm", "expert")


def plan(start: Path, demos: Path, parts=("grpo", "rpro"), train=ALL, **changes) -> JointPlan:
    values = {
        "policy": start,
        "demos": demos,
        "stride": 1,
        "parts": parts,
        "grpo": GRPOOptions(num_generations=3, max_completion_length=16),
        "rl": RLConfig(steps=4, warmup=0, lr=1e-3),
        "method": find_method("rpro"),
        "rpro": ObjectiveConfig(),
        "optimise": OptimiseConfig(steps=4, warmup=0, batch_size=6, draws_per_sample=1, train=train),
        "buffers": BuffersConfig(),
        "rounds": 2,
        "cosine_every": 1,
        "seed": 3,
    }
    return JointPlan(**values | changes)


def weights(training) -> dict[str, torch.Tensor]:
    return copy.deepcopy(training.policy.state_dict())


def same(one, other) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one | other)


def test_both_objectives_step_on_one_model_and_every_change_is_a_version(start, demos, rounds):
    training = JointTraining(plan(start, demos))
    assert training.version == 1
    first = training.learn(make_groups(start))
    assert training.version == 2 and not any(name.startswith("cosine/") for name in first), "RPRO has no gradient yet"
    assert first["drift/vlm"] > 0 and first["drift/expert"] == 0
    training.use_pairs(rounds[:1])
    line = training.learn_pairs(2)
    assert training.version == 3 and line["drift/expert"] > 0 and "loss/preference" in line
    assert training.learner.tracks["rpro"].step == 2
    third = training.learn(make_groups(start, seed=4))
    assert {"cosine/vision", "cosine/vlm", "cosine/shared"} <= set(third)
    assert all(-1 <= third[f"cosine/{group}"] <= 1 for group in ("vision", "vlm", "shared"))
    snapshot = training.publish()
    assert snapshot.version == 4 and "norm_stats.safetensors" in snapshot.files, "engines and simulators both read it"


def test_the_cosine_is_measured_without_a_trace(start, demos, rounds):
    found = []
    for every in (0, 1):
        training = JointTraining(plan(start, demos, cosine_every=every))
        training.use_pairs(rounds[:1])
        training.learn_pairs(1)
        training.learn(make_groups(start))
        found.append(weights(training))
    assert same(*found)


def test_batches_learned_in_parts_give_the_steps_of_whole_ones(start, demos, rounds):
    def lines(at_once: int | None) -> list[dict[str, float]]:
        made = plan(start, demos)
        parts = {name: getattr(made, name).model_copy(update={"rows_at_once": at_once}) for name in ("rl", "optimise")}
        training = JointTraining(plan(start, demos, **parts))
        training.use_pairs(rounds[:1])
        return [training.learn(make_groups(start)), training.learn_pairs(1)]

    for whole, parts in zip(lines(None), lines(2), strict=True):
        assert parts == pytest.approx(whole, rel=1e-3, abs=1e-5)


def test_the_reference_is_the_start_whatever_the_towers_become(start, demos, rounds):
    """With the expert alone trained by RPRO, its policy reads moving towers and its reference those of the start."""
    training = JointTraining(plan(start, demos, train=("expert",)))
    training.use_pairs(rounds[:1])
    line = training.learn_pairs(1)
    assert line["loss/preference"] == pytest.approx(np.log(2), abs=1e-4), "policy and reference are one model yet"
    before = training.reference.state_dict()
    for seed in range(3):
        training.learn(make_groups(start, seed=seed))
    after = training.learn_pairs(1)
    assert abs(after["flow/winner"] - after["flow/winner_reference"]) > 1e-4, "the towers have moved under the policy"
    assert same(before, load_policy(start)[0].state_dict())


def test_a_saved_state_goes_on_to_the_same_bits(start, demos, rounds, tmp_path):
    def on(training) -> list[dict[str, float]]:
        lines = [training.learn(make_groups(start, seed=7))]
        training.use_pairs(rounds)
        return [*lines, training.learn_pairs(2), training.learn(make_groups(start, seed=9))]

    whole = JointTraining(plan(start, demos))
    whole.learn(make_groups(start))
    whole.use_pairs(rounds[:1])
    whole.learn_pairs(2)
    save_training_state(tmp_path / "state.pt", whole.state_dict())
    resumed = JointTraining(plan(start, demos))
    resumed.load_state_dict(load_training_state(tmp_path / "state.pt"))
    resumed.use_pairs(rounds[:1])
    assert on(resumed) == on(whole)
    assert same(weights(resumed), weights(whole)) and resumed.publish().digest == whole.publish().digest
    assert resumed.publish_without("grpo").digest == whole.publish_without("grpo").digest


def test_a_state_of_another_start_is_refused(start, demos, tmp_path):
    policy, processor, info = load_policy(start)
    with torch.no_grad():
        next(policy.parameters()).add_(1.0)
    save_policy(tmp_path / "other", policy, processor, info)
    state = JointTraining(plan(start, demos)).state_dict()
    with pytest.raises(RuntimeError, match="another start"):
        JointTraining(plan(tmp_path / "other", demos)).load_state_dict(state)


def test_without_what_an_objective_did_the_shared_weights_are_those_of_the_other_alone(start, demos, rounds):
    alone = JointTraining(plan(start, demos))
    alone.learn(make_groups(start))
    both = JointTraining(plan(start, demos))
    both.learn(make_groups(start))
    before = weights(both)
    both.use_pairs(rounds[:1])
    both.learn_pairs(2)
    now = weights(both)
    snapshot = both.publish_without("rpro")
    assert same(now, weights(both)), "nothing is left of the look"
    assert snapshot.version == both.version and snapshot.digest != both.publish().digest
    both.moves.add("rpro", -1.0)
    groups, first = both.policy.parameter_groups(), alone.policy.parameter_groups()
    for group in ("vision", "vlm"):
        for one, other in zip(groups[group], first[group], strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert not same(before, weights(both)), "the expert keeps what RPRO taught it"


def test_a_roll_back_restores_weights_and_moves_and_lowers_the_rate(start, demos, rounds, tmp_path):
    training = JointTraining(plan(start, demos))
    training.use_pairs(rounds[:1])
    training.learn_pairs(1)
    good = weights(training)
    save_training_state(tmp_path / "good.pt", training.state_dict())
    training.learn(make_groups(start))
    training.learn_pairs(2)
    training.roll_back(load_training_state(tmp_path / "good.pt"), "rpro", 0.5)
    assert same(good, weights(training)) and set(training.moves.sums) == {"rpro"}
    assert training.version == 1 + 4 and training.learner.tracks["rpro"].step == 3
    assert training.learner.tracks["rpro"].scale == 0.5 and training.learner.tracks["grpo"].scale == 1.0


def test_frozen_shared_groups_leave_rpro_its_expert(start, demos, rounds):
    training = JointTraining(plan(start, demos))
    training.use_pairs(rounds[:1])
    training.freeze("rpro")
    before = weights(training)
    training.learn_pairs(1)
    changed = {key for key, value in weights(training).items() if not torch.equal(value, before[key])}
    assert changed and not any(".vlm." in key for key in changed)
    with pytest.raises(ValueError, match="nothing to train"):
        training.freeze("grpo")


def test_demonstrations_alone_need_no_pairs_and_no_reference(start, demos):
    method = find_method("continued_sft")
    training = JointTraining(plan(start, demos, train=("expert",), method=method))
    training.use_pairs(())
    training.learn(make_groups(start))
    before, lines = weights(training), [training.learn_pairs(2), training.learn_pairs(1)]
    assert all({"flow/loss", "drift/expert"} <= set(line) for line in lines) and "loss/preference" not in lines[0]
    changed = {key for key, value in weights(training).items() if not torch.equal(value, before[key])}
    assert changed and not any(".vlm." in key for key in changed)


def test_an_isolated_objective_has_no_other(start, demos, questions):
    rl = RLConfig(steps=4, warmup=0, global_weight=1.0)
    training = JointTraining(plan(start, demos, parts=("grpo",), rl=rl, questions=questions / "train.arrow"))
    assert set(training.learner.tracks) == {"grpo"}
    assert "vision/global" in training.learn(make_groups(start))


def test_a_vision_language_model_is_refused(demos, tmp_path):

    save_nano_language_model(tmp_path / "vlm")
    with pytest.raises(UserError, match="needs a policy"):
        JointTraining(plan(tmp_path / "vlm", demos))


def warm_plan(demos: Path, questions: Path, **changes) -> WarmStartPlan:
    auxiliary = {"code_weight": 0.5, "num_codes": 4, "global_weight": 0.5}
    sft = SFTConfig(steps=4, batch_size=4, warmup=1, ema_start=2, **auxiliary)
    actions = SFTPlan(ModelConfig(), sft, demos, 1, seed=5)
    language = ColdStartConfig(steps=6, batch_size=3, warmup=1, **auxiliary)
    return WarmStartPlan(actions, language, questions / "cold_start.arrow")


def test_a_warm_start_interleaves_both_imitations_and_leaves_a_policy(demos, questions, tmp_path):
    training = Training(warm_plan(demos, questions))
    turns, lines = [], []
    while training.step < 10:
        turns.append(training.turn)
        lines.append(training.run_step())
    assert "".join(turn[0] for turn in turns) == "lalallalal"
    assert turns.count(ACTIONS) == 4 and all("loss" in line for line in lines)
    assert {"text/cross_entropy", "vision/code", "vision/global"} <= set().union(*lines)
    assert {"flow/loss", "flow/probe", "flow/code", "flow/global"} <= set(lines[turns.index(ACTIONS)])
    training.finish(tmp_path / "policy")
    policy, processor, info = load_policy(tmp_path / "policy")
    assert processor.has_stats and info.weight_version == 1 and isinstance(policy, HyVLAPolicy)


def test_a_warm_start_resumed_in_the_middle_gives_the_same_bits(demos, questions, tmp_path):
    whole, resumed = (Training(warm_plan(demos, questions)) for _ in range(2))
    for _ in range(5):
        whole.run_step()
    save_training_state(tmp_path / "state.pt", whole.state_dict())
    resumed.load_state_dict(load_training_state(tmp_path / "state.pt"))
    assert [resumed.run_step() for _ in range(5)] == [whole.run_step() for _ in range(5)]
    for name, training in (("one", whole), ("other", resumed)):
        training.finish(tmp_path / name)
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "other")]
    assert files[0] == files[1]


def test_what_is_recorded_beside_the_weights_counts_both_objectives(start, demos, rounds, tmp_path):
    training = JointTraining(plan(start, demos))
    training.learn(make_groups(start))
    training.use_pairs(rounds[:1])
    training.learn_pairs(2)
    training.finish(tmp_path / "out")
    assert read_info(tmp_path / "out") == CheckpointInfo(weight_version=3, steps=13)
    assert json.loads((tmp_path / "out" / "lab.json").read_text())["weight_version"] == 3
