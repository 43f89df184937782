"""The contract of a policy of one's own, `algos.policy.Policy`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from algos.batch import ObservationBatch, TensorRecord, take_rows
from algos.policy import CHUNK, PolicySpec
from envs.by_name import brief
from envs.types import BIMANUAL, Layout
from rl_lab.common.errors import UserError
from rl_lab.contracts.samples import generator
from rl_lab.model.policies.own import load_own, make_own, save_own
from rl_lab.model.tokenizer import load_tokenizer

ROWS, WORDS, STEPS = 4, 5, 60
SIZES = {"chunk_size": CHUNK, "image_size": 64, "frames": 1}
TOLERANCE = 1e-4
"""Of numbers of about 1, between batches of different sizes."""

Groups = dict[str, list[nn.Parameter]]


def check_policy(source: str, settings: dict[str, Any]) -> Iterator[str]:
    """What holds of a policy, as it is found; ValueError at the first that does not.

    `settings` are its own, and of what it is made for chunk_size, image_size, frames and the fields of
    `envs.types.Layout`. UserError for sizes that there are not.
    """
    spec = _spec(settings)
    policy: Any = make_own(source, spec, seed=0)
    groups: Groups = {name: parameters for name, parameters in policy.parameter_groups().items() if parameters}
    sizes = ", ".join(f"{name} {sum(one.numel() for one in parameters)}" for name, parameters in groups.items())
    yield f"is made for {spec.layout}, with numbers to train: {sizes}"
    observation = observations(spec, ROWS)
    policy.train()
    prefix = _encoded(policy, observation)
    yield f"encodes each row by itself, without the group expert ({prefix_words(prefix)})"
    yield f"gives a finite loss for each row, {_losses(policy, prefix, spec):.4g} in the mean, from its own prefix"
    yield f"learns in {_moved(policy, prefix, groups)}"
    _sampled(policy, observation)
    yield f"samples chunks of {spec.chunk_size} commands of {spec.command_size} numbers, the same from the same noise"
    _saved(policy, source, observation)
    yield "acts alike when it was saved and read"
    yield _imitated(policy, observation, spec)


def _spec(settings: dict[str, Any]) -> PolicySpec:
    """What the policy is made for; takes what says so out of the settings."""
    named = {name: settings.pop(name) for name in (*vars(BIMANUAL), *SIZES) if name in settings}
    try:
        if "cameras" in named:
            named["cameras"] = tuple(named["cameras"])
        layout = Layout(**{name: named[name] for name in vars(BIMANUAL) if name in named})
    except (TypeError, ValueError) as error:
        raise UserError(str(error)) from error
    sizes = {name: named.get(name, size) for name, size in SIZES.items()}
    if wrong := [name for name, size in sizes.items() if type(size) is not int or size < 1]:
        raise UserError(f"{wrong[0]} is {sizes[wrong[0]]!r}; give a whole number from 1 on")
    return PolicySpec(layout, vocabulary=len(load_tokenizer()), settings=settings, **sizes)


def observations(spec: PolicySpec, num: int, seed: int = 1) -> ObservationBatch:
    """Random pictures and states, and instructions of several lengths."""
    random = generator(seed)
    views = (num, spec.num_cameras) if spec.frames == 1 else (num, spec.num_cameras, spec.frames)
    shape = (*views, 3, spec.image_size, spec.image_size)
    return ObservationBatch(
        images=torch.randint(0, 256, shape, dtype=torch.uint8, generator=random),
        state=torch.randn(num, spec.state_size, generator=random),
        tokens=torch.randint(0, spec.vocabulary, (num, WORDS), generator=random),
        token_mask=torch.arange(WORDS) < 1 + torch.arange(num)[:, None] % WORDS,
    )


def _parts(prefix: Any) -> dict[str, Any]:
    """The tensors of a prefix by name."""
    if isinstance(prefix, TensorRecord):
        return {field.name: getattr(prefix, field.name) for field in fields(prefix)}  # type: ignore[arg-type]
    return {"a tensor": prefix}


def prefix_words(prefix: Any) -> str:
    """Names and shapes of the tensors of a prefix."""
    return ", ".join(f"{name} {list(value.shape)}" for name, value in _parts(prefix).items())


def _encoded(policy: Any, observation: ObservationBatch) -> Any:
    """A prefix, checked to be rows of tensors that need neither each other nor the group expert."""
    prefix = policy.encode(observation)
    for name, value in _parts(prefix).items():
        if not isinstance(value, Tensor) or value.shape[:1] != (len(observation),):
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"encode gives {name} {found} for {len(observation)} observations; a prefix is a tensor whose first "
                "axis are the observations, or an algos.batch.TensorRecord of such"
            )
    alone = policy.encode(observation.select(torch.tensor([1])))
    pairs = zip(_parts(prefix).values(), _parts(alone).values(), strict=True)
    if not all(_near(whole[1:2], one) for whole, one in pairs):
        raise ValueError("encode gives a row another prefix in another batch; rows must not see each other")
    moving = [value.float().square().sum() for value in _parts(prefix).values() if value.requires_grad]
    if moving and any(_moves(torch.stack(moving).sum(), policy.parameter_groups().get("expert", []))):
        raise ValueError(
            "encode needs parameters of the group expert, but what it gives is kept while expert is trained; list them "
            "in the group vision or vlm"
        )
    return prefix


def _moves(value: Tensor, parameters: list[nn.Parameter]) -> Iterator[bool]:
    """Of each parameter whether the value follows it."""
    if value.requires_grad and parameters:
        for gradient in torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True):
            yield gradient is not None and bool(gradient.abs().sum() > 0)


def _draws(policy: Any, num: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise and times, checked."""
    noise, time = (draw(num, generator(seed)) for draw in (policy.sample_noise, policy.sample_time))
    shape = [num, policy.chunk_size, policy.action_dim]
    if list(noise.shape) != shape:
        raise ValueError(f"sample_noise gives {list(noise.shape)}; expected {shape}")
    if list(time.shape) != [num] or not bool(((time >= 0) & (time <= 1)).all()):
        raise ValueError(f"sample_time gives {brief(time)}; expected {num} times from 0 to 1")
    again = policy.sample_noise(num, generator(seed)), policy.sample_time(num, generator(seed))
    if not (torch.equal(noise, again[0]) and torch.equal(time, again[1])):
        raise ValueError("noise or times differ for the same generator; draw all of them from it")
    return noise, time


