"""Objectives from a file of one's own: their contract, their place in a configuration, what a wrong one is told."""

from pathlib import Path

import pytest
import torch

from algos.methods import own_objective
from rl_lab.check import main
from rl_lab.common.errors import RunError, UserError
from rl_lab.contracts.samples import CHUNK, USED, imitation_batch
from rl_lab.stages.kinds import expand
from rl_lab.stages.preflight import _check_objectives
from tests.support.refusals import refusal

ROOT = Path(__file__).resolve().parents[2]
OFF_PATH = f"{ROOT / 'examples' / 'off_path.py'}:OffPath"
IPO = f"{ROOT / 'examples' / 'ipo.py'}:IPO"
WRONG = """
import torch
from algos.objective import Objective

class Plain(Objective):
    def __init__(self, reference, groups, draws_per_sample):
        self.groups = groups

    def loss(self, policy, batch, generator, denominator=None):
        noise, time = policy.sample_noise(len(batch), generator), policy.sample_time(len(batch), generator)
        losses = policy.flow_losses(policy.encode(batch.observation), batch.winner, noise, time)
        return self.reduced(losses, denominator or len(batch))

    def reduced(self, losses, count):
        return losses.sum() / count, {}

class Vector(Plain):
    def reduced(self, losses, count):
        return losses, {}

class Attached(Plain):
    def reduced(self, losses, count):
        return losses.mean(), {"kept": losses.mean()}

class Constant(Plain):
    def reduced(self, losses, count):
        return torch.zeros((), requires_grad=True) + 1, {}

class Raises(Plain):
    def reduced(self, losses, count):
        raise RuntimeError("no such luck")

class Mean(Plain):
    def draw(self, policy, batch, generator):
        return batch

    def reduced(self, losses, count):
        return losses.mean(), {}

class Narrow(Plain):
    def loss(self, policy, batch): ...

class Nothing:
    def __init__(self, reference, groups, draws_per_sample): ...
"""


class KnowsTheWinner:
    """A flow that is sent to the winner from wherever it stands, v = (x - w) / t, plus an error of 1."""

    def encode(self, observation):
        return observation.state

    def sample_noise(self, num, generator):
        return torch.randn(num, CHUNK, USED, generator=generator)

    def sample_time(self, num, generator):
        return torch.rand(num, generator=generator)

    def flow_losses(self, prefix, actions, noise, time, rows):
        t = time[:, None, None]
        self.x = t * noise + (1 - t) * actions
        velocity = (self.x - prefix[rows][:, None]) / t + 1
        return (velocity - (noise - actions)).square().mean(dim=(1, 2))


def test_off_the_path_the_way_to_the_winner_is_what_is_learned():
    """The points lie on the path of the collected winner before, and each of the 4 collected rows has a loss of 1."""
    batch, policy = imitation_batch(6, 2), KnowsTheWinner()
    objective = own_objective(OFF_PATH, weight=2.0, groups=("expert",), draws_per_sample=1)
    drawn = objective.draw(policy, batch, torch.Generator().manual_seed(0))
    loss, metrics = objective.loss(policy, drawn, torch.Generator())
    assert metrics["flow/loss"].item() == pytest.approx(1, abs=1e-3)
    assert metrics["flow/off_path"].item() == pytest.approx(4 / 6, abs=1e-3)
    assert loss.item() == pytest.approx(1 + 2 * 4 / 6, abs=1e-3)
    t = drawn.draws.time[:4].clamp(min=0.1)[..., None]
    other = batch.winner[[3, 0, 1, 2]]
    torch.testing.assert_close(policy.x[6:], t * drawn.draws.noise[:4, 0] + (1 - t) * other)


def test_the_example_keeps_the_contract(capsys):
    assert main(["objective", IPO, "margin=0.5"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1].startswith("ok: gives a finite loss") and "ipo/margin, ipo/squared" in said[1]
    assert said[-2] == "ok: gives parts of a divided batch losses that add up to the whole's"


@pytest.mark.parametrize("rows", ["tuples", "trajectories"])
def test_ours_keep_it(rows, capsys):
    assert main(["objective", "algos.flowpro:RPRO", f"rows={rows}"]) == 0


@pytest.mark.parametrize("rows", ["winners", "demonstrations"])
def test_the_example_without_a_reference_keeps_it(rows, capsys):
    assert main(["objective", OFF_PATH, f"rows={rows}", "reference=none"]) == 0


def test_one_without_draws_of_its_own_is_told_what_that_means(wrong, capsys):
    assert main(["objective", f"{wrong}:Plain"]) == 0
    assert "has no `draw`" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Vector", "must be one finite number, a tensor of shape ()"),
        ("Attached", "metric kept must be a detached tensor"),
        ("Constant", "its loss moves no weight of the policy"),
        ("Raises", "wrong_objectives.py:31: RuntimeError: no such luck"),
        ("Mean", "parts of the batch have losses of"),
        ("Narrow", "loss: too many positional arguments; it is called with policy, batch, generator"),
        ("Nothing", "makes no objective: it has no groups"),
    ],
)
def test_what_it_does_not_keep_is_one_line(wrong, name, said):
    with pytest.raises(RunError) as caught:
        main(["objective", f"{wrong}:{name}"])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["objective", "nowhere.py:IPO"], "there is no file nowhere.py"),
        (["objective", IPO, "rows=pairs"], "rows is 'pairs'; choose one of demonstrations"),
        (["objective", IPO, "margin"], "'margin' is no setting; write key=value"),
    ],
)
def test_bad_input_is_refused(arguments, said):
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert said in str(caught.value) and caught.value.exit_code == 2


def test_the_method_of_an_own_objective_has_its_nodes_and_its_content_in_the_hash(example):
    config = example("ipo", "controls=[rpro]")
    nodes = {node.name: node for node in expand(config)}
    assert "ipo.1.optimise" in nodes and "rpro.1.optimise" in nodes
    assert len(nodes["ipo.1.optimise"].params["objective"]["code"]) == 64
    assert config.row("ipo").needs_reference and config.row("ipo").rows == "tuples"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objectives.ipo.beta=0.5", "beta is for our own methods; put it into settings"),
        ("objectives.ipo.settings={groups: 3}", "settings.groups is what the run gives; call yours otherwise"),
        ("objectives.ipo.code=null", "is for code of one's own; give code, or leave it out"),
        ("method=ipoo", "unknown method 'ipoo'"),
        ("objectives.rpro={code: examples/ipo.py:IPO}", "objectives.rpro: code of one's own needs a name of its own"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(example, override, said):
    assert said in refusal(example, "ipo", override)


def test_settings_that_the_class_does_not_take_are_refused_before_the_run(example):
    config = example("ipo", "objectives.ipo.settings={marign: 1.0}")
    with pytest.raises(UserError, match=r"objectives.ipo: .*ipo.py:23: TypeError: .*argument 'marign'"):
        _check_objectives(config)
