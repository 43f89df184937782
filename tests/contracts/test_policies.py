"""Policies of one's own: their contract, their place in a configuration, what a wrong one is told."""

from pathlib import Path

import pytest

from envs.by_name import OwnCodeError
from rl_lab.check import main
from rl_lab.common.errors import RunError, UserError
from rl_lab.stages.preflight import check_machine
from tests.support.experiments import differing, hashes
from tests.support.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
MLP = f"{ROOT / 'examples' / 'flow_mlp.py'}:FlowMLP"
SMALL = ["image_size=16", "chunk_size=2", "width=32"]
WRONG = """
import torch
from torch import nn
from algos.policy import FlowModel

class Plain(FlowModel):
    def __init__(self, spec, width=8):
        super().__init__(spec)
        self.vlm = nn.Linear(spec.state_size, width)
        self.flow = nn.Linear(width + spec.chunk_size * spec.command_size + 1, spec.chunk_size * spec.command_size)

    def encode(self, observation):
        return torch.tanh(self.vlm(observation.state))

    def velocity(self, prefix, x_t, time):
        return self.flow(torch.cat([prefix, x_t.flatten(1), time[:, None]], 1)).view_as(x_t)

class Mixed(Plain):
    def encode(self, observation):
        return super().encode(observation) - super().encode(observation).mean(0)

class Expert(Plain):
    def parameter_groups(self):
        return {"expert": list(self.parameters())}

class Left(Plain):
    def parameter_groups(self):
        return {"expert": list(self.flow.parameters())}

class Named(Plain):
    def parameter_groups(self):
        return {"head": list(self.parameters())}

class Listed(Plain):
    def parameter_groups(self):
        return [self.vlm]

class Bodiless(FlowModel):
    def encode(self, observation):
        return observation.state

class Backwards(Plain):
    def velocity(self, prefix, x_t, time):
        return -super().velocity(prefix, x_t, time)

    def flow_losses(self, prefix, actions, noise, time, rows=None):
        return super().flow_losses(prefix, noise, actions, 1 - time, rows)

class Dropped(Plain):
    def velocity(self, prefix, x_t, time):
        return torch.nn.functional.dropout(super().velocity(prefix, x_t, time), 0.5, self.training)

class Unread(Plain):
    def flow_losses(self, prefix, actions, noise, time, rows=None):
        return super().flow_losses(prefix, actions, noise, time, None if rows is None else rows * 0)

class Forgets(Plain):
    def __init__(self, spec):
        super().__init__(spec)
        self.scale = torch.rand(())

    def velocity(self, prefix, x_t, time):
        return self.scale * super().velocity(prefix, x_t, time)

class Tuple(Plain):
    def encode(self, observation):
        return (observation.state,)

class Raises(Plain):
    def encode(self, observation):
        raise RuntimeError("no such luck")

class Wide(Plain):
    def velocity(self, prefix, x_t, time):
        return super().velocity(prefix, x_t, time)[:, :1]

class Bare(nn.Module):
    def __init__(self, spec):
        super().__init__()

def function(spec): ...
"""


def test_the_example_keeps_the_contract(capsys):
    assert main(["policy", MLP, *SMALL]) == 0
    said = capsys.readouterr().out
    assert "is made for commands of 16 numbers (ee), states of 16 and 3 cameras" in said and "expert" in said
    assert "samples what it imitates" in said


