"""Building blocks of the decoder."""

import torch

from rl_lab.model.mot import rotary, rotate


def test_rotation_keeps_length_and_only_relative_positions_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, generator=generator)

    def score(query_position: int, key_position: int) -> torch.Tensor:
        at = [rotary(torch.tensor([[position]]), 8, 100.0) for position in (query_position, key_position)]
        return (rotate(query, at[0]) * rotate(key, at[1])).sum()

    torch.testing.assert_close(rotate(query, rotary(torch.tensor([[5]]), 8, 100.0)).norm(), query.norm())
    torch.testing.assert_close(score(3, 1), score(12, 10))
    assert not torch.isclose(score(3, 1), score(3, 2))
