"""Gates: the comparison of two examinations, and the model that goes on."""

import json
import os

import numpy as np
import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.stats import mean_interval
from rl_lab.config.pipeline import Gate
from rl_lab.stages.gate import decide, take_model


def rows(rewards, first: int = 0) -> list[dict]:
    return [{"item": f"q{first + i}", "rewards": [reward]} for i, reward in enumerate(rewards)]


def sides(gain: float, n: int = 60, noise: float = 0.1):
    draw = np.random.default_rng(3)
    before = draw.uniform(size=n)
    return rows(before.tolist()), rows((before + gain + noise * draw.standard_normal(n)).tolist())


def test_a_clear_gain_passes_and_none_does_not():
    assert decide(*sides(0.2), Gate()).passed
    assert not decide(*sides(0.0), Gate()).passed
    assert not decide(*sides(-0.2), Gate()).passed


def test_the_whole_interval_must_lie_above_the_rise():
    found = decide(*sides(0.2), Gate())
    assert decide(*sides(0.2), Gate(rise=found.low - 1e-6)).passed
    assert not decide(*sides(0.2), Gate(rise=found.low)).passed
    assert not decide(*sides(0.2), Gate(rise=(found.low + found.difference) / 2)).passed


def test_the_interval_is_the_reports_two_sided_one_on_paired_differences():
    before, after = sides(0.05)
    gain = np.array([b["rewards"][0] - a["rewards"][0] for a, b in zip(before, after, strict=True)])
    found, interval = decide(before, after, Gate()), mean_interval(gain[:, None])
    assert (found.difference, found.low, found.high, found.n) == (interval.value, interval.low, interval.high, 60)
    wide = decide(before, after, Gate(confidence=0.99))
    narrow = decide(before, after, Gate(confidence=0.5))
    assert wide.low < found.low < narrow.low < narrow.high < found.high < wide.high


def test_a_model_that_rises_by_nothing_passes_about_as_often_as_the_interval_says():
    draw = np.random.default_rng(0)
    passed = 0
    for _ in range(400):
        before = draw.uniform(size=50)
        after = before + 0.2 * draw.standard_normal(50)
        passed += decide(rows(before.tolist()), rows(after.tolist()), Gate()).passed
    assert 0.01 <= passed / 400 <= 0.05  # (1 - 0.95) / 2 = 0.025


def test_a_fall_may_be_allowed():
    assert decide(*sides(0.0), Gate(rise=-0.1)).passed


def test_answers_are_averaged_and_failed_calls_left_out():
    before = [
        {"item": "a", "rewards": [0.0, 1.0]},
        {"item": "b", "rewards": [None, 0.2]},
        {"item": "c", "rewards": [1]},
    ]
    after = [{"item": "c", "rewards": [None]}, {"item": "b", "rewards": [0.4, 0.6]}, {"item": "a", "rewards": [1.0]}]
    found = decide(before, after, Gate())
    assert (found.n, found.before, found.after) == (2, pytest.approx(0.35), pytest.approx(0.75))
    assert found.difference == pytest.approx(0.4)


def test_other_questions_or_too_few_are_refused():
    before, after = sides(0.1)
    with pytest.raises(UserError, match="different development questions"):
        decide(before, after[1:], Gate())
    with pytest.raises(UserError, match="1 development questions .* a gate needs two"):
        decide(before[:1], after[:1], Gate())


def test_the_reason_says_what_was_found_and_what_follows():
    text = decide(*sides(0.2), Gate(rise=0.01)).reason
    assert text.startswith("passed: reward changed by +0.") and "95 % interval" in text and "above 0.01" in text
    for otherwise, words in (
        ("previous", "the model before goes on"),
        ("stop", "the run stops"),
        (("rft", "examine"), "rft, examine run from the model before"),
    ):
        found = decide(*sides(0.0), Gate(otherwise=otherwise))
        assert found.reason.startswith("not passed") and found.reason.endswith(words) or words in found.reason


def test_a_model_is_linked_without_what_is_not_of_it(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir(), out.mkdir()
    for name in ("config.json", "model.safetensors", "chat_template.jinja", "stage.json", "pool.sqlite", "a.jsonl"):
        (source / name).write_text(json.dumps(name))
    take_model(source, out)
    take_model(source, out)  # again after a kill
    assert sorted(path.name for path in out.iterdir()) == ["chat_template.jinja", "config.json", "model.safetensors"]
    assert os.path.samefile(source / "model.safetensors", out / "model.safetensors")
