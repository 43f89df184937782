"""SmolVLA of LeRobot as a policy of one's own; what runs it needs an environment of its own (docs/policies.md)."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from algos.policy import PolicySpec
from envs.by_name import find
from envs.types import Layout
from rl_lab.contracts.policies import check_policy, observations
from rl_lab.model.policies.own import make_own
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.stages.kinds import load_config

ROOT = Path(__file__).parents[2]
CODE = f"{ROOT}/examples/smolvla/smolvla.py:SmolVLA"
SPEC = PolicySpec(Layout("raw", 2, 4, ("top",)), chunk_size=5, vocabulary=len(load_tokenizer()))
needs_lerobot = pytest.mark.skipif(
    find_spec("lerobot") is None, reason="lerobot is not installed: its pins exclude the lab's, see docs/policies.md"
)


def test_its_experiment_is_one_of_the_whole_main_job(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = load_config(Path("examples/smolvla/smolvla.yaml"), [])
    assert config.model.code and find(config.model.code)
    assert {"demos", "sft", "evaluate", "collect", "optimise"} <= config.stage_names
    first, *_ = (ROOT / "examples/smolvla/requirements.txt").read_text().splitlines()
    assert first.startswith("lerobot==") and first in (ROOT / "docs/policies.md").read_text()


@needs_lerobot
def test_it_keeps_the_contract():
    found = list(check_policy(CODE, {"layers": 1}))
    assert len(found) == 7 and "learns in vision, vlm, expert" in found


@needs_lerobot
def test_losses_chunks_and_weights_are_those_of_lerobot(tmp_path):
    policy = make_own(CODE, SPEC, seed=0).eval()
    theirs = policy.model
    seen = observations(SPEC, 3)
    draws = torch.Generator().manual_seed(0)
    actions, noise = torch.randn(3, 5, 2, generator=draws), policy.sample_noise(3, draws)
    time = policy.sample_time(3, draws)
    given = (
        [2 * (seen.images[:, 0] / 255) - 1],
        [torch.ones(3, dtype=torch.bool)],
        seen.tokens,
        seen.token_mask,
        policy._pad(seen.state, 32),
    )
    with torch.no_grad():
        prefix = policy.encode(seen)
        losses = theirs(*given, policy._pad(actions, 32), noise, time).mean(dim=(1, 2))
        torch.testing.assert_close(policy.flow_losses(prefix, actions, noise, time), losses)
        torch.testing.assert_close(
            policy.sample_actions(prefix, noise), theirs.sample_actions(*given, noise=noise.clone())[..., :2]
        )
    save_file({f"model.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    settings = {"weights": str(tmp_path)}
    read = make_own(CODE, PolicySpec(SPEC.layout, 5, vocabulary=SPEC.vocabulary, settings=settings), seed=1)
    assert all(torch.equal(read.state_dict()[name], value) for name, value in policy.state_dict().items())
