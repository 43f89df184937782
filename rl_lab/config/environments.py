"""Environments of one's own: `env.backend` names a function that declares one (`envs.declared`)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from envs.by_name import blamed, load
from envs.declared import Declaration, DeclarationError, DeclaredEnv
from envs.types import BIMANUAL, Layout
from rl_lab.common.errors import UserError
from rl_lab.config.env import EnvConfig
from rl_lab.config.schema import RunConfig


def declared_environment(
    backend: str, task: str, variant: str, image_size: int, instruction_split: str = "seen"
) -> DeclaredEnv:
    """Call the function that a backend names. UserError, with what it raised, where it declares no environment."""
    with _said(f"env.backend: {backend} cannot make {task} ({variant})"):
        made = load(backend)(task, variant)
        if not isinstance(made, Declaration):
            raise DeclarationError(f"it gives a {type(made).__name__}; expected an envs.declared.Declaration")
        return DeclaredEnv(made, task, variant, image_size, instruction_split)


@contextlib.contextmanager
def _said(what: str) -> Iterator[None]:
    """Whatever the user's code raises becomes one UserError with its line."""
    try:
        with blamed():
            yield
    except Exception as error:
        text = " ".join(str(error).split())
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise UserError(f"{what}: {kind}{text}") from error


@functools.cache
def _begun(backend: str, task: str, variant: str, image_size: int) -> DeclaredEnv:
    """An own environment whose first episode was begun, closed again: what is declared, and its layout, stay."""
    env = declared_environment(backend, task, variant, image_size)
    with _said(f"env.backend: {backend} cannot begin an episode of {task} ({variant})"):
        env.reset(seed=0)
        assert env.layout
        env.env.close()
    return env


def environment_layout(env: EnvConfig) -> Layout:
    """What states, commands and cameras are in the environments of a run. UserError where its tasks differ in that."""
    if not env.is_own:
        return BIMANUAL
    kinds = [(task, variant) for task in env.tasks for variant in env.variants]
    found = {kind: _begun(env.backend, *kind, env.image_size).layout for kind in kinds}
    first = next(iter(found.values()))
    other = next((kind for kind, layout in found.items() if layout != first), None)
    if other is not None:
        raise UserError(
            f"env.tasks: {kinds[0][0]} has {first}, but {other[0]} ({other[1]}) {found[other]}; a policy learns one "
            "kind, so make a run of each"
        )
    return first


def check_own_environment(config: RunConfig) -> None:
    """UserError unless every task begins, and gives what the stages of a run ask of it."""
    layout = environment_layout(config.env)
    kinds = [(task, variant) for task in config.env.tasks for variant in config.env.variants]
    begun = [_begun(config.env.backend, *kind, config.env.image_size) for kind in kinds]
    if not all(env.declared.expert for env in begun):
        if config.reads("demos") and config.demos.files is None:
            raise UserError("demos: the environment declares no expert; give demos.files, or an expert")
        if config.collects_pairs and config.collect.corrector.kind == "scripted_expert":
            raise UserError(
                "collect.corrector: the environment declares no expert; use {kind: policy} or {kind: recorded}"
            )
    if layout.numbers != "ee" and config.demos.action_noise_m > 0:
        raise UserError("demos.action_noise_m is in metres, but commands are no poses; set it to 0")
    if layout.numbers != "ee" and config.collect.corrector.noise_m > 0:
        raise UserError("collect.corrector.noise_m is in metres, but commands are no poses; set it to 0")
    if "rank" in config.stage_names:
        _check_candidates(config, begun)
    if config.sft.probe_weight > 0 and config.reads("sft"):
        raise UserError("sft.probe_weight needs ground truth of the simulator, which is not declared; set it to 0")


def _check_candidates(config: RunConfig, begun: Sequence[DeclaredEnv]) -> None:
    """UserError where sampled chunks cannot be compared."""
    for name in ("expert", "progress"):
        if not all(getattr(env.declared, name) for env in begun):
            raise UserError(f"candidates: sampled chunks are compared by the {name}, but the environment declares none")
    is_learned = "reward_models" in config.stage_names
    if begun[0].layout != BIMANUAL and is_learned and "world_model" in config.reward_models.kinds:
        raise UserError("reward_models.kinds: world_model knows two arms as poses only; use [success, progress]")


def check_keys(env: EnvConfig) -> None:
    """UserError where keys cannot command the environments of a run."""
    for begun in (_begun(env.backend, task, variant, env.image_size) for task in env.tasks for variant in env.variants):
        if begun.layout.numbers != "ee" and not np.isfinite(begun.command_range).all():
            raise UserError(
                f"env.backend: a key moves a number by a part of its range, but the action space of {begun.task} "
                f"({begun.variant}) has no edges; bound it"
            )
