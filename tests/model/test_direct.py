"""The direct formulations that benchmarks compare with give the model's numbers."""

from dataclasses import replace

import pytest
import torch

from rl_lab.benchmarks import model as bench
from rl_lab.benchmarks.direct import DirectPolicy
from rl_lab.common.errors import UserError
from rl_lab.model.checkpoint import vlm_config
from rl_lab.model.presets import preset_config
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from tests.support.models import make_observations, make_policy


@pytest.mark.parametrize("isolation", [True, False])
@torch.no_grad()
def test_the_direct_policy_has_the_velocity_of_the_policy(isolation):
    policy = make_policy(visual_segment_isolation=isolation)
    observation = make_observations(policy, 3)
    trimmed = {name: getattr(observation, name)[:, :9] for name in ("tokens", "token_mask")}
    observation = replace(observation, **trimmed)  # the direct one pads
    x_t = policy.sample_noise(3, torch.Generator().manual_seed(1))
    time = torch.linspace(0.2, 1.0, 3)
    direct = DirectPolicy(policy).encode(observation)
    expected = policy.velocity(policy.encode(observation), x_t, time)
    torch.testing.assert_close(policy.velocity(direct, x_t, time), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_direct_language_model_has_the_logits_of_the_model():
    torch.manual_seed(0)
    config = preset_config("nano")
    model = HunYuanVLMoTForConditionalGeneration(vlm_config(config)).eval()
    work = bench.VLMWork(model, config, batch=2)
    hidden, cache = work.direct_prefill()
    expected = model(**work.inputs).logits
    torch.testing.assert_close(model.model.logits(hidden), expected, rtol=1e-4, atol=1e-4)
    longer = torch.cat([work.tokens, work.tokens[:, :1]], dim=1)
    expected = model(**work.inputs | {"input_ids": longer, "layout": None}, image_grid_thw=work.grids).logits[:, -1:]
    decoded, _ = work.direct.decode(work.tokens[:, :1], cache)
    torch.testing.assert_close(model.model.logits(decoded), expected, rtol=1e-4, atol=1e-4)


def test_the_table_has_a_row_for_the_device_and_every_case():
    rows = bench.run(preset="nano", batch=2, rounds=1, compile=False)
    assert [row["what"] for row in rows] == [
        *("matrix product, GFLOP/s", "copy, GB/s", "nothing is compiled: as asked for"),
        *("policy, training step", "policy, sampling", "policy, sampling"),
        *("vlm, training step", "vlm, prefill", "vlm, decode one token"),
    ]
    assert all(row["model / floor"] > 1 and row["FLOPs, direct / model"] > 1 for row in rows[3:])
    assert rows[3]["saved_recomputed_mb"] < 0.5 * rows[3]["saved_mb"]


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="not available"):
        bench.run(device="tpu")
