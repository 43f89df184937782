"""The golden sets (`rl_lab.benchmarks.golden`), numbers of the reference implementation on a CPU, on another device."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from algos.flow_matching import interpolate
from rl_lab.benchmarks.golden import (
    ACTIONS,
    FULL,
    HIDDEN,
    HISTORY,
    LANGUAGE,
    LOSS,
    SINGLE_FRAME,
    Case,
    golden_path,
    language_inputs,
    language_tensors,
    load_case,
    load_language_model,
    load_policy,
    valid_tokens,
)
from rl_lab.benchmarks.gpu.table import Row

GRADIENTS = {"atol": 1e-7, "rtol": 1e-4}


def parity(device: str, precision: str) -> Iterator[Row]:
    """Float32 without TF32: the largest error, beside the bound that holds on CPUs. bfloat16: RMS error over RMS."""
    dtype = getattr(torch, precision)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for name in SINGLE_FRAME + HISTORY:
        yield from _policy_rows(load_case(name), device, dtype)
    if dtype == torch.float32:
        for name in FULL:
            yield _gradient_row(load_case(name), device)
    model = copy.deepcopy(load_language_model()).to(device, dtype)  # type: ignore[arg-type]
    for name in LANGUAGE:
        yield _language_row(name, model, device)


def _policy_rows(case: Case, device: str, dtype: torch.dtype) -> Iterator[Row]:
    """Velocity at one time, loss, and a sampled chunk."""
    policy = copy.deepcopy(case.policy).to(device, dtype)  # type: ignore[arg-type]
    action, noise, time = (case[f"in.{name}"].to(device) for name in ("action", "noise", "time"))
    padded = F.pad(action, (0, policy.action_dim - action.shape[-1]))
    with torch.no_grad():
        prefix = policy.encode(case.batch.to(device))
        velocity = policy.velocity(prefix, interpolate(padded, noise, time), time)
        loss = policy.flow_losses(prefix, action, noise, time).mean().reshape(1)
        actions = policy.sample_actions(prefix, noise)
    yield compared(f"{case.name}: velocity", velocity, case["out.train.v_pred"], ACTIONS, dtype)
    yield compared(f"{case.name}: loss", loss, case["out.train.loss"], LOSS, dtype)
    yield compared(f"{case.name}: sampled actions", actions, case["out.sample.pred_actions"], ACTIONS, dtype)


def _gradient_row(case: Case, device: str) -> Row:
    """Norms of the gradients of all parameters."""
    policy = load_policy(**case.overrides).to(device)  # type: ignore[arg-type]
    action, noise, time = (case[f"in.{name}"].to(device) for name in ("action", "noise", "time"))
    policy.flow_losses(policy.encode(case.batch.to(device)), action, noise, time).mean().backward()
    norms = json.loads(golden_path(f"{case.name}_grads.json").read_text())["grad_l2_norm"]
    parameters = dict(policy.named_parameters(remove_duplicate=False))
    found = [gradient_norm(parameters[name]) for name in norms]
    expected = torch.tensor([norm or 0.0 for norm in norms.values()])
    return compared(f"{case.name}: norms of {len(norms)} gradients", torch.stack(found), expected, GRADIENTS)


def gradient_norm(parameter: torch.nn.Parameter) -> Tensor:
    """On the host; 0 for a parameter that nothing reads."""
    return torch.zeros(()) if parameter.grad is None else parameter.grad.norm().cpu()


@torch.no_grad()
def _language_row(name: str, model: Any, device: str) -> Row:
    """Logits at all valid tokens, or at the last four where only those are recorded."""
    case = language_tensors(name)
    kept, key = (4, "out.logits_last4") if "out.logits_last4" in case else (0, "out.logits")
    inputs = {key: value.to(device) for key, value in language_inputs(case).items()}
    logits, where = model(**inputs, logits_to_keep=kept).logits.cpu(), valid_tokens(case)[:, -kept:]
    return compared(f"{name}: logits", logits[where], case[key][where], HIDDEN, model.dtype)


def compared(
    what: str, actual: Tensor, expected: Tensor, bound: dict[str, float], dtype: torch.dtype = torch.float32
) -> Row:
    """Errors of a tensor on any device against one on the host; see `parity`."""
    error = (actual.detach().cpu().double() - expected.double()).abs()
    if dtype != torch.float32:
        rms = error.square().mean().sqrt() / expected.double().square().mean().sqrt()
        return Row(what, rms.item(), "", "RMS error over RMS")
    allowed = bound["atol"] + bound["rtol"] * expected.double().abs()
    share = (error / allowed).max().item()
    verdict = "holds" if share <= 1 else "is exceeded"
    return Row(what, error.max().item(), "", f"largest error; the bound on CPUs {verdict}, {share:.2g} of it")
