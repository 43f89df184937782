"""The worked examples on real packages; those that run them need an environment of their own (docs/packages.md)."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from envs.by_name import find
from envs.contract import check_environment
from envs.declared import DeclaredEnv
from envs.types import Layout
from rl_lab.config.environments import declared_environment
from rl_lab.stages.kinds import load_config

ROOT = Path(__file__).parents[2]
JOINTS, RAW = Layout("joints", 14, 14, ("top",)), Layout("raw", 2, 2, ("top",))
EXAMPLES = {"gym_aloha": ("aloha/transfer_cube", JOINTS), "gym_pusht": ("pusht/pusht", RAW)}


@pytest.mark.parametrize("package", EXAMPLES)
def test_its_experiment_is_one_of_the_whole_main_job(package, monkeypatch):
    monkeypatch.chdir(ROOT)
    name, _ = EXAMPLES[package]
    config = load_config(Path(f"examples/{name}.yaml"), [])
    assert find(config.env.backend) and {"demos", "sft", "evaluate", "collect", "optimise"} <= config.stage_names
    (line,) = (ROOT / "examples" / name).with_name("requirements.txt").read_text().splitlines()
    assert line.startswith(package.replace("_", "-") + "==") and line in (ROOT / "docs/packages.md").read_text()


def made(package: str) -> DeclaredEnv:
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed: its pins exclude the lab's, see docs/packages.md")
    return declared_environment(f"{ROOT}/examples/{EXAMPLES[package][0]}.py:make", "default", "default", 64)


@pytest.mark.parametrize("package", EXAMPLES)
def test_its_expert_solves_a_seed_and_states_come_back(package):
    env = made(package)
    assert env.layout == EXAMPLES[package][1]
    env.reset(seed=0)
    for _ in range(10):
        env.advance(env.expert_action())
    snapshot, ways = env.save(), []
    for _ in range(2):
        env.load(snapshot)
        way = [env.state()]
        while not env.success and env.step_count < env.step_limit:
            env.advance(env.expert_action())
            way.append(env.state())
        ways.append(np.stack(way))
    np.testing.assert_array_equal(*ways)
    assert env.success and env.diagnose().progress == 1.0
    env.env.close()


@pytest.mark.slow
@pytest.mark.parametrize("package", EXAMPLES)
def test_it_keeps_the_contract(package):
    env = made(package)
    found = [(finding.level, finding.text) for finding in check_environment(env)]
    assert [level for level, _ in found] == ["ok"] * 6 and "the expert solves" in found[-1][1]
    env.env.close()
