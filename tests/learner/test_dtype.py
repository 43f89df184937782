"""model.dtype auto: measured once, by steps of the training itself, and kept by a stage that is killed and resumed."""

import pytest
import torch
from safetensors.torch import load_file

from rl_lab.config.actions import SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.graph.nodes import Node
from rl_lab.learner import dtype
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.dtype import faster, step_seconds
from rl_lab.records.episodes import write_episodes
from rl_lab.stages.kinds import KINDS
from rl_lab.training import dataset
from rl_lab.workers import learner as workers
from rl_lab.workers.learner import LearnerWorker
from tests.support.episodes import episode
from tests.support.stage_runs import StageRun


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> SFTPlan:
    folder = tmp_path_factory.mktemp("records") / "demos"
    write_episodes(folder, [episode(1), episode(2)])
    settings = SFTConfig(steps=4, batch_size=4, warmup=1, ema=0.0, probe_weight=0.0)
    return SFTPlan(ModelConfig(dtype="auto"), settings, folder, stride=1, seed=0)


class DirectRay:
    """Actors in this process: what they give is there at once."""

    def wait(self, references, timeout):
        return references, []

    def get(self, reference):
        return reference

    def kill(self, actor):
        pass


class DirectActor:
    def __init__(self, target):
        self._target = target

    def __getattr__(self, name):
        return type("Method", (), {"remote": staticmethod(getattr(self._target, name))})


class DirectCluster:
    def learner(self, plan, state):
        return DirectActor(LearnerWorker(plan, state, "cpu"))


class Imitation(StageRun):
    text = "name: sft\nstages: [demos, sft]\ncheckpoint_every: 1\nwandb: disabled\n"
    inputs = {}

    def __init__(self, path, plan):
        super().__init__(path)
        self.plan = plan

    def node(self, config):
        return Node("sft", KINDS["sft"], {})

    def drive(self, context, learner):
        dataset.train(DirectCluster(), context, self.plan)

    def weights(self):
        return load_file(self.out / "model.safetensors")


def test_a_killed_stage_goes_on_in_the_type_that_was_faster_when_it_began(plan, tmp_path, monkeypatch, capsys):
    for module in (dataset, workers):
        monkeypatch.setattr(module, "ray", DirectRay())
    fast, slow = {"float32": 2.0, "bfloat16": 1.0}, {"float32": 1.0, "bfloat16": 2.0}
    measured = [slow, fast, fast]
    monkeypatch.setattr(workers, "step_seconds", lambda plan, device: measured.pop())
    whole = Imitation(tmp_path / "whole" / "run", plan).start()
    said = "model.dtype is auto: bfloat16; a step takes 2 s in float32 and 1 s in bfloat16"
    assert said in "".join(capsys.readouterr())
    broken = Imitation(tmp_path / "broken" / "run", plan).killed(3).start()
    assert measured == [slow], "measured once"
    assert broken.metrics() == whole.metrics() and len(whole.metrics()) == 5
    for name, value in whole.weights().items():
        assert value.dtype == torch.bfloat16 and torch.equal(value, broken.weights()[name])


def test_steps_of_the_training_are_timed_where_there_are_instructions_for_both(plan, monkeypatch):
    monkeypatch.setattr(dtype, "has_bfloat16", lambda: False)
    assert step_seconds(plan, "cpu") == {} and faster({}) == "float32"
    monkeypatch.setattr(dtype, "has_bfloat16", lambda: True)
    found = step_seconds(plan, "cpu")
    assert list(found) == ["float32", "bfloat16"] and min(found.values()) > 0
    assert faster({"float32": 1.04, "bfloat16": 1.0}) == "float32", "too little for what it rounds"
