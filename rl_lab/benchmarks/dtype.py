"""What bfloat16 gives a training on this device beside float32: time of a step and of a sampled chunk, and the loss.

    python -m rl_lab.bench dtype preset=small

Both types learn the same demonstrations of the expert from the same rows, noise and times, and take turns, so that
other load hits both alike. On a CPU the time is that of the process.
"""

from __future__ import annotations

import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch

from envs.options import PositiveInt, Processes, Rows, Seed
from envs.types import Episode
from rl_lab.benchmarks.options import Device, check_device
from rl_lab.common.machine import seconds
from rl_lab.config.actions import SFTConfig
from rl_lab.config.section import ModelConfig, Preset
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.dtype import BFLOAT16, FLOAT32
from rl_lab.learner.plans import Training
from rl_lab.model.presets import preset_config
from rl_lab.records.action_datasets import DemonstrationStream
from rl_lab.records.episodes import write_episodes
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit

TASK = "lift_pot"
QUARTERS = 4
HELD_OUT_ROWS = 32


def run(
    preset: Preset = "small",
    device: Device = "cpu",
    steps: PositiveInt = 100,
    batch: Rows = 8,
    draws: Rows = 4,
    episodes: PositiveInt = 8,
    threads: Processes = 1,
    seed: Seed = 0,
) -> list[dict[str, Any]]:
    """A row a type: median seconds of a step and of a chunk for one observation, float32's time over its own, mean loss
    over quarters of the steps, and loss on two other demonstrations. UserError for a device that is not there."""
    check_device(device)
    settings = SFTConfig(
        steps=steps, warmup=steps // 10, batch_size=batch, draws_per_sample=draws, threads=threads, ema=0.0
    )
    *learned, held_out, other = _demonstrations(preset, episodes + 2)
    with tempfile.TemporaryDirectory() as folder:
        write_episodes(Path(folder), learned)
        plan = SFTPlan(ModelConfig(preset=preset), settings, Path(folder), stride=1, seed=seed)
        trainings = {dtype: plan.in_dtype(dtype).training(device) for dtype in (FLOAT32, BFLOAT16)}
    losses: dict[str, list[float]] = {dtype: [] for dtype in trainings}
    times: dict[str, list[float]] = {dtype: [] for dtype in trainings}
    for _ in range(steps):
        for dtype, training in trainings.items():
            times[dtype].append(seconds(partial(_step, training, losses[dtype]), device))
    table: list[dict[str, Any]] = [
        {"type": dtype, "step, s": statistics.median(times[dtype])}
        | {f"loss, quarter {part + 1}": value for part, value in enumerate(_quarters(losses[dtype]))}
        | _acting(training, [held_out, other], device)
        for dtype, training in trainings.items()
    ]
    for what in ("step", "chunk"):
        for row in table:
            row[f"float32 / own, {what}"] = table[0][f"{what}, s"] / row[f"{what}, s"]
    return table


def _demonstrations(preset: str, count: int) -> list[Episode]:
    side = preset_config(preset).image_size
    unit = Unit(EnvSpec("tabletop", TASK, "clean", image_size=side), tuple(range(count)), run_seed=0)
    return [found for found in Simulation().demonstrate(unit, 0.0) if isinstance(found, Episode)]


def _step(training: Training, losses: list[float]) -> None:
    losses.append(training.run_step()["loss"])


def _quarters(losses: list[float]) -> list[float]:
    """Means over the steps of each quarter."""
    return [float(part.mean()) for part in torch.tensor(losses).chunk(QUARTERS)]


@torch.no_grad()
def _acting(training: Training, episodes: list[Episode], device: str) -> dict[str, float]:
    """Loss on rows of other demonstrations, and the time of a chunk for the first of them."""
    data, policy, generator = training.parts.data, training.learner.policy.eval(), torch.Generator().manual_seed(0)
    stream = DemonstrationStream(episodes, data.processor, data.timing, batch_size=HELD_OUT_ROWS, seed=0)  # type: ignore[attr-defined]
    rows = stream.batch(0).to(device)
    noise, time = (draw(HELD_OUT_ROWS, generator) for draw in (policy.sample_noise, policy.sample_time))
    loss = policy.flow_losses(policy.encode(rows.observation), rows.actions, noise, time).mean()
    assert rows.observation is not None
    first = rows.observation.select(torch.arange(1))
    chunk_s = [seconds(lambda: policy.sample_actions(policy.encode(first), noise[:1]), device) for _ in range(5)]
    return {"held-out loss": float(loss), "chunk, s": statistics.median(chunk_s)}
