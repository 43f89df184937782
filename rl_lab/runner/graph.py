"""A run as a graph of stages, and the content hash of each.

Actions: demos -> sft -> base.evaluate; for every method m and round k: m.k.collect -> m.k.optimise -> m.k.evaluate.
Language: questions -> cold_start -> base.examine; for every scheme s and replicate r: s.r.grpo -> s.r.examine.
Then the report. A hash covers what a stage reads, never its name: two methods whose first round collects with the same
policy share it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from algos.methods import ALIASES, Method, find_method
from rl_lab.config.action import ObjectiveConfig
from rl_lab.config.schema import Repeat, RunConfig, Stage
from rl_lab.language.question_data import source_files

READS: dict[str, tuple[str, ...]] = {
    "demos": ("env", "demos"),
    "sft": ("env", "model", "sft"),
    "evaluate": ("env", "eval"),
    "collect": ("env", "collect"),
    "optimise": ("env", "optimise"),
    "questions": ("questions",),
    "cold_start": ("model", "cold_start"),
    "examine": ("model", "engine", "examine", "rewards"),
    "grpo": ("model", "engine", "grpo", "rl", "curriculum", "rewards", "examine"),
}
"""Sections of the configuration that a stage of each kind may read; they enter its hash."""

RUNTIME = ("workers", "placement", "checkpoint_every")
"""Sections that every stage may read and no hash covers: they must not change any result."""


@dataclass(frozen=True)
class Node:
    """One stage of a run."""

    name: str
    """`demos`, `sft`, `base.evaluate`, `<method>.<round>.<kind>`, `<scheme>.<replicate>.<kind>`, `report`."""
    kind: str
    params: dict[str, Any] = field(default_factory=dict)
    """Everything but inputs and seed that decides the result, as JSON values."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Role -> name of the node that fills it: demos, sft, policy (what acts or is improved), pairs.1, pairs.2, ...,
    questions."""
    method: str | None = None
    """Method of the rounds, or scheme of the curriculum."""
    round: int | None = None
    """1, 2, ... inside rounds."""
    replicate: int | None = None
    """1, 2, ...: training seed of a scheme."""
    objective: ObjectiveConfig | None = None
    """Settings of the method, for `optimise`."""
    mix: tuple[float, ...] | None = None
    """Batch shares of this round, for `optimise`: this round's pairs, (older pairs,) demonstrations."""


def _params(config: RunConfig, kind: str) -> dict[str, Any]:
    """The sections that a stage reads, with the content of files in place of their paths."""
    params = config.model_dump(mode="json", include=set(READS[kind]))
    if params.get("model", {}).get("path"):
        params["model"] = params["model"] | {"preset": None, "path": tree_digest(Path(config.model.path or ""))}
    if "questions" in params:
        params["questions"] |= {f"{name}_file": source_digest(path) for name, path in config.questions.files().items()}
    return params


def _round(config: RunConfig, of: Sequence[str], method: str, number: int, policy: str, pairs: list[str]) -> list[Node]:
    """The nodes of one round of one method; appends its pairs to `pairs`."""
    nodes = []
    if find_method(method).needs_collection:
        params = _params(config, "collect") | {"round": number}
        nodes.append(Node(f"{method}.{number}.collect", "collect", params, {"policy": policy}, method, number))
        pairs.append(nodes[-1].name)
    inputs = {"policy": policy, "sft": "sft", "demos": "demos"}
    inputs |= {f"pairs.{k}": name for k, name in enumerate(pairs, start=1)}
    nodes.append(_optimise(config, find_method(method), method, number, inputs))
    if "evaluate" in of:
        evaluated = {"policy": nodes[-1].name}
        params = _params(config, "evaluate")
        nodes.append(Node(f"{method}.{number}.evaluate", "evaluate", params, evaluated, method, number))
    return nodes


