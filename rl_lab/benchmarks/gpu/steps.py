"""Training steps of a policy: time, share of the device's arithmetic, memory beside its plan, host waits."""

from __future__ import annotations

import copy
import statistics
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from algos.batch import PreferenceBatch
from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from algos.policy import GROUPS
from rl_lab.benchmarks.direct import padded
from rl_lab.benchmarks.gpu.table import Row, skipped
from rl_lab.benchmarks.model import count_flops, device_rates, seconds
from rl_lab.benchmarks.rpro import REAL_SHARE, random_batch
from rl_lab.common.files import ROOT
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.learner.memory_plan import memory_plan
from rl_lab.model.lora import Adapted
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config

NEEDS_CUDA = "needs CUDA"
LORA: dict[str, Any] = {"rank": 16, "alpha": 32.0, "targets": ("attention", "mlp")}
BATCH = {"nano": 4, "mini": 32, "mot-2b": 16}
WARM_UP, ROUNDS = 2, 7
PEAK_FLOPS = {"B200": 2.25e15, "H200": 989.4e12, "H100": 989.4e12, "A100": 312e12}
"""bfloat16 of the data sheets, without sparsity, by a part of the device's name."""


def make_policy(device: str, preset: str) -> HyVLAPolicy:
    """A policy of bfloat16 random weights, made on the device."""
    torch.manual_seed(0)
    with torch.device(device):
        return HyVLAPolicy._from_config(preset_config(preset), dtype=torch.bfloat16)


def make_learner(device: str, preset: str, lora: bool) -> Learner:
    """Imitation (`sft`) with everything trained, or adapters on everything."""
    policy: Any = make_policy(device, preset)
    learner = Learner(Adapted(policy, GROUPS, **LORA) if lora else policy, seed=0)
    learner.add("sft", FlowMatching(GROUPS), Optimiser(lr=1e-6, steps=1000))
    return learner


def make_batch(policy: Any, preset: str, real: float = 1.0) -> PreferenceBatch:
    """Random rows on the policy's device; instructions have the full length, for which memory is planned."""
    size = BATCH[preset]
    batch = random_batch(policy, size, num_real=round(real * size))
    assert batch.observation is not None
    return replace(batch, observation=padded(batch.observation, policy.config.tokenizer_max_length))


def turns(works: Mapping[str, Callable[[], Any]], device: str) -> list[dict[str, float]]:
    """Seconds of works that take turns, of each round after those that warm up."""
    rounds = [{name: seconds(work, device) for name, work in works.items()} for _ in range(WARM_UP + ROUNDS)]
    return rounds[WARM_UP:]


def training(device: str, preset: str, lora: bool) -> Iterator[Row]:
    """Step time, throughput and memory with recomputed and with kept activations; arithmetic of the latter."""
    learner = make_learner(device, preset, lora)
    batch = make_batch(learner.policy, preset)
    trained = sum(parameter.numel() for parameter in learner.tracks["sft"].parameters)
    yield Row("parameters trained", trained / 1e6, "million", f"bfloat16, batch {len(batch)}, one chunk a row")
    for recompute in (True, False):
        getattr(learner.policy, f"gradient_checkpointing_{'enable' if recompute else 'disable'}")()
        how = f"activations {'recomputed' if recompute else 'kept'}"
        step = partial(learner.step, "sft", batch)
        step()
        yield _memory_row(step, learner.policy.config, device, recompute, lora, len(batch))
        time_s = statistics.median(turn["step"] for turn in turns({"step": step}, device))
        yield Row(f"step, {how}", 1e3 * time_s, "ms", f"{len(batch) / time_s:.1f} rows a second")
    yield from _arithmetic(learner, batch, time_s, device)


def _memory_row(step: Callable[[], Any], config: Any, device: str, recompute: bool, lora: bool, batch: int) -> Row:
    """Measured peak of a second step, when all moments are there, beside the plan."""
    what = f"peak memory over its plan, activations {'recomputed' if recompute else 'kept'}"
    plan = memory_plan(config, batch=batch, recompute=recompute, lora=LORA if lora else None)
    planned = f"planned {plan.peak / 1e9:.4g} GB, of it activations {plan.activations / 1e9:.3g}"
    if device == "cpu":
        step()
        return skipped(what, f"{NEEDS_CUDA}; {planned}")
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    peak, reserved = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    return Row(what, peak / plan.peak, "", f"{planned}; measured {peak / 1e9:.4g} GB, reserved {reserved / 1e9:.4g}")


class AttentionKernels(TorchDispatchMode):
    """Names of the attention operations that run inside; none where torch chose matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation."""
        name = str(function.overloadpacket)
        if "attention" in name:
            self.names.add(name.removeprefix("aten._scaled_dot_product_"))
        return function(*args, **(kwargs or {}))


