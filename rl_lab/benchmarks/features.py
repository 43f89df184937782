"""What joint training did to what the action expert reads, on demonstrations that nothing has learned from.

    python -m rl_lab.bench features run=RUN

Keys and values of every layer, f of a model and f0 of the policy that its arm began with, in the states of the scripted
expert's episodes on development seeds. Of every arm and training seed:

    moved         |f - f0| / |f0 - mean of f0 over states|, root mean squares over states, tokens and layers: at 1 they
                  moved as far as states lie from their mean
    common        share of |f - f0|^2 that is the same in all states, which biases could give
    start, loss   flow-matching loss of the start and of the model, the same noise for all
    old expert    that of the model's vision and language with the expert of the start
    random        that of the start whose vision and language moved in random directions until keys and values moved as
                  far, each weight matrix in proportion to the arm's move
    times         so many times as far as in the arm these weights went for it
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from algos.flow_matching import FlowMatching
from algos.methods import find_method
from envs.options import Rows
from envs.types import Episode
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import evaluation_seeds, torch_stream
from rl_lab.config.schema import RunConfig
from rl_lab.model.action_expert import Prefix
from rl_lab.model.checkpoint import load_policy
from rl_lab.records.action_batches import demonstrations
from rl_lab.records.action_datasets import Dataset, encode_rows, preference_data
from rl_lab.reports.run import load_run, study_place
from rl_lab.stages.kinds import resolve_config
from rl_lab.workers.simulation import Simulation, env_specs, episode_units

SHARED = ("vision", "vlm")
"""Groups of weights that make what the expert reads."""


def run(run: str = "", episodes: Rows = 20, draws: Rows = 4) -> list[dict[str, Any]]:
    """One row for each arm of a joint run, or of a study of them; `draws` of the flow in each state."""
    if not run:
        raise UserError("run is empty; name the folder of a run with the stage joint, run=FOLDER")
    found = load_run(Path(run))
    if not found.joint:
        raise UserError(f"{run} has no arm of joint training; name a run with the stage joint")
    config = resolve_config(found.config, str(found.path))
    demos, rows = held_out_demonstrations(config, episodes), []
    for arm in found.joint:
        start = next(stage for stage in found.stages if stage.name == arm.node).inputs or {}
        if "policy" not in start:
            raise UserError(f"{arm.node} began with {config.model.path}, not with a stage of {run}")
        measured = compare(found.path / "checkpoints" / start["policy"], arm.folder, demos, config.demos.stride, draws)
        rows.append({"arm": arm.name, "seed": study_place(arm.node)[1]} | measured)
    return rows


def held_out_demonstrations(config: RunConfig, count: int) -> list[Episode]:
    """The expert's episodes on the first development seeds of each task and variant, without noise."""
    seeds, simulation = evaluation_seeds("development", count), Simulation()
    units = [unit for spec in env_specs(config, "seen") for unit in episode_units("demos", spec, seeds, config.seed)]
    shown = [one for unit in units for one in simulation.demonstrate(unit, 0.0)]
    return [one for one in shown if isinstance(one, Episode) and one.success]


@torch.no_grad()
def compare(start: Path, arm: Path, demos: Sequence[Episode], stride: int, draws: int) -> dict[str, float]:
    """The numbers of one arm, see the module."""
    (old, processor, info), new = load_policy(start), load_policy(arm)[0]
    timing = info.timing(processor.num_commands, stride)
    data: Dataset = preference_data(
        find_method("continued_sft"),
        [],
        demonstrations(demos, timing),
        processor,
        timing,
        mix=[1.0],
        batch_size=1,
        seed=0,
    )

    def loss(policy: Any) -> float:
        policy.eval()
        return FlowMatching(draws_per_sample=draws).loss(policy, data.rows, torch_stream(0, "features"))[0].item()

    def features(policy: Any) -> Any:
        return encode_rows(policy.eval(), data.rows.observation)

    mixed, pushed, before = copy.deepcopy(old), copy.deepcopy(old), features(old)
    found = distances(before, features(new))
    parts = [
        [one for group in SHARED for one in policy.parameter_groups()[group]] for policy in (old, new, mixed, pushed)
    ]
    generator = torch_stream(0, "features", "random")
    steps = [_as_far(now - was, generator) for was, now in zip(*parts[:2], strict=True)]
    for was, now, taken, aside, step in zip(*parts, steps, strict=True):
        taken.copy_(now)
        aside.copy_(was + step)
    near = distances(before, features(pushed))["moved"]
    times = found["moved"] / near if near else 1.0
    for was, aside, step in zip(parts[0], parts[3], steps, strict=True):
        aside.copy_(was + times * step)
    losses = {"start": loss(old), "loss": loss(new), "old expert": loss(mixed), "random": loss(pushed)}
    return found | losses | {"times": times}


def _as_far(move: Tensor, generator: torch.Generator) -> Tensor:
    """A random tensor of the same norm."""
    drawn = torch.randn(move.shape, generator=generator)
    return drawn * (move.norm() / drawn.norm())


def distances(before: Prefix, after: Prefix) -> dict[str, float]:
    """`moved` and `common` of the keys and values of valid tokens, see the module."""
    known = before.valid[:, None, None, :, None].to(before.keys.dtype)
    count = known.sum(0).clamp(min=1)
    apart = same = spread = 0.0
    for first, second in ((before.keys, after.keys), (before.values, after.values)):
        move, mean = (second - first) * known, (first * known).sum(0) / count
        apart += move.square().sum().item()
        same += ((move.sum(0) / count).square() * known).sum().item()
        spread += ((first - mean).square() * known).sum().item()
    return {"moved": (apart / spread) ** 0.5, "common": same / apart if apart else 0.0}
