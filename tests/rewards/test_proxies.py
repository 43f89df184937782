"""Proxies pay for what they say and stay in range."""

from hypothesis import given
from hypothesis import strategies as st

from rewards.proxies import constant, short


@given(st.lists(st.text(max_size=200), min_size=1, max_size=5))
def test_values_are_in_range_and_one_for_each_completion(texts):
    for reward in (constant, short):
        values = reward([""] * len(texts), texts)
        assert len(values) == len(texts)
        assert all(0 < value <= 1 for value in values)


def test_shorter_pays_more():
    values = short([""] * 3, ["", " word" * 20, " word" * 40])
    assert values == [1.0, 0.5, 1 / 3]
    assert short([""], [[{"role": "assistant", "content": "one two"}]]) == [1 / 1.1]
