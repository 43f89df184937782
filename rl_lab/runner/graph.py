"""A run as a graph of stages, and the content hash of each.

Actions: demos -> sft (without the stage: the given policy) -> base.evaluate; for every method m and round k:
m.k.collect -> m.k.optimise -> m.k.evaluate. With rewards of actions: see `rl_lab.runner.ranking_graph`.
Language: questions -> cold_start -> base.examine; for every scheme s and replicate r: s.r.grpo -> s.r.examine; or a
pipeline, see `rl_lab.runner.pipeline`. Then the report. A hash covers what a stage reads, never its name: two methods
whose first round collects with the same policy share it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.functions import source_file
from rl_lab.config.action import ObjectiveConfig
from rl_lab.config.schema import RunConfig
from rl_lab.config.section import Section
from rl_lab.files import files_below
from rl_lab.language.question_files import source_files
from rl_lab.language.rollout_store import FOLDER, QUESTIONS_FILE, stores
from rl_lab.workers.robotwin import checkout_digest

READS: dict[str, tuple[str, ...]] = {
    "demos": ("env", "demos"),
    "sft": ("env", "model", "demos", "sft"),
    "given": ("model",),
    "evaluate": ("env", "eval"),
    "collect": ("env", "collect"),
    "record": ("env", "record"),
    "reward_model": ("model", "reward_models"),
    "candidates": ("env", "candidates"),
    "rank": ("ranking",),
    "optimise": ("env", "demos", "optimise"),
    "questions": ("questions",),
    "development": ("questions",),
    "cold_start": ("model", "cold_start"),
    "examine": ("model", "engine", "examine", "rewards", "truth"),
    "grpo": ("model", "engine", "grpo", "rl", "curriculum", "rewards", "truth", "examine"),
    "traces": ("model", "engine", "traces", "rewards"),
    "rft": ("model", "rft"),
    "distill": ("model", "engine", "grpo", "distill", "rewards", "truth", "examine"),
    "imitate": ("model", "engine", "imitate", "rewards", "examine"),
    "outcome_labels": ("outcome",),
    "outcome_member": ("model", "outcome"),
    "outcome_model": ("outcome",),
    "teacher": ("model",),
    "gate": ("model",),
    "join": (),
    "warm_start": ("env", "model", "demos", "sft", "cold_start"),
    "joint": (
        *("model", "engine", "grpo", "rl", "curriculum", "rewards", "truth", "examine"),
        *("env", "demos", "collect", "optimise", "buffers", "eval", "joint"),
    ),
}
"""Sections of the configuration that a stage of each kind may read; they enter its hash."""

LIMITS = {"model": ("preset", "path"), "engine": ("images_per_prompt", "max_model_len")}
"""Sections, and fields of them, that decide which rows of the user's own files can be used."""

SIMULATES = frozenset(("demos", "evaluate", "collect", "record", "candidates"))
"""Kinds of stages with episodes. Another checkout of RoboTwin gives others, so the hash covers it."""

LEARNS = frozenset(
    (
        *("sft", "reward_model", "optimise", "cold_start", "grpo", "rft", "distill", "imitate", "outcome_member"),
        *("teacher", "warm_start", "joint"),
    )
)
"""Kinds of stages with a learner. Another number of its ranks gives other rounding, so the hash covers it."""

RUNTIME = ("workers", "placement", "checkpoint_every")
"""Sections that every stage may read and no hash covers: they must not change any result."""


@dataclass(frozen=True)
class Node:
    """One stage of a run."""

    name: str
    """`demos`, `sft`, `base.evaluate`, `<method>.<round>.<kind>`, `<scheme>.<replicate>.<kind>`, `report`; in a
    pipeline `<model>` for what makes a model, and `<model>.<kind>`."""
    kind: str
    params: dict[str, Any] = field(default_factory=dict)
    """Everything but inputs and seed that decides the result, as JSON values."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Role -> name of the node that fills it: demos, sft, policy (what acts or is improved), pairs.1, pairs.2, ...,
    questions, traces, teacher; of gates before, after, policy_before, policy_after."""
    method: str | None = None
    """Method of the rounds, scheme of the curriculum, or model of a pipeline."""
    round: int | None = None
    """1, 2, ... inside rounds or cycles."""
    replicate: int | None = None
    """1, 2, ...: training seed of a scheme."""
    objective: ObjectiveConfig | None = None
    """Settings of the method, for `optimise`."""
    mix: tuple[float, ...] | None = None
    """Batch shares of this round, for `optimise`: this round's pairs, (older pairs,) demonstrations."""
    sections: Mapping[str, Section] = field(default_factory=dict)
    """Sections that the stage reads in place of the run's: those of a teacher."""
    when: tuple[str, bool] | None = None
    """Gate, and whether it must have passed for this node to run; else the node is skipped."""

    @property
    def stream(self) -> tuple[str | int, ...]:
        """Names that address the node's random streams, behind its kind: the replicate; from the second cycle of a
        pipeline on also the cycle, and in another branch that it is one. In its params, so the hash covers them."""
        return (self.replicate or 0, *self.params.get("cycle", ()))


