"""Flow matching off the path: wherever the flow stands, it is sent to the winner. docs/studies.md says how it fared.

python -m rl_lab.check objective examples/off_path.py:OffPath rows=winners reference=none
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from algos.batch import indices
from algos.flow_matching import FlowMatching, draw_flow, policy_prefix
from algos.flowpro import SOURCES
from algos.objective import FlowPolicy

MIN_TIME = 0.1
"""No point lies nearer to the end of the flow, where the way to another chunk would ask for a boundless velocity."""


class OffPath(FlowMatching):
    """L = l(w) + weight * l_off(w) on collected rows, and l(w) on demonstrations, l the flow loss towards the winner w.

    l_off starts at a point of another chunk's path, x = t e + (1 - t) a', and its velocity is that which ends in w,
    (x - w) / t. The same x lies on the winner's path for the noise e + (1 - t) / t (a' - w), so l_off is the flow loss
    of w with that noise. a' is the winner of another collected row.
    """

    def __init__(self, *, weight: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.weight = weight

    def draw(self, policy: FlowPolicy, batch: Any, generator: torch.Generator) -> Any:
        """The batch with its random points, and as loser of each collected row the winner of the one before it."""
        collected, loser = _collected(batch), batch.winner.clone()
        loser[collected] = batch.winner[collected].roll(1, 0)
        return super().draw(policy, replace(batch, loser=loser), generator)

    def loss(
        self, policy: FlowPolicy, batch: Any, generator: torch.Generator, denominator: int | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar and the metrics `flow/loss` and `flow/off_path`; see `Objective.loss`."""
        if batch.draws is None:
            batch = self.draw(policy, batch, generator)
        draws = self.draws_per_sample
        prefix = policy_prefix(policy, batch, self.groups)
        noise, time, rows = draw_flow(policy, batch, draws, generator)
        off = (_collected(batch)[:, None] * draws + torch.arange(draws, device=rows.device)).flatten()
        winner, off_noise, off_time = batch.winner[rows], noise[off].clone(), time[off].clamp(min=MIN_TIME)
        shift = ((1 - off_time) / off_time)[:, None, None] * (batch.loser[rows[off]] - winner[off])
        off_noise[..., : shift.shape[-1]] += shift
        losses = policy.flow_losses(
            prefix,
            torch.cat([winner, winner[off]]),
            torch.cat([noise, off_noise]),
            torch.cat([time, off_time]),
            torch.cat([rows, rows[off]]),
        )
        on_path, off_path = losses[: len(rows)].sum() / draws, losses[len(rows) :].sum() / draws
        metrics = {"flow/loss": on_path.detach() / len(batch), "flow/off_path": off_path.detach() / len(batch)}
        return (on_path + self.weight * off_path) / (denominator or len(batch)), metrics


def _collected(batch: Any) -> Tensor:
    """Rows that are no demonstrations, int64."""
    return indices(batch.source != SOURCES.index("demonstrations"), batch.winner.device)