def _losses(policy: Any, prefix: Any, spec: PolicySpec) -> float:
    """Mean of the losses of some rows, checked."""
    if policy.chunk_size != spec.chunk_size or policy.action_dim < spec.command_size:
        raise ValueError(
            f"chunk_size and action_dim are {policy.chunk_size} and {policy.action_dim}; expected {spec.chunk_size} "
            f"and at least {spec.command_size}"
        )
    noise, time = _draws(policy, 2 * ROWS)
    actions = torch.randn(2 * ROWS, spec.chunk_size, spec.command_size, generator=generator(3))
    rows = torch.arange(2 * ROWS) // 2
    losses = policy.flow_losses(prefix, actions, noise, time, rows)
    if list(losses.shape) != [2 * ROWS] or not bool((torch.isfinite(losses) & (losses >= 0)).all()):
        raise ValueError(
            f"flow_losses gives {brief(losses)}; expected a finite loss of at least 0 for each of the rows"
        )
    if not torch.equal(losses, policy.flow_losses(prefix, actions, noise, time, rows)):
        raise ValueError("flow_losses differ for the same points; leave out dropout and whatever else is random")
    picked = policy.flow_losses(take_rows(prefix, rows), actions, noise, time)
    alone = policy.flow_losses(prefix, actions[5:6], noise[5:6], time[5:6], rows[5:6])
    if not (_near(losses, picked) and _near(losses[5:6], alone)):
        raise ValueError("row i of flow_losses must read prefix row rows[i], or i without rows, and no other row")
    return losses.mean().item()


def _moved(policy: Any, prefix: Any, groups: Groups) -> str:
    """Names of the groups; ValueError for one that no loss moves."""
    noise, time = _draws(policy, ROWS)
    actions = torch.zeros(ROWS, policy.chunk_size, policy.config.command_size)
    loss = policy.flow_losses(prefix, actions, noise, time).mean()
    for name, parameters in groups.items():
        if not any(_moves(loss, parameters)):
            raise ValueError(f"its loss moves no parameter of the group {name}; compute it from them, with gradients")
    return ", ".join(groups)


@torch.no_grad()
def _sample(policy: Any, observation: ObservationBatch, noise: Tensor) -> Tensor:
    return policy.eval().sample_actions(policy.encode(observation), noise)


def _sampled(policy: Any, observation: ObservationBatch) -> None:
    """ValueError for chunks of another shape, and such as follow from more than row and noise."""
    noise, _ = _draws(policy, ROWS)
    chunks = _sample(policy, observation, noise)
    shape = [ROWS, policy.chunk_size, policy.config.command_size]
    if list(chunks.shape) != shape or not bool(torch.isfinite(chunks).all()):
        raise ValueError(f"sample_actions gives {list(chunks.shape)}; expected finite numbers of shape {shape}")
    if not torch.equal(chunks, _sample(policy, observation, noise)):
        raise ValueError("sample_actions gives other chunks for the same noise; draw nothing in it")
    if not _near(chunks[1:2], _sample(policy, observation.select(torch.tensor([1])), noise[1:2])):
        raise ValueError("sample_actions gives a row another chunk in another batch; rows must not see each other")


def _saved(policy: Any, source: str, observation: ObservationBatch) -> None:
    noise, _ = _draws(policy, ROWS)
    with tempfile.TemporaryDirectory() as folder:
        save_own(Path(folder), policy)
        read = load_own(Path(folder), source)
    if not torch.equal(_sample(read, observation, noise), _sample(policy, observation, noise)):
        raise ValueError("it acts otherwise when it was saved and read; keep what it knows in parameters and buffers")


def _imitated(policy: Any, observation: ObservationBatch, spec: PolicySpec) -> str:
    """Samples come nearer to a chunk that is imitated: time and sign are the lab's."""
    target = torch.randn(1, spec.chunk_size, spec.command_size, generator=generator(4)).expand(ROWS, -1, -1)

    def distance() -> float:
        noise, _ = _draws(policy, ROWS, seed=5)
        return (_sample(policy, observation, noise) - target).square().mean().item()

    before = distance()
    parameters = [one for group in policy.parameter_groups().values() for one in group]
    optimiser = torch.optim.AdamW(parameters, lr=1e-3)
    policy.train()
    for step in range(STEPS):
        noise, time = _draws(policy, ROWS, seed=6 + step)
        optimiser.zero_grad()
        policy.flow_losses(policy.encode(observation), target, noise, time).mean().backward()
        optimiser.step()
    after = distance()
    words = f"squared distance {before:.3g} before and {after:.3g} after {STEPS} steps"
    if not after < before:
        raise ValueError(
            f"its samples come no nearer to a chunk that it imitates ({words}); time is 1 for noise and 0 for the "
            "chunk, in flow_losses and in sample_actions"
        )
    return f"samples what it imitates: {words}"


def _near(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.float(), second.float(), rtol=TOLERANCE, atol=TOLERANCE)