def test_a_policy_is_checked_for_the_layout_that_it_is_made_for(capsys):
    layout = ["numbers=raw", "action_dim=2", "state_dim=2", "cameras=[top]"]
    assert main(["policy", MLP, *SMALL, *layout]) == 0
    assert "commands of 2 numbers (raw), states of 2 and 1 camera" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Mixed", "encode gives a row another prefix in another batch"),
        ("Expert", "encode needs parameters of the group expert"),
        ("Left", "parameter_groups leaves out vlm.weight; put it into a group, or freeze it"),
        ("Named", "parameter_groups has 'head'; call them vision, vlm, expert"),
        ("Listed", "parameter_groups gives [Linear("),
        ("Bodiless", "has no parameters to train; make its layers in __init__"),
        ("Backwards", "its samples come no nearer to a chunk that it imitates"),
        ("Dropped", "flow_losses differ for the same points; leave out dropout"),
        ("Unread", "row i of flow_losses must read prefix row rows[i]"),
        ("Forgets", "it acts otherwise when it was saved and read"),
        ("Tuple", "a prefix is a tensor whose first axis are the observations"),
        ("Raises", "wrong_policies.py:71: RuntimeError: no such luck"),
        ("Wide", "velocity gives [8, 1, 20]; expected [8, 2, 20]"),
        ("Bare", "makes no policy: it has no action_dim; inherit from algos.policy.FlowModel"),
        ("function", "is no class of torch.nn.Module"),
    ],
)
def test_what_it_does_not_keep_is_one_line(wrong, name, said):
    with pytest.raises((RunError, OwnCodeError)) as caught:
        main(["policy", f"{wrong}:{name}", *SMALL[:2]])
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["policy", MLP, "numbers=poses"], "numbers is 'poses'; use one of"),
        (["policy", MLP, "frames=0"], "frames is 0; give a whole number from 1 on"),
        (["policy", MLP, "wide=3"], "argument 'wide'; it is called with an algos.policy.PolicySpec, wide=..."),
    ],
)
def test_bad_settings_are_refused(arguments, said):
    with pytest.raises((UserError, OwnCodeError)) as caught:
        main(arguments)
    assert said in str(caught.value)


def test_the_content_of_the_code_is_in_the_hash_of_what_it_makes_and_of_all_that_follows(example, tmp_path):
    copy = tmp_path / "copy.py"
    copy.write_text(Path(MLP.rpartition(":")[0]).read_text())
    first, same = (hashes(example("flow_mlp", f"model.code={name}")) for name in (MLP, f"{copy}:FlowMLP"))
    copy.write_text(copy.read_text() + "\n# other\n")
    other = hashes(example("flow_mlp", f"model.code={copy}:FlowMLP"))
    assert first == same and differing(first, other) == first.keys() - {"demos"}


def test_a_run_with_the_example_passes_its_checks_and_probes_nothing(example):
    config = example("flow_mlp")
    assert config.sft.probe_weight == 0
    check_machine(config)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.code=null", "settings is for code of one's own; give code, or leave it out"),
        ("model.prediction=action", "prediction is for our own architecture, but code names another"),
        ("model.preset=small", "preset is for our own architecture"),
        ("model.memory={frames: 2, layer_stride: 1}", "memory.layer_stride is for our own architecture"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(example, override, said):
    assert said in refusal(example, "flow_mlp", override)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sft.probe_weight=0.5", "sft.probe_weight is 0.5, but model.code names another than our architecture"),
        ("sft.code_weight=0.5", "sft.code_weight is 0.5, but model.code names another than our architecture"),
        ("optimise.lora={rank: 2}", "optimise.lora is set, but model.code names another"),
        ("sft.compile=true", "sft.compile is set, but model.code names another"),
        ("optimise.train=[vlm, expert]", "optimise.train has vlm, but the policy of model.code has expert, vision"),
        ("model.settings={wide: 3}", "model.code: .*argument 'wide'; it is called with"),
        ("model.code=examples/flow_mlp.py:FlowMPL", "model.code: .*defines no FlowMPL; did you mean FlowMLP"),
        ("model.path=runs", "model.path: runs holds no policy of one's own, but model.code names one"),
    ],
)
def test_a_run_that_asks_more_of_it_is_refused_before_it_begins(example, tmp_path, override, said):
    blind = tmp_path / "blind.py"
    blind.write_text(WRONG.replace("vlm", "vision"))
    code = f"model.code={blind}:Plain" if "vlm" in override else ""
    config = example("flow_mlp", *filter(None, [code, "model.settings={}", override]))
    with pytest.raises(UserError, match=said) as caught:
        check_machine(config)
    assert caught.value.exit_code == 2


def test_a_policy_whose_velocity_is_not_known_cannot_be_guided(example, tmp_path):
    own = tmp_path / "without_velocity.py"
    own.write_text(
        Path(MLP.rpartition(":")[0]).read_text() + "\n\nclass Silent(FlowMLP):\n    num_steps = property()\n"
    )
    check_machine(example("flow_mlp", "eval.join=guide", "eval.latency=2"))
    with pytest.raises(UserError, match="eval.join is guide, but the policy of model.code has no velocity"):
        check_machine(example("flow_mlp", f"model.code={own}:Silent", "eval.join=guide", "eval.latency=2"))