def sections_read(config: RunConfig, kind: str) -> tuple[str, ...]:
    """The sections that a stage of this kind may read: those of `READS`, and `LIMITS` for questions of one's own."""
    own = "questions" in READS[kind] and bool(config.questions.files())
    return (*READS[kind], *(LIMITS if own else ()))


def stage_params(config: RunConfig, kind: str) -> dict[str, Any]:
    """The sections that a stage reads, with the content of files in place of their paths."""
    params = config.model_dump(mode="json", include=set(sections_read(config, kind)))
    for name in ("rewards", "truth"):
        functions = (params.get(name) or {}).get("functions", {})
        functions |= {key: [source, file_digest(source_file(source))] for key, source in functions.items()}
        for model in (params.get(name) or {}).get("models", {}).values():
            model["path"] = tree_digest(Path(model["path"]))
    if params.get("outcome", {}).get("run"):
        params["outcome"]["run"] = answers_digest(Path(params["outcome"]["run"]))
    if params.get("outcome", {}).get("classifier"):
        params["outcome"]["classifier"] = tree_digest(Path(params["outcome"]["classifier"]))
    if config.judge is not None and "rewards" in READS[kind]:
        params["judge"] = tree_digest(Path(config.judge.path))
    if kind in SIMULATES and config.env.backend == "robotwin" and config.runs_episodes:
        params["robotwin"] = checkout_digest(os.environ["ROBOTWIN_ROOT"])
    if kind in LEARNS and config.placement.ranks > 1:
        params["ranks"] = config.placement.ranks
    if "collect" in params and config.collect.corrector.path is not None:
        digest = recording_digest(Path(config.collect.corrector.path))
        params["collect"]["corrector"]["path"] = digest
    if params.get("model", {}).get("path"):
        params["model"] = params["model"] | {"preset": None, "path": tree_digest(Path(config.model.path or ""))}
    if config.demos.files is not None and "demos" in params:
        named = [*config.demos.files.paths, *filter(None, [config.demos.files.index])]
        paths = [recording_digest(Path(path)) for path in named] if kind == "demos" else []
        params["demos"]["files"] |= {"paths": paths, "index": None}  # other stages have it by their input
    if "questions" in params:
        params |= {
            section: {name: params[section][name] for name in LIMITS[section]}
            for section in LIMITS.keys() & params.keys()
        }
        digests = {f"{name}_file": source_digest(path) for name, path in config.questions.files().items()}
        params["questions"] = _questions(params["questions"] | digests, of_gates=kind == "development")
    return params


def _questions(params: dict[str, Any], *, of_gates: bool) -> dict[str, Any]:
    """Of the settings of questions those of the gates' set, or of the others: a gate more makes no other set anew."""
    gates = ("development", "development_file")
    others = ("train", "cold_start", "held_out", "split", "train_file", "cold_start_file", "held_out_file")
    left_out = others if of_gates else gates
    return {name: value for name, value in params.items() if name not in left_out}


def source_digest(path: Path) -> str:
    """SHA-256 over the contents of a source of questions and of the pictures that it names."""
    return hashlib.sha256("".join(map(file_digest, source_files(path))).encode()).hexdigest()


def answers_digest(run: Path) -> str:
    """SHA-256 over a run's stored answers and their questions; of a folder without any, of nothing."""
    digests = [tree_digest(store / FOLDER) for store in stores(run)]
    digests += [file_digest(path) for path in (run / QUESTIONS_FILE,) if path.is_file()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def recording_digest(path: Path) -> str:
    """SHA-256 over the contents of a file of demonstrations, or of all files of a folder."""
    return tree_digest(path) if path.is_dir() else file_digest(path)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def tree_digest(root: Path, suffixes: tuple[str, ...] = ()) -> str:
    """SHA-256 over relative names and contents of the files (of these suffixes) under a folder, links followed."""
    digest = hashlib.sha256()
    for path in (path for path in files_below(root) if "__pycache__" not in path.parts):
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
