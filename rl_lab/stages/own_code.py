"""Code of one's own before a run: it is there and fits, and nothing is asked of a policy that only ours has."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from algos.curriculum.own import make_scheme
from algos.policy import Policy, PolicySizes
from envs.by_name import OwnCodeError, blamed, files, find
from envs.own_corrections import detector_class
from envs.rollback import own_corrector
from envs.types import BIMANUAL, Layout
from rl_lab.common.errors import UserError
from rl_lab.config.environments import environment_layout
from rl_lab.config.schema import RunConfig
from rl_lab.model.checkpoint import load_policy
from rl_lab.model.policies.own import make_own, own_spec
from rl_lab.records.sources import find_recordings

ONLY_OURS = ("lora", "gradient_checkpointing", "compile")
"""Settings of training that know our layers by name."""


def check_own_code(config: RunConfig) -> None:
    """What is named of a user's own code is there, with the modules beside it; it is not run here."""
    for key, source in config.own_code.items():
        try:
            find(source)
            files(source)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from error


def check_corrections(config: RunConfig) -> None:
    """A detector and a corrector of the user's own can be imported, and called as they will be."""
    detector, corrector = config.collect.detector, config.collect.corrector.code
    for key, code, check in (("detector", detector, detector_class), ("corrector", corrector, own_corrector)):
        try:
            with blamed():
                _ = code and check(code)
        except ValueError as error:
            raise UserError(f"collect.{key}: {error}") from error


def check_schemes(config: RunConfig) -> None:
    """Curriculum schemes of the user's own can be made, and called as they will be."""
    for name, own in config.curriculum.own.items():
        try:
            make_scheme(own)
        except OwnCodeError as error:
            raise UserError(f"curriculum.own.{name}: {error}") from error


def own_policy(config: RunConfig) -> Policy:
    """The policy of `model.code` as a run begins with it. UserError where it cannot be made."""
    code, path = config.model.code, config.model.path
    assert code is not None
    try:
        spec = own_spec(config.model, _layout(config), config.env.image_size)
        return make_own(code, spec, config.seed) if path is None else load_policy(Path(path), code)[0]
    except UserError as error:
        raise UserError(f"model.path: {error}") from error
    except OwnCodeError as error:
        raise UserError(f"model.code: {error}") from error
    except ValueError as error:
        raise UserError(f"model: {error}") from error


def _layout(config: RunConfig) -> Layout:
    """Of the environments, else of the files that are imitated."""
    if config.runs_episodes or config.demos.files is None:
        return environment_layout(config.env)
    found, _ = find_recordings(**config.demos.files.reading(), image_size=config.env.image_size)
    return (found[0].layout() if found else None) or BIMANUAL


def check_own_policy(config: RunConfig) -> PolicySizes:
    """What the policy is made for. UserError for a run that it cannot be part of."""
    policy = own_policy(config)
    groups = sorted(name for name, parameters in policy.parameter_groups().items() if parameters)
    if config.model.reads_truth:
        _check_study_policy(config)
    for asked in _asked(config):
        raise UserError(f"{asked}, but model.code names another than our architecture; leave it out")
    if config.reads("optimise") and (lacking := [name for name in config.optimise.train if name not in groups]):
        raise UserError(f"optimise.train has {lacking[0]}, but the policy of model.code has {', '.join(groups)}")
    guided = [name for name in ("collect", "eval") if config.reads(name) and getattr(config, name).join == "guide"]
    if guided and not (hasattr(policy, "velocity") and hasattr(policy, "num_steps")):
        raise UserError(
            f"{guided[0]}.join is guide, but the policy of model.code has no velocity and num_steps to guide by; "
            "choose another join"
        )
    return policy.config


def _check_study_policy(config: RunConfig) -> None:
    """UserError where there is no one truth that it could read."""
    if config.env.is_own and config.runs_episodes:
        raise UserError("model.preset is state, but an environment of one's own gives no truth; choose another policy")
    if len(config.env.tasks) > 1:
        named = ", ".join(config.env.tasks)
        raise UserError(f"model.preset is state, whose policy learns one task, but env.tasks names {named}; keep one")


def _asked(config: RunConfig) -> Iterator[str]:
    """What a run asks that only our architecture has, in words."""
    yield from (f"stage {kind.name} works on language" for kind in config.kinds if not kind.of_actions)
    trained = [name for name in ("sft", "optimise") if config.reads(name)]
    yield from (f"{name}.{key} is set" for name in trained for key in ONLY_OURS if getattr(getattr(config, name), key))
    if "sft" in trained:
        yield from (f"sft.{name} is {weight:g}" for name, weight in config.sft.auxiliary.items())
    if config.placement.ranks > 1:
        yield f"placement.learner.ranks is {config.placement.ranks}"
