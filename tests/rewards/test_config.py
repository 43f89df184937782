"""The rewards' settings: defaults, and errors that name the key and the fix."""

import pytest

from rewards.config import RewardConfig
from tests.support.refusals import refusal


def test_the_defaults_are_the_documented_ones():
    config = RewardConfig.read({}, "rewards")
    assert config == RewardConfig()
    assert config.weights == {"answer": 1.0, "format": 0.0}
    assert (config.point.scale, config.points.scale, config.trajectory.waypoints) == (0.1, 0.1, 15)
    assert (config.trajectory.frechet_weight, config.trajectory.endpoint_weight) == (0.7, 0.3)
    assert (config.number.rate, config.count.partial_credit, config.judge) == (2.0, 0.0, None)


def test_values_are_read_and_whole_numbers_serve_as_floats():
    tree = {"weights": {"answer": 1}, "number": {"rate": 3}, "judge": {"base_url": "http://h/v1", "model": "m"}}
    config = RewardConfig.read(tree, "rewards")
    assert (config.weights, config.number.rate, config.judge.model) == ({"answer": 1.0}, 3.0, "m")
    assert RewardConfig.read({"judge": None}, "rewards").judge is None
    assert RewardConfig.read(config.model_dump(), "rewards") == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trajectry": {}}, "rewards.trajectry is not a known key; did you mean trajectory?"),
        ({"point": {"scal": 1}}, "rewards.point.scal is not a known key; did you mean scale?"),
        ({"count": {"zzz": 1}}, "rewards.count.zzz is not a known key; there are partial_credit"),
        ({"judge": {"model": "m"}}, "rewards.judge.base_url is missing"),
        ({"judge": {"model": "m", "base_url": "h:1"}}, "rewards.judge: base_url is 'h:1'; it must start with http"),
        ({"point": {"scale": 0}}, "rewards.point: scale is 0.0; it must be above 0"),
        ({"point": {"scale": float("nan")}}, "rewards.point: scale is nan; it must be above 0"),
        ({"point": {"scale": "1"}}, "rewards.point.scale is '1'; it must be of type float"),
        ({"point": 0.1}, "rewards.point is 0.1; it must be a section with keys of its own"),
        ({"trajectory": {"waypoints": 15.5}}, "rewards.trajectory.waypoints is 15.5; it must be of type int"),
        ({"trajectory": {"waypoints": 1}}, "waypoints is 1; it must be at least 2 and at most 64"),
        ({"trajectory": {"frechet_weight": 0, "endpoint_weight": 0}}, "all 0"),
        ({"count": {"partial_credit": True}}, "rewards.count.partial_credit is True; it must be of type float"),
        ({"count": {"partial_credit": 2}}, "partial_credit is 2.0; it must be at least 0 and at most 1"),
        ({"boxes": {"extra_penalty": -1}}, "extra_penalty is -1.0; it must be at least 0"),
        ({"weights": {"answer": -1}}, "a weight is a number >= 0"),
        ({"weights": {"answer": 0}}, "weights are all 0"),
        ({"weights": 1}, "rewards.weights is 1; it must map names to values of type float"),
    ],
)
def test_an_error_names_the_key_and_the_fix_in_one_line(tree, message):
    assert message in refusal(RewardConfig.read, tree, "rewards", by=ValueError)
