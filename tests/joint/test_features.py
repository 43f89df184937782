"""How far what the expert reads has moved, on policies whose moves are known."""

import pytest
import torch

from rl_lab.benchmarks import features
from rl_lab.benchmarks.features import compare
from rl_lab.common.errors import UserError
from rl_lab.model.checkpoint import load_policy, save_policy
from rl_lab.records.episodes import read_episodes


def moved(start, folder, group, size):
    """The start with one group of weights moved."""
    policy, processor, info = load_policy(start)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameter_groups()[group]:
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    save_policy(folder, policy, processor, info)
    return folder


def test_features_move_with_what_makes_them_and_the_expert_pays(start, demos, tmp_path):
    shown = read_episodes(demos)

    def found(group, size):
        return compare(start, moved(start, tmp_path / f"{group}-{size}", group, size), shown, 1, 2)

    still, expert, near, far = found("vlm", 0.0), found("expert", 0.05), found("vlm", 0.002), found("vlm", 0.02)
    assert still["moved"] == still["common"] == 0.0 and still["times"] == 1
    assert still["start"] == still["loss"] == still["old expert"] == still["random"]
    assert expert["moved"] == 0 and expert["loss"] != expert["start"] == expert["old expert"] == expert["random"]
    assert 0 < near["moved"] < far["moved"] and 0 < far["common"] < 1
    assert far["times"] == pytest.approx(1, abs=0.3), "it was moved in random directions"
    assert far["loss"] == far["old expert"] != far["start"] and far["random"] not in (far["loss"], far["start"])


def test_a_run_without_arms_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="no arm of joint training"):
        features.run(str(tmp_path))
