"""YAML file and overrides -> `RunConfig`; every mistake becomes one line that names the file, the key and the fix."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from envs.options import nearest
from envs.robotwin.connection import find_root
from rl_lab.common.errors import UserError
from rl_lab.common.reading import MAX_DEPTH, parse_yaml, read_yaml
from rl_lab.config.actions import ObjectiveConfig
from rl_lab.config.env import EnvConfig
from rl_lab.config.pipeline import GateStage, Registry, Repeat
from rl_lab.config.schema import RunConfig

Tree = dict[str, Any]
BACKENDS = ("tabletop", "robotwin")
EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
"""Those of the lab, in a clone and in a wheel."""
PLAIN: dict[str, Tree] = {
    "tabletop": {"env": {"variants": ["clean"]}},
    "robotwin": {"env": {"variants": ["demo_clean"]}},
}
"""What a file leaves open, by backend."""
OWN: Tree = {"env": {"tasks": ["default"], "variants": ["default"]}, "sft": {"probe_weight": 0.0}}
"""The same for an environment of one's own, which gives no ground truth to probe for."""
UNPROBED: Tree = {"sft": {"probe_weight": 0.0}}
"""The same for a policy of one's own, which gives no vision tokens to probe."""
_SCHEMES = (
    "is a study now: write study: {compare: curriculum.scheme, methods: [SCHEME, ...], control: SCHEME, seeds: NUMBER} "
    "with all schemes as methods, and seeds for replicates; see docs/studies.md"
)
RENAMED: dict[str, tuple[Any, str]] = {
    "sweep": (
        None,
        "is a study now: write study, with control for baseline, rewards for variants and seeds for replicates "
        "(rankings and spread stay); see docs/studies.md",
    ),
    "other_schemes": ([], _SCHEMES),
    "replicates": (1, _SCHEMES),
}
"""Keys that files had earlier: their default, which is in the folders of older runs and changes nothing, and what to
write instead of others."""
_ITEMS: dict[str, tuple[type[BaseModel], ...]] = {"objectives": (ObjectiveConfig,), "stages": (Repeat, GateStage)}
"""Fields that hold several sections of one kind."""


def _read(path: Path) -> Tree:
    """The mapping in a YAML file, or in the lab's experiment of that name; one that is missing is compared with its
    neighbours."""
    if not os.path.lexists(path):
        own = {file.stem: file for file in EXPERIMENTS.glob("*.yaml")} if path.name == str(path) else {}
        if path.name in own:
            return read_yaml(own[path.name])
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.y*ml")], n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else nearest(path.name, own)
        raise UserError(f"no such file: {path}{hint}")
    return read_yaml(path)


def _parse_override(text: str) -> tuple[list[str], Any]:
    """`a.b=c` -> (["a", "b"], c), the value read as YAML."""
    key, equals, value = text.partition("=")
    keys = key.split(".")
    if not equals or not all(part.isidentifier() for part in keys) or len(keys) > MAX_DEPTH:
        raise UserError(f"override {text!r} is not of the form key=value, such as sft.steps=100")
    return keys, parse_yaml(value, f"override {text!r}")


def merge(base: Tree, changes: Tree) -> Tree:
    """Deep-merge `changes` into a copy of `base`; a model path replaces a preset and the other way round."""
    result = dict(base)
    for key, value in changes.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    for key, other in (("preset", "path"), ("path", "preset")):
        if changes.get(key) is not None and key not in base and other not in changes:
            result.pop(other, None)
    return result


def _apply(tree: Tree, overrides: Sequence[tuple[list[str], Any]]) -> Tree:
    for keys, value in overrides:
        change: Any = value
        for key in reversed(keys):
            change = {key: change}
        tree = merge(tree, change)
    return tree