def _optimise(config: RunConfig, row: Method, method: str, number: int, inputs: dict[str, str]) -> Node:
    """The node that trains; only the settings that the method uses enter its params."""
    objective, buffers = config.objective(method), config.buffers
    mix = buffers.mix_first if number == 1 else buffers.mix_later
    params = _params(config, "optimise") | {"method": ALIASES.get(method, method), "round": number}
    if row.needs_reference:
        params["objective"] = objective.model_dump(mode="json")
    if row.needs_collection:
        params["mix"] = list(mix)
    return Node(f"{method}.{number}.optimise", "optimise", params, inputs, method, number, objective=objective, mix=mix)


def _rounds(config: RunConfig, stage: Repeat) -> Iterator[Node]:
    """All rounds of every method, each from the same SFT policy."""
    for method in config.methods:
        policy = "sft"
        pairs: list[str] = []
        for number in range(1, stage.repeat + 1):
            yield from _round(config, stage.of, method, number, policy, pairs)
            policy = f"{method}.{number}.optimise"


def _base_inputs(config: RunConfig) -> dict[str, str]:
    """Inputs of what starts from the base model; without a cold start that is the config's checkpoint, and no input."""
    questions = {"questions": "questions"}
    return questions | {"policy": "cold_start"} if "cold_start" in config.stages else questions


def _curricula(config: RunConfig) -> Iterator[Node]:
    """Every scheme and replicate, from the same base."""
    inputs = _base_inputs(config)
    for scheme in config.schemes:
        for replicate in range(1, config.replicates + 1):
            params = _params(config, "grpo") | {"replicate": replicate}
            params["curriculum"] = params["curriculum"] | {"scheme": scheme}
            name = f"{scheme}.{replicate}"
            yield Node(f"{name}.grpo", "grpo", params, inputs, scheme, replicate=replicate)
            if "examine" in config.stages:
                trained = inputs | {"policy": f"{name}.grpo"}
                yield Node(
                    f"{name}.examine", "examine", _params(config, "examine"), trained, scheme, replicate=replicate
                )


def _stage(config: RunConfig, stage: Stage) -> Iterator[Node]:
    """The nodes that an entry of `stages` stands for."""
    if isinstance(stage, Repeat):
        yield from _rounds(config, stage)
    elif stage in ("demos", "questions"):
        yield Node(stage, stage, _params(config, stage))
    elif stage == "sft":
        yield Node("sft", "sft", _params(config, "sft"), {"demos": "demos"})
    elif stage == "evaluate":
        yield Node("base.evaluate", "evaluate", _params(config, "evaluate"), {"policy": "sft"})
    elif stage == "cold_start":
        yield Node("cold_start", "cold_start", _params(config, "cold_start"), {"questions": "questions"})
    elif stage == "examine":
        yield Node("base.examine", "examine", _params(config, "examine"), _base_inputs(config))
    elif stage == "grpo":
        yield from _curricula(config)


def expand(config: RunConfig) -> list[Node]:
    """The nodes of a run, every node after its inputs."""
    nodes = [node for stage in config.stages for node in _stage(config, stage)]
    return [*nodes, Node("report", "report", inputs={node.name: node.name for node in nodes})]


def source_digest(path: Path) -> str:
    """SHA-256 over the contents of a source of questions and of the pictures that it names."""
    return hashlib.sha256("".join(map(file_digest, source_files(path))).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree_digest(root: Path, suffixes: tuple[str, ...] = ()) -> str:
    """SHA-256 over relative names and contents of the files under a folder (with these suffixes, or all)."""
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        if not suffixes or path.suffix in suffixes:
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(bytes.fromhex(file_digest(path)))
    return digest.hexdigest()


def stage_hashes(nodes: Sequence[Node], seed: int, versions: Mapping[str, str]) -> dict[str, str]:
    """Content hash of every node but the report, by name: of kind, params, input hashes, seed, code and packages."""
    hashes: dict[str, str] = {}
    for node in nodes:
        if node.kind == "report":
            continue
        inputs = {role: hashes[name] for role, name in node.inputs.items()}
        content = [node.kind, node.params, inputs, seed, dict(versions)]
        hashes[node.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    return hashes