def _arithmetic(learner: Learner, batch: PreferenceBatch, time_s: float, device: str) -> Iterator[Row]:
    """FLOPs of matrix products and attention, forward and backward, over the time of a whole step.

    They are counted on one row, with attention as matrix products: not every kernel of it can be counted.
    """
    objective, row = learner.tracks["sft"].objective, batch.select(torch.arange(1))

    def loss() -> Tensor:
        return objective.loss(learner.policy, row, torch.Generator().manual_seed(0))[0]

    with AttentionKernels() as kernels:
        loss()
    with sdpa_kernel(SDPBackend.MATH):
        flops = len(batch) * count_flops(lambda: loss().backward())
    rate = flops / time_s
    by = f"attention by {', '.join(sorted(kernels.names)) or 'matrix products'}"
    yield Row("arithmetic of a step", flops / 1e12, "TFLOP", by)
    yield Row("rate", rate / 1e12, "TFLOP/s", "activations kept")
    product, copy_rate = device_rates(device, torch.bfloat16)
    note = f"of {product / 1e12:.4g} TFLOP/s; a copy moves {copy_rate / 1e9:.4g} GB/s"
    yield Row("utilisation of a large matrix product's rate", rate / product, "", note)
    name = "CPU" if device == "cpu" else torch.cuda.get_device_name(0)
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)
    if peak is None:
        yield skipped("MFU", f"no data sheet's rate of {name} is known here")
    else:
        yield Row("MFU", rate / peak, "", f"of the data sheet's {peak / 1e12:.4g} TFLOP/s in bfloat16")


def rpro(device: str, preset: str, lora: bool) -> Iterator[Row]:
    """A step of RPRO over one of imitation on the same rows, taking turns; the reference's prefix is stored."""
    learner = make_learner(device, preset, lora)
    policy = learner.policy
    reference = policy.reference if lora else copy.deepcopy(policy).eval().requires_grad_(False)
    learner.add("rpro", RPRO(reference, groups=GROUPS), Optimiser(lr=1e-6, steps=1000))
    for words, real in (("all pairs real", 1.0), ("usual mix", REAL_SHARE)):
        batch = make_batch(policy, preset, real)
        with torch.no_grad():
            stored = replace(batch, reference_prefix=reference.encode(batch.observation))
        works = {"sft": partial(learner.step, "sft", batch), "rpro": partial(learner.step, "rpro", stored)}
        times = turns(works, device)
        sft, ratio = (statistics.median(map(f, times)) for f in (lambda t: t["sft"], lambda t: t["rpro"] / t["sft"]))
        yield Row(f"RPRO over SFT, {words}", ratio, "", f"SFT {1e3 * sft:.4g} ms, batch {len(batch)}, bfloat16")


def waits(device: str, preset: str) -> Iterator[Row]:
    """How often the host waits for the device, and where."""
    learner = make_learner(device, preset, lora=False)
    policy, batch = learner.policy, make_batch(learner.policy, preset, REAL_SHARE)
    learner.add(
        "rpro",
        RPRO(copy.deepcopy(policy).eval().requires_grad_(False), groups=GROUPS),
        Optimiser(lr=1e-6, steps=1000),
    )
    noise = policy.sample_noise(len(batch), torch.Generator().manual_seed(0))

    def backward(name: str) -> None:
        objective = learner.tracks[name].objective
        objective.loss(policy, batch, torch.Generator().manual_seed(0))[0].backward()

    def sample() -> None:
        with torch.no_grad():
            policy.sample_actions(policy.encode(batch.observation), noise)

    works: dict[str, tuple[int, Callable[[], Any]]] = {
        "SFT, forward and backward": (0, partial(backward, "sft")),
        "SFT, whole step": (1, partial(learner.step, "sft", batch)),
        "RPRO, forward and backward": (0, partial(backward, "rpro")),
        "RPRO, whole step": (1, partial(learner.step, "rpro", batch)),
        "a chunk sampled": (0, sample),
    }
    for what, (expected, work) in works.items():
        work()  # constants of the model are copied to the device once
        work()
        if device == "cpu":
            yield skipped(f"host waits, {what}", NEEDS_CUDA)
            continue
        places = host_waits(work)
        where = ", ".join(f"{place} ({times})" for place, times in Counter(places).items())
        note = f"expected {expected}" + (", where the learner reads its numbers" if expected else "")
        yield Row(f"host waits, {what}", len(places), "", f"{note}; waited in {where}" if where else note)


def host_waits(work: Callable[[], Any]) -> list[str]:
    """Our line behind every operation inside `work` for which torch says that the host waited for CUDA."""
    places: list[str] = []

    def note(message: Any, *_: Any, **__: Any) -> None:
        if "called a synchronizing" in str(message):
            places.append(our_line())

    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return places


def our_line() -> str:
    """File and line of the innermost frame in the lab's code that is not this benchmark's."""
    here = Path(__file__).parent
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        if path.is_relative_to(ROOT) and path.parent != here and "site-packages" not in path.parts:
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "elsewhere"
