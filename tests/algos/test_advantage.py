"""The text indicator of the advantage-conditioned baseline."""

import numpy as np
import pytest

from algos.methods import condition_instructions, dropped, with_advantage


def test_the_indicator_comes_last():
    assert with_advantage("hand over the block. ", True) == "hand over the block. Advantage: positive"
    assert with_advantage("hand over the block.", False).endswith("Advantage: negative")


def test_three_in_ten_instructions_stay_as_they_are():
    texts = ["lift"] * 4000
    positive = np.arange(4000) % 2 == 0
    assert abs(dropped(len(texts), np.random.default_rng(0)).mean() - 0.3) < 0.03
    found = condition_instructions(texts, positive)
    assert found == [with_advantage("lift", bool(good)) for good in positive]


def test_the_generator_decides_everything():
    first, second = (dropped(20, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(first, second)


def test_a_dropout_that_is_no_probability_is_refused():
    with pytest.raises(ValueError, match=r"dropout is 1\.3"):
        dropped(1, np.random.default_rng(0), dropout=1.3)
