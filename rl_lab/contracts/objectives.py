"""The contract of an objective, `algos.objective.Objective`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from algos.methods import Rows, own_objective
from envs.by_name import brief
from rl_lab.common.errors import UserError
from rl_lab.contracts.samples import SamplePolicy, generator, imitation_batch, preference_batch, trajectory_batch

GROUPS = ("vlm", "expert")
ROWS = 6
BATCHES: dict[Rows, Callable[[], Any]] = {
    "demonstrations": lambda: imitation_batch(ROWS, ROWS),
    "winners": lambda: imitation_batch(ROWS, 2),
    "labelled": lambda: imitation_batch(ROWS, 2),
    "tuples": lambda: preference_batch(ROWS, 2),
    "trajectories": lambda: trajectory_batch(ROWS),
}
"""What the learner hands over, by `rows` of the entry in `objectives`."""
TOLERANCE = 1e-4


def check_objective(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of an objective, as it is found; ValueError at the first that does not.

    `settings` are those of its entry in `objectives`: `rows`, `reference`, and its own. UserError for unknown rows.
    """
    rows, reference = settings.pop("rows", "tuples"), settings.pop("reference", "previous")
    if rows not in BATCHES:
        raise UserError(f"rows is {rows!r}; choose one of {', '.join(BATCHES)}")
    policy, batch = SamplePolicy(0), BATCHES[rows]()
    given = () if reference == "none" else (SamplePolicy(1).requires_grad_(False),)
    made = own_objective(source, *given, groups=GROUPS, draws_per_sample=2, **settings)
    if not set(made.groups) <= set(GROUPS):
        raise ValueError(f"groups are {made.groups}, but it was given {GROUPS}; train those, or some of them")
    yield f"is made with its settings and trains {', '.join(made.groups)}"
    loss, metrics = _loss(made, policy, batch)
    yield f"gives a finite loss ({loss.item():.4g}) and the metrics {', '.join(metrics) or '(none)'}"
    loss.backward()
    trained = [*policy.parameters(), *made.parameters()]
    if not any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained):
        raise ValueError("its loss moves no weight of the policy; compute it by policy.encode and policy.flow_losses")
    yield "moves the weights that it trains"
    again, _ = _loss(made, policy, batch)
    if again.item() != loss.item():
        raise ValueError("the same batch and generator give another loss; draw all randomness from the generator")
    yield "draws all randomness from the generator: the same bits again"
    yield from _divided(made, policy, batch)


def _loss(objective: Any, policy: SamplePolicy, batch: Any, *denominator: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and metrics, checked."""
    result = objective.loss(policy, batch, generator(), *denominator)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError("loss must give (scalar, {name: metric}); it gave " + type(result).__name__)
    loss, metrics = result
    if not isinstance(loss, Tensor) or loss.shape != () or not torch.isfinite(loss):
        raise ValueError(f"its loss is {brief(loss)}; it must be one finite number, a tensor of shape ()")
    for name, value in metrics.items():
        if not isinstance(value, Tensor) or value.numel() != 1 or value.requires_grad:
            raise ValueError(f"metric {name} must be a detached tensor with one number, such as value.detach().mean()")
    return loss, metrics


def _divided(objective: Any, policy: SamplePolicy, batch: Any) -> Iterator[str]:
    """The losses of the parts of a batch add up to its own, as passes and ranks divide it."""
    count = objective.denominator(batch) if hasattr(objective, "denominator") else len(batch)
    if not hasattr(objective, "draw"):
        yield "has no `draw`, so parts of a divided batch draw anew: equal in the mean, not in bits"
        return
    drawn = objective.draw(policy, batch, generator())
    whole, _ = _loss(objective, policy, drawn)
    parts = [_loss(objective, policy, drawn.select(torch.tensor([row])), count)[0] for row in range(len(batch))]
    total = torch.stack(parts).sum()
    if abs(total.item() - whole.item()) > TOLERANCE * max(1.0, abs(whole.item())):
        raise ValueError(
            f"parts of the batch have losses of {total.item():.6g} together, but the whole has {whole.item():.6g}; "
            "return a sum over rows divided by `denominator` (default: the rows of the batch)"
        )
    yield "gives parts of a divided batch losses that add up to the whole's"