def resolve_backend(wanted: Any) -> str:
    """`auto` -> the backend of this machine; other values as they are. UserError if it is not available."""
    has_robotwin = find_root() is not None
    if wanted == "robotwin" and not has_robotwin:
        raise UserError(
            "env.backend is robotwin, but ROBOTWIN_ROOT is not set and no runtime is installed; run ./setup.sh "
            "robotwin, or export ROBOTWIN_ROOT=/path/to/RoboTwin and ROBOTWIN_PYTHON=/path/to/its/python, or use "
            "env.backend=tabletop"
        )
    return ("robotwin" if has_robotwin else "tabletop") if wanted == "auto" else wanted


def _backend_section(tree: Tree, backend: str) -> Tree:
    """The overrides for one backend; keys of `env` may stand in it directly."""
    section = {} if tree.get(backend) is None else tree[backend]
    if not isinstance(section, dict):
        raise UserError(f"{backend}: expected keys with values, such as {backend}: {{image_size: 64}}")
    env = {key: value for key, value in section.items() if key in EnvConfig.model_fields}
    rest = {key: value for key, value in section.items() if key not in env}
    return merge(rest, {"env": env}) if env else rest


def load_config(
    path: str | Path, overrides: Sequence[str] = (), defaults: Tree | None = None, registry: Registry | None = None
) -> RunConfig:
    """Read a run's YAML file, apply `key=value` overrides and the backend's section, and validate all of it.

    `defaults` stand in for keys that the file leaves out; `registry` has the kinds of stages, without which
    they are not checked. Raises UserError: one line with the file, the dotted key, what is wrong and, for a misspelt
    key, the nearest one.
    """
    return resolve_config((defaults or {}) | _read(Path(path)), str(path), overrides, registry)


def resolve_config(
    content: Tree, where: str, overrides: Sequence[str] = (), registry: Registry | None = None
) -> RunConfig:
    """The same for the content of a file; `where` names it in errors."""

    def validate(tree: Tree, where: str) -> RunConfig:
        return _validate(tree, where, changes, registry)

    changes = [_parse_override(text) for text in overrides]
    tree = _apply(content, changes)
    tree = {key: value for key, value in tree.items() if key not in RENAMED or value != RENAMED[key][0]}
    sections = {backend: _backend_section(tree, backend) for backend in BACKENDS}
    shared = {key: value for key, value in tree.items() if key not in BACKENDS}
    config = validate(shared, where)
    for backend, section in sections.items():
        open_backend = {"env": {"backend": "auto"}}  # the run's own need not have the section's variants
        validate(merge(merge(shared, section), open_backend), f"{where}, {backend} section")
    backend = resolve_backend(config.env.backend)
    merged = _apply(
        merge(shared, sections.get(backend, {})), [change for change in changes if change[0][0] not in BACKENDS]
    )
    plain = merge(merge(PLAIN.get(backend, OWN), UNPROBED if config.policy_code else {}), merged)
    return validate(merge(plain, {"env": {"backend": backend}}), where)


def with_changes(config: RunConfig, changes: Tree, levels: Mapping[str, Any], where: str) -> RunConfig:
    """The configuration with other top-level values and, by dotted key, others below. UserError, which begins with
    `where`, if that cannot be."""
    keys = [(key.split("."), value) for key, value in levels.items()]
    return _validate(_apply(config.model_dump(mode="json") | changes, keys), where, [], config.registry)


