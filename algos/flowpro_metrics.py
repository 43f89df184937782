"""What RPRO logs every step: losses beside the reference's, rewards, how much each term pulls, where rows came from.

Every value is a mean over the rows it names; a name is absent from a batch that has no such row.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from algos.batch import PreferenceBatch, TrajectoryBatch
from algos.host import count, indices, send
from algos.pairs import PairLosses

SOURCES = ("new", "older", "demonstrations", "ranked")
"""Names of the buffers, by `PreferenceBatch.source`."""


def loss_coefficients(
    r_w: Tensor, r_l: Tensor, *, beta: float, lambda_pro: float, lambda_sft: float, proximal: bool = True
) -> dict[str, tuple[Tensor, Tensor]]:
    """Derivative of each weighted term of eq. 9 by (l_w, l_l), each [B], in closed form.

    preference: (+, -) lambda_pro beta/2 s(-x); proximal: -lambda_pro beta/2 (s(r) - 1/2) for each; sft: lambda_sft on
    l_w. A positive sum pulls that flow loss down. For an identical pair both act on the same loss: the preference
    cancels and lambda_sft - lambda_pro beta (s(r) - 1/2) is left.
    """
    scale = 0.5 * beta * lambda_pro
    contrast = scale * torch.sigmoid(r_l - r_w)
    pull = scale if proximal else 0.0
    return {
        "preference": (contrast, -contrast),
        "proximal": (-pull * (torch.sigmoid(r_w) - 0.5), -pull * (torch.sigmoid(r_l) - 0.5)),
        "sft": (torch.full_like(r_w, lambda_sft), torch.zeros_like(r_l)),
    }


def _add_mean(metrics: dict[str, Tensor], name: str, values: Tensor, rows: Tensor) -> None:
    """Add the mean over these rows, if there are any."""
    if len(rows):
        metrics[name] = values.detach()[rows].float().mean()


def gradient_metrics(coefficients: dict[str, tuple[Tensor, Tensor]], identical: Tensor) -> dict[str, Tensor]:
    """How hard each term pulls: `gradient/<term>`, the norm of the batch loss's derivative by the distinct flow losses,
    and `gradient_share/<term>`, that norm over the sum of the terms' norms. On an identical pair both derivatives add.
    """
    norms = {}
    for term, (winner, loser) in coefficients.items():
        squares = torch.where(identical, (winner + loser).square(), winner.square() + loser.square())
        norms[term] = squares.sum().sqrt() / len(winner)
    total = torch.stack(list(norms.values())).sum().clamp(min=1e-12)
    return {f"gradient/{term}": norm for term, norm in norms.items()} | {
        f"gradient_share/{term}": norm / total for term, norm in norms.items()
    }


def rpro_metrics(
    pairs: PairLosses, parts: dict[str, Tensor], coefficients: dict[str, tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """Metrics of one batch of pairs; "winner" and "loser" are those of real pairs only.

    loss/<part> unweighted parts of eq. 9 over all pairs; flow/<side> and flow/<side>_reference flow losses;
    reward/<side> implicit rewards, reward/margin r_w - r_l, reward/accuracy share of r_w > r_l; capped/<side> share of
    pairs whose winner loss the whole objective no longer pulls down; see also `gradient_metrics`.
    """
    device = pairs.winner.device
    real, identical = (indices(mask, device) for mask in (~pairs.identical, pairs.identical))
    metrics = {f"loss/{part}": parts[part].detach().mean() for part in ("preference", "proximal", "sft")}
    pull_winner = torch.stack([winner for winner, _ in coefficients.values()]).sum(dim=0)
    pull_identical = pull_winner + torch.stack([loser for _, loser in coefficients.values()]).sum(dim=0)
    for name, values, rows in (
        ("flow/winner", pairs.winner, real),
        ("flow/winner_reference", pairs.reference_winner, real),
        ("flow/loser", pairs.loser, real),
        ("flow/loser_reference", pairs.reference_loser, real),
        ("flow/identical", pairs.winner, identical),
        ("flow/identical_reference", pairs.reference_winner, identical),
        ("reward/winner", parts["reward_winner"], real),
        ("reward/loser", parts["reward_loser"], real),
        ("reward/identical", parts["reward_winner"], identical),
        ("reward/margin", parts["margin"], real),
        ("reward/accuracy", parts["margin"] > 0, real),
        ("capped/winner", pull_winner <= 0, real),
        ("capped/identical", pull_identical <= 0, identical),
    ):
        _add_mean(metrics, name, values, rows)
    return metrics | gradient_metrics(coefficients, send(pairs.identical, device))


def rpro_metric_count(name: str, batch: PreferenceBatch | TrajectoryBatch) -> int:
    """How many things of a batch a metric of RPRO is a mean over."""
    if name.startswith("rows/"):
        return len(batch.source)
    if name == "weight_version":
        return count(batch.source != SOURCES.index("demonstrations"))
    if not name.startswith(("flow/", "reward/", "capped/")):
        return len(batch)
    real = count_real(batch)
    return len(batch) - real if "/identical" in name else real


def count_real(batch: PreferenceBatch | TrajectoryBatch) -> int:
    """Pairs with a loser of their own."""
    if isinstance(batch, TrajectoryBatch):
        return len(np.unique(batch.pair.numpy()[~batch.is_winner.numpy()]))
    return count(~batch.identical)


def source_metrics(source: Tensor, weight_version: Tensor) -> dict[str, Tensor]:
    """Share of each buffer, `rows/<name>`, and the mean version of the weights that produced the collected rows; all on
    the host."""
    metrics = {f"rows/{name}": (source == number).float().mean() for number, name in enumerate(SOURCES)}
    collected = indices(source != SOURCES.index("demonstrations"), weight_version.device)
    _add_mean(metrics, "weight_version", weight_version, collected)
    return metrics
