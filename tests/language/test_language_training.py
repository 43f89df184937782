"""The language side's training on a nano model: imitation and GRPO from checkpoint to checkpoint."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load as load_bytes
from safetensors.torch import load_file

from algos.cross_entropy import CrossEntropy
from algos.grpo import GRPO, GRPOOptions
from rl_lab.common.errors import UserError
from rl_lab.common.moments import Moments
from rl_lab.config.language import ColdStartConfig, RLConfig
from rl_lab.config.section import LoRAConfig, ModelConfig
from rl_lab.learner.cold_start import ColdStartPlan, Source
from rl_lab.learner.language import GRPOPlan, GRPOTraining, epoch_order
from rl_lab.learner.learner import NonFiniteLossError
from rl_lab.model.checkpoint import (
    CheckpointInfo,
    Snapshot,
    load_language_model,
    read_info,
    save_policy,
    verify,
)
from rl_lab.model.norm_stats import ActionStats
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.records.types import RolloutGroup, filled
from rl_lab.workers import learner as rollout_learner
from rl_lab.workers.learner import LearnerHandle, LearnerWorker, Weights
from tests.support.questions import make_groups, make_item
from tests.support.trainings import trained

OPTIONS = GRPOOptions(num_generations=3, max_completion_length=16)
SETTINGS = RLConfig(steps=4, warmup=0, lr=1e-3)
COLD = ColdStartConfig(steps=4, batch_size=3, warmup=1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.fixture(scope="module")
def robot(tmp_path_factory) -> Path:
    """A policy, as the action side leaves it."""
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano"))
    draw = np.random.default_rng(0)
    stats = ActionStats.from_moments(
        Moments(draw.random((8, 20))), Moments(draw.random((8, policy.config.n_action_steps, 20)))
    )
    folder = tmp_path_factory.mktemp("robot")
    save_policy(folder, policy, PolicyProcessor(policy.config, load_tokenizer(), stats), CheckpointInfo(4, 50))
    return folder


@settings(max_examples=30)
@given(rows=st.integers(1, 40), steps=st.integers(1, 30), size=st.integers(1, 12), seed=st.integers(0, 9))
def test_every_pass_over_the_rows_has_each_of_them_once(rows, steps, size, seed):
    order = epoch_order(rows, steps, size, seed)
    assert [len(batch) for batch in order] == [size] * steps
    flat = [row for batch in order for row in batch]
    for start in range(0, len(flat), rows):
        found = Counter(flat[start : start + rows])
        assert max(found.values()) == 1 and set(found) <= set(range(rows))
    assert order == epoch_order(rows, steps, size, seed)
    assert order == epoch_order(rows, steps + 5, size, seed)[:steps], "a longer run begins with the same batches"


def test_passes_differ_and_so_do_seeds():
    first, second = epoch_order(30, 2, 30, seed=1)
    assert first != second and first != epoch_order(30, 1, 30, seed=2)[0]


def test_no_rows_are_an_error_and_no_endless_loop():
    with pytest.raises(ValueError, match="no rows"):
        epoch_order(0, 1, 1, 0)


def run(plan: ColdStartPlan, folder: Path, kill_at: int | None = None) -> Path:
    trained(plan, folder, kill_at)
    return folder


AUXILIARY = {"code_weight": 0.5, "num_codes": 4, "global_weight": 0.5}


@pytest.mark.parametrize("changes", [AUXILIARY, {"ema": 0.5, "ema_start": 1}])
def test_a_cold_start_resumed_at_a_checkpoint_gives_the_bits_of_the_unbroken_one(questions, tmp_path, changes):
    settings = COLD.model_copy(update=changes)
    plan = ColdStartPlan(ModelConfig(), settings, (Source(questions / "cold_start.arrow"),), seed=3)
    whole, resumed = run(plan, tmp_path / "whole"), run(plan, tmp_path / "resumed", kill_at=2)
    assert not changed(weights(whole), weights(resumed))
    assert read_info(whole) == CheckpointInfo(1, 4) == read_info(resumed)
    assert load_language_model(whole).actions is None


def test_without_a_weight_there_is_no_auxiliary_loss_and_with_one_a_line_where_pictures_cannot_tell(
    questions, policy, tmp_path
):
    cold = ColdStartPlan(ModelConfig(), COLD, (Source(questions / "cold_start.arrow"),), seed=3)
    assert type(cold.build("cpu").objective) is CrossEntropy
    assert type(GRPOTraining(GRPOPlan(policy, OPTIONS, SETTINGS, 0)).learner.tracks["grpo"].objective) is GRPO
    write_rows(tmp_path / "text.arrow", [item_row(make_item(1, 0))])
    for key, file, words in (
        ("code_weight", questions / "train.arrow", "needs pictures of several tokens, but here they have one"),
        ("global_weight", tmp_path / "text.arrow", "needs pictures, but the first rows have none"),
    ):
        with pytest.raises(UserError, match=f"^rl.{key} {words}; set it to 0$"):
            GRPOTraining(GRPOPlan(policy, OPTIONS, SETTINGS.model_copy(update={key: 1.0}), 0, file))


def test_a_cold_start_from_a_checkpoint_counts_on_and_fits_nothing_anew(questions, policy, tmp_path):
    plan = ColdStartPlan(ModelConfig(path=str(policy)), COLD, (Source(questions / "cold_start.arrow"),), seed=3)
    start = plan.start().model.state_dict()
    found = load_language_model(policy).model.state_dict()
    assert not changed(found, start)
    assert read_info(run(plan, tmp_path / "out")) == CheckpointInfo(2, 11)


def test_a_cold_start_in_bfloat16_from_random_weights(questions, tmp_path):
    plan = ColdStartPlan(ModelConfig(dtype="bfloat16"), COLD, (Source(questions / "cold_start.arrow"),), seed=3)
    assert {value.dtype for value in weights(run(plan, tmp_path / "out")).values()} == {torch.bfloat16}


def test_the_start_of_a_cold_start_follows_from_the_seed(questions):
    plans = [ColdStartPlan(ModelConfig(), COLD, (Source(questions / "cold_start.arrow"),), seed) for seed in (3, 3, 4)]
    one, again, other = (plan.start().model.state_dict() for plan in plans)
    assert not changed(one, again) and changed(one, other)


def test_grpo_learns_publishes_and_counts_batches_whatever_the_steps_on_each(policy, tmp_path):
    for iterations in (1, 2):
        options = OPTIONS.replace(num_iterations=iterations)
        training = GRPOTraining(GRPOPlan(policy, options, SETTINGS, seed=0))
        assert training.publish().version == 1
        for batch in (1, 2):
            line = training.learn(make_groups(policy, batch))
            assert np.isfinite(line["loss"]) and line["grad_norm"] > 0
            assert training.grpo.batches == batch and training.publish().version == 1 + batch
            assert (line["ratio/mean"] == 1.0) == (iterations == 1)
        snapshot = training.publish()
        verify(snapshot)
        training.finish(tmp_path / str(iterations))
        assert snapshot.files == {path.name: path.read_bytes() for path in (tmp_path / str(iterations)).iterdir()}
        assert read_info(tmp_path / str(iterations)) == CheckpointInfo(3, 7 + 2 * iterations)
        load_language_model(tmp_path / str(iterations))


def test_the_mismatch_of_several_steps_is_that_before_the_first(policy):
    lines = [
        GRPOTraining(GRPOPlan(policy, OPTIONS.replace(num_iterations=n), SETTINGS, 0)).learn(make_groups(policy))
        for n in (1, 3)
    ]
    assert lines[0]["mismatch/newest"] == pytest.approx(lines[1]["mismatch/newest"], rel=1e-6)


@pytest.mark.parametrize("lora", [None, LoRAConfig(rank=2, alpha=4.0)])
def test_the_reference_of_the_kl_term_stays_where_the_run_began(policy, lora):
    settings = SETTINGS.model_copy(update={"lora": lora})
    training = GRPOTraining(GRPOPlan(policy, OPTIONS.replace(beta=0.1), settings, 0))
    groups, reference = make_groups(policy), training.grpo.objective.reference
    batch = rollout_learner_batch(training, groups)
    before = reference.token_logprobs(batch).logprobs.detach().clone()
    for _ in range(2):
        line = training.learn(groups)
    after = reference.token_logprobs(batch).logprobs
    own = training.trained.token_logprobs(batch).logprobs
    assert torch.equal(before, after) and not torch.allclose(own, after, atol=1e-4)
    assert line["kl"] > 0


def rollout_learner_batch(training: GRPOTraining, groups: list[RolloutGroup]):
    from rl_lab.records.token_batches import rollout_batch

    images = training.start.processor.image_processor
    return rollout_batch(groups, images)


def test_answers_whose_reward_failed_change_nothing(policy):
    groups = make_groups(policy, failed=((0, 1), (1, 2)))
    noise = [replace(answer, reward=None) for answer in make_groups(policy, seed=5)[0].completions]
    first, second = (group.completions for group in groups)
    rows = [first[0], noise[0], first[2]], [second[0], second[1], noise[1]]
    other = [replace(group, completions=row) for group, row in zip(groups, rows, strict=True)]
    states = []
    for some in (groups, other):
        training = GRPOTraining(GRPOPlan(policy, OPTIONS, SETTINGS, 0))
        training.learn(some)
        states.append(training.start.model.state_dict())
    assert not changed(*states)
    nothing = filled(groups, reward=[None] * 6)
    with pytest.raises(ValueError, match="no answer of the batch has a reward"):
        training.learn(nothing)


def test_published_adapters_are_merged_and_training_goes_on_beside(policy, tmp_path):
    settings = SETTINGS.model_copy(update={"lora": LoRAConfig(rank=2, alpha=4.0)})
    training = GRPOTraining(GRPOPlan(policy, OPTIONS, settings, 0))
    for batch in (1, 2):
        training.learn(make_groups(policy, batch))
    training.finish(tmp_path / "out")
    loaded = load_language_model(tmp_path / "out").model.state_dict()
    names = changed(weights(policy), weights(tmp_path / "out"))
    assert names and all("attn" in name or "mlp" in name for name in names)
    training.learn(make_groups(policy, 3))
    training.finish(tmp_path / "later")
    later = weights(tmp_path / "later")
    merged = training.trained.merge().state_dict()
    assert merged.keys() == loaded.keys()
    for name, value in later.items():
        torch.testing.assert_close(value, merged[name], rtol=1e-6, atol=1e-7)


def test_a_policy_stays_a_policy_and_its_expert_as_it_was(robot, tmp_path):
    training = GRPOTraining(GRPOPlan(robot, OPTIONS, SETTINGS, 0))
    training.learn(make_groups(robot))
    training.finish(tmp_path / "out")
    names = changed(weights(robot), weights(tmp_path / "out"))
    assert names and all(".vlm." in name for name in names)
    found = load_language_model(tmp_path / "out")
    assert isinstance(found.model, HyVLAPolicy) and found.actions is not None
    assert read_info(tmp_path / "out") == CheckpointInfo(5, 51)
    assert {path.name for path in robot.iterdir()} == {path.name for path in (tmp_path / "out").iterdir()}


def test_only_the_groups_that_train_change(policy, tmp_path):
    training = GRPOTraining(GRPOPlan(policy, OPTIONS, SETTINGS.model_copy(update={"train": ("vlm",)}), 0))
    training.learn(make_groups(policy))
    training.finish(tmp_path / "out")
    names = changed(weights(policy), weights(tmp_path / "out"))
    assert names and not any(".visual." in name for name in names)


@pytest.mark.parametrize("changes", [AUXILIARY, {"lora": LoRAConfig(rank=2, alpha=4.0)}])
def test_a_learner_that_was_saved_goes_on_to_the_same_bits(questions, policy, tmp_path, changes):
    plan = GRPOPlan(policy, OPTIONS, SETTINGS.model_copy(update=changes), 0, questions / "cold_start.arrow")
    first = LearnerWorker(plan, None, "cpu")
    learned, _ = first.learn(make_groups(policy, 1), tmp_path / "bad.pt")
    assert {"vision/code", "vision/global"} <= learned.metrics.keys() or "lora" in changes
    first.save(tmp_path / "state.pt")
    learned, unbroken = first.learn(make_groups(policy, 2), tmp_path / "bad.pt")
    second = LearnerWorker(plan, tmp_path / "state.pt", "cpu")
    assert second.call("publish").version == 2
    again, resumed = second.learn(make_groups(policy, 2), tmp_path / "bad.pt")
    assert resumed.digest == unbroken.digest and resumed.version == 3 == learned.version
    assert again.metrics == learned.metrics
    assert load_bytes(resumed.files["model.safetensors"]).keys() == weights(policy).keys()


def test_a_loss_that_is_no_number_is_told_and_its_batch_kept(policy, tmp_path, monkeypatch):
    learner = LearnerWorker(GRPOPlan(policy, OPTIONS, SETTINGS, 0), None, "cpu")
    batch = rollout_learner_batch(learner.training, make_groups(policy))

    def fail(groups):
        raise NonFiniteLossError("grpo", 0, batch)

    monkeypatch.setattr(learner.training, "learn", fail)
    learned, snapshot = learner.learn(make_groups(policy), tmp_path / "bad.pt")
    assert "not finite at step 0" in (learned.error or "") and str(tmp_path / "bad.pt") in (learned.error or "")
    assert snapshot.version == learned.version == 1 and (tmp_path / "bad.pt").stat().st_size > 0


class LateRay:
    """`ray` for references that are their values, the first look at each coming too early."""

    def __init__(self) -> None:
        self.seen: list = []

    def wait(self, references, timeout):
        ready = references if any(value is references[0] for value in self.seen) else []
        self.seen += references
        return ready, []

    def get(self, reference):
        return reference

    put = get


class Remote:
    """An actor whose methods answer in this process."""

    def __init__(self, target) -> None:
        self._target = target

    def __getattr__(self, name):
        method = type("Method", (), {})()
        method.remote = getattr(self._target, name)
        method.options = lambda **options: method
        return method


def test_the_drivers_handle_waits_and_notices_that_the_run_is_being_stopped(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(rollout_learner, "ray", LateRay())
    learner = LearnerWorker(GRPOPlan(policy, OPTIONS, SETTINGS, 0), None, "cpu")
    checks: list[int] = []
    handle = LearnerHandle(Remote(learner), lambda: checks.append(1))
    published = handle.publish()
    assert published.version == 1 and handle.snapshot(published).version == 1 and checks
    learned, after = handle.learn(make_groups(policy), tmp_path / "bad.pt")
    assert learned.version == after.version == 2
    assert handle.share(Snapshot(5, "", {})) == Weights(5, Snapshot(5, "", {}))
    handle.finish(tmp_path / "out")
    assert read_info(tmp_path / "out").weight_version == 2

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LearnerHandle(Remote(learner), stop).publish()
