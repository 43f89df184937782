"""Failure detectors and correctors from a file of one's own: their contracts, and their place in a configuration."""

from pathlib import Path

import numpy as np
import pytest

from envs.by_name import OwnCodeError, blamed
from envs.rollback import FailureDetector, RollbackConfig, intervened_rollout, make_detector, scripted_expert
from rl_lab.check import CONTRACTS, main
from rl_lab.common.errors import RunError, UserError
from rl_lab.config.actions import CollectConfig
from rl_lab.contracts import corrections
from rl_lab.stages.kinds import load_config
from rl_lab.stages.own_code import check_corrections
from rl_lab.workers.policy import corrector_plan
from tests.envs.toy import ToyEnv

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
WRONG = """
import numpy as np

class Number:
    def __init__(self, config, env):
        self.best_step = 0

    def update(self, diagnosis, step):
        return 7 if step else None

class Ahead(Number):
    def update(self, diagnosis, step):
        self.best_step = step + 1

class Raises(Number):
    def update(self, diagnosis, step):
        return diagnosis.no_such_thing

class Silent: ...

class Nothing:
    def __init__(self, config, env): ...

class Unset(Nothing):
    def update(self, diagnosis, step): ...

def forgotten(env, seed, before):
    env.state()

def short(env, seed, before):
    yield np.zeros(14)

def chance(env, seed, before):
    while True:
        yield env.state() + np.random.normal(size=16) * 1e-3
"""


@pytest.fixture(autouse=True)
def one_seed(monkeypatch):
    monkeypatch.setattr(corrections, "SEEDS", 1)


@pytest.mark.parametrize(("kind", "name"), [("detector", "StillArms"), ("corrector", "lift_first")])
def test_the_examples_keep_their_contracts(capsys, kind, name):
    assert main([kind, f"{EXAMPLES / 'still_arms.py'}:{name}"]) == 0
    assert "comes a pair: " + ("still" if kind == "detector" else "no_progress") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "name", "said"),
    [
        ("detector", "Number", "update gave 7; it must give the name of a failure, or None"),
        ("detector", "Ahead", "best_step is 2 after step 1"),
        ("detector", "Raises", "wrong_corrections.py:17: AttributeError"),
        ("detector", "Silent", "too many positional arguments; it is called with the settings of collect, an environ"),
        ("detector", "Nothing", "makes no detector: it has no update(diagnosis, step)"),
        ("detector", "Unset", "best_step is None after step 1"),
        ("corrector", "Silent", "it is called with an environment, its seed, the frames before"),
        ("corrector", "forgotten", "gave None; it must yield one command at a time"),
        ("corrector", "short", "it must be 16 finite numbers"),
        ("corrector", "chance", "it gives other commands for the same state again"),
    ],
)
def test_what_they_do_not_keep_is_one_line(wrong, kind, name, said):
    with pytest.raises(RunError) as caught:
        main([kind, f"{wrong}:{name}"])
    assert said in str(caught.value)


def test_what_goes_wrong_in_our_code_is_one_line_too(monkeypatch):
    monkeypatch.setitem(CONTRACTS, "detector", lambda source, settings: iter([1 // 0]))
    with pytest.raises(RunError, match=r"what it gives led to ZeroDivisionError: .*test_corrections.py:\d+"):
        main(["detector", f"{EXAMPLES / 'still_arms.py'}:StillArms"])


def test_a_run_refuses_them_before_it_begins(wrong):
    for code, said in ((f"{wrong}:Silent", "Silent: too many positional arguments"), ("Mine", "'Mine' names no part")):
        with pytest.raises(UserError, match=f"collect.detector: .*{said}"):
            check_corrections(load_config(Path("flowpro_smoke"), [f"collect.detector={code}"]))


def test_unknown_settings_are_refused(wrong):
    with pytest.raises(UserError, match="collect.patients is not a known key; did you mean patience"):
        main(["detector", f"{wrong}:Number", "patients=3"])


def test_a_name_alone_is_a_corrector_of_ones_own(wrong):
    settings = CollectConfig.read({"corrector": f"{wrong}:chance"}, "collect")
    assert settings.corrector.kind == "own" and settings.corrector.code == f"{wrong}:chance"
    assert corrector_plan(settings.corrector, 4).build(lambda weights: None).name == "own chance"
    with pytest.raises(ValueError, match=r"write {kind: own, code: FILE.py:NAME}"):
        CollectConfig.read({"corrector": "own"}, "collect")


def test_a_detector_of_ones_own_stops_the_policy_and_ours_stays_without_one(wrong):
    env = ToyEnv()
    assert isinstance(make_detector(RollbackConfig(), env), FailureDetector)
    config = RollbackConfig(detector=f"{wrong}:Raises")
    rollout = intervened_rollout(env, 0, corrector=scripted_expert, config=config, generator=np.random.default_rng(0))
    with pytest.raises(OwnCodeError, match=r"wrong_corrections.py:17: AttributeError: .*no_such_thing"), blamed():
        next(rollout)