def dump_config(config: RunConfig) -> str:
    """The resolved configuration as YAML that `load_config` reads back to the same object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=120)


def dump_changes(config: RunConfig) -> str:
    """The settings that differ from the defaults, as YAML that says the same; a line for each small section."""
    whole = config.model_dump(mode="json")
    plain = RunConfig.model_construct(name="", stages=()).model_dump(mode="json")
    return yaml.safe_dump(_changes(whole, plain), sort_keys=False, width=120, default_flow_style=None)


def _changes(tree: Tree, default: Tree) -> Tree:
    """The keys of a tree whose values are others than in `default`, down to the last level that both have."""
    found = {}
    for key, value in tree.items():
        before = default.get(key)
        if value != before:
            found[key] = _changes(value, before) if isinstance(value, dict) and isinstance(before, dict) else value
    return found


def _validate(
    tree: Tree, where: str, overrides: Sequence[tuple[list[str], Any]], registry: Registry | None
) -> RunConfig:
    try:
        # Through JSON, because strict JSON validation takes lists for tuples and still refuses text for numbers.
        return RunConfig.model_validate_json(json.dumps(tree), context=registry)
    except ValidationError as failure:
        errors = sorted(failure.errors(include_url=False), key=lambda error: error["type"] != "extra_forbidden")
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise UserError(_explain(tree, errors[0], where, overrides) + more) from failure


def _explain(tree: Tree, error: Any, where: str, overrides: Sequence[tuple[list[str], Any]]) -> str:
    keys = _keys_in(tree, error["loc"], keep_last=error["type"] in ("missing", "extra_forbidden"))
    name = ".".join(keys)
    if any(all(a == b for a, b in zip(changed, keys, strict=False)) for changed, _ in overrides):
        where = "command line" if keys else f"{where} with the command line"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"{where}: {name} {RENAMED[name][1] if name in RENAMED else f'is not a known key{_suggestion(keys)}'}"
    if error["type"] == "missing":
        evaluates = "; a file without them is for python -m rl_lab.eval CKPT FILE" if name == "stages" else ""
        return f"{where}: {name} is missing{evaluates}"
    value = (
        "" if isinstance(error["input"], dict | list) or error["type"] == "value_error" else f", got {error['input']!r}"
    )
    close = difflib.get_close_matches(str(error["input"]), re.findall(r"'([^']*)'", message), n=1)
    hint = f"; did you mean {close[0]}?" if close and error["type"] == "literal_error" else ""
    return f"{where}: {name + ': ' if name else ''}{message[:1].lower() + message[1:]}{value}{hint}"


def _keys_in(tree: Any, loc: tuple[int | str, ...], keep_last: bool) -> list[str]:
    """The parts of a pydantic location that are keys of the file, not tags of a union."""
    keys: list[str] = []
    for number, part in enumerate(loc):
        if isinstance(tree, list) and isinstance(part, int):
            tree = tree[part] if part < len(tree) else None
        elif isinstance(tree, dict) and part in tree:
            tree = tree[part]
        elif not (keep_last and number == len(loc) - 1):
            continue
        keys.append(str(part))
    return keys


def _suggestion(keys: list[str]) -> str:
    """The nearest key beside an unknown one, else where in the file that key would belong."""
    known = [*_known_keys(RunConfig), *BACKENDS]
    above = ["*" if number == 1 and keys[0] in _ITEMS else key for number, key in enumerate(keys[:-1])]
    parent = "".join(f"{key}." for key in above)
    siblings = [key.removeprefix(parent) for key in known if key.startswith(parent) and "." not in key[len(parent) :]]
    if near := difflib.get_close_matches(keys[-1], siblings, n=1):
        return f"; did you mean {'.'.join([*keys[:-1], near[0]])}?"
    leaves = {key.rpartition(".")[2]: None for key in known}
    nearest = difflib.get_close_matches(keys[-1], leaves, n=1)
    elsewhere = [key for key in known if nearest and key.rpartition(".")[2] == nearest[0]]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere[:4])}?"
    return f"; there are {', '.join(siblings)}"


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a model, parents first; `*` stands for a free name or a position."""
    for name, field in model.model_fields.items():
        yield prefix + name
        if name in _ITEMS:
            for item in _ITEMS[name]:
                yield from _known_keys(item, f"{prefix}{name}.*.")
            continue
        for kind in get_args(field.annotation) or (field.annotation,):  # a section, or one that may be null
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _known_keys(kind, f"{prefix}{name}.")
