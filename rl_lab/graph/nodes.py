"""Nodes of the graph that a run is, kinds of stages, and the content hash of each node.

A hash covers what a stage reads, never its name: two methods whose first round collects with the same policy share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from envs.by_name import DIGESTS
from rl_lab.common.files import CARD_FILE, file_digest, files_below
from rl_lab.config.actions import ObjectiveConfig
from rl_lab.config.language import file_key
from rl_lab.config.pipeline import FilePart, Step
from rl_lab.config.robotwin import checkout_digest, on_box_robot
from rl_lab.config.schema import RunConfig
from rl_lab.records.question_files import source_files
from rl_lab.records.rollouts import FOLDER, questions_of, stores

LIMITS = {"model": ("preset", "path"), "engine": ("images_per_prompt", "max_model_len")}
"""Sections, and fields of them, that decide which rows of the user's own files can be used."""

GATES_QUESTIONS = ("development", "development_file")
"""Settings of the questions that gates decide on."""

RUNTIME = ("workers", "placement", "checkpoint_every")
"""Sections that every stage may read and no hash covers: they must not change any result."""


Place = tuple[str, str, int]
"""Task, variant and environment seed of an episode."""


@dataclass(frozen=True)
class Node:
    """One stage of a run."""

    name: str
    """`demos`, `sft`, `base.evaluate`, `<method>.<round>.<kind>`, `<scheme>.1.<kind>`, `report`; in a pipeline
    `<model>` for what makes a model, and `<model>.<kind>`."""
    stage: StageKind
    params: dict[str, Any] = field(default_factory=dict)
    """Everything but inputs and seed that decides the result, as JSON values."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Role -> name of the node that fills it: demos, sft, policy (what acts or is improved), pairs.1, pairs.2, ...,
    questions, traces, teacher; of gates before, after, policy_before, policy_after."""
    method: str | None = None
    """Method of the rounds, scheme of the curriculum, or model of a pipeline."""
    round: int | None = None
    """1, 2, ... inside rounds or cycles."""
    objective: ObjectiveConfig | None = None
    """Settings of the method, for `optimise`."""
    mix: tuple[float, ...] | None = None
    """Batch shares of this round, for `optimise`: this round's pairs, (older pairs,) demonstrations."""
    when: tuple[str, bool] | None = None
    """Gate, and whether it must have passed for this node to run; else the node is skipped."""
    config: RunConfig | None = None
    """Its own settings in place of the run's: those of a teacher, of a variant that is compared, or, with a training
    seed of its own, of a world of a study."""

    @property
    def kind(self) -> str:
        """Name of the kind of stage."""
        return self.stage.name

    @property
    def stream(self) -> tuple[str | int, ...]:
        """Names that address the random streams of a training on questions, behind its kind: 1; from the second cycle
        of a pipeline on also the cycle, and in another branch that it is one. In its params, so the hash covers them.
        """
        return (1, *self.params.get("cycle", ()))


class StageKind:
    """A kind of stage: what it reads, makes and needs, its share of the graph, its checks, its cost and its work.

    One object serves all stages of the kind; what differs between them is in their nodes. Kinds stand in
    `rl_lab.stages`, where `kinds` names them all.
    """

    name: str
    named_in: tuple[FilePart, ...] = ("stages",)
    """Where a file may name it; () for what comes with other stages only."""
    reads: tuple[str, ...] = ()
    """Sections of the configuration that it may read; they enter its hash."""
    learns = False
    """Whether it has a learner. Another number of its ranks gives other rounding, so the hash covers it."""
    simulates = False
    """Whether it has episodes. Another checkout of RoboTwin gives others, so the hash covers it."""
    workers: frozenset[str] = frozenset()
    """Workers of which a run has one pool, so that only one stage has them at a time."""
    folder = ""
    """Where its output appears in the run folder, one folder a node."""
    is_live = False
    """Whether that can be inspected while it runs."""
    questions_left_out: tuple[str, ...] = GATES_QUESTIONS
    """Settings of questions that it does not depend on: a gate more makes no other set anew."""
    after: tuple[str, ...] = ()
    """Stages that must come before it."""
    start: tuple[str, str] | None = None
    """Where it starts from a model: the stage that makes one, and what that is; else model.path must be given."""
    of_actions = False
    """Whether it cannot be part of a run on language."""
    is_joint = False
    """Whether it can be part of a joint run."""
    makes_joint = False
    """Whether it makes a run a joint one."""
    comes_again = False
    """Whether a pipeline may have it twice outside repeats."""
    makes_chain = False
    """Whether it makes a run on language a pipeline."""
    makes = ""
    """What it is one of, if so little is done that its model's size does not count."""
    seconds_per_unit = 1.0
    """With the nano preset on two CPU cores, where a second stage runs beside most; of episodes on the tabletop."""
    box_seconds_per_unit = math.nan
    """The same of episodes of RoboTwin's box robot; NaN where nobody has measured it."""
    has_model = True
    """Whether its time grows with the model."""

    def needs(self, graph: Any) -> tuple[str, ...]:
        """`after`, as it is in a `rl_lab.graph.expand.Expansion`."""
        return self.after

    def starts(self, graph: Any) -> tuple[str, str] | None:
        """`start`, likewise."""
        return self.start

    def expand(self, graph: Any, step: Step) -> None:
        """Add its nodes, one from what must come before if nothing else is said. ValueError where it cannot stand."""
        graph.add(self.name, self.name, {name: name for name in self.needs(graph)})

    def finish(self, graph: Any) -> None:
        """Behind all stages: change what others added. ValueError where the whole cannot stand."""

    def fits(self, config: RunConfig) -> None:
        """ValueError for settings that a run with it cannot have."""

    def check(self, config: RunConfig) -> None:
        """UserError, before anything is written, where files or settings are not what its work takes."""

    def answer_length(self, config: RunConfig) -> int:
        """Tokens of the longest answer that it may ask for on the way."""
        return 0

    def examined(self, config: RunConfig) -> set[Place]:
        """The episodes that it examines a policy on: none that a run is given to learn from."""
        return set()

    def has_episodes(self, config: RunConfig) -> bool:
        """Whether anything is simulated in it, or in what comes with it."""
        return self.simulates

    def samples(self, config: RunConfig) -> bool:
        """Whether answers are sampled in it, or in what comes with it."""
        return "engines" in self.workers

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """How many units of work a stage is, and what they are."""
        return 1, self.makes

    def work_seconds(self, node: Node, config: RunConfig) -> float:
        """Rough time of its work with the nano preset; NaN where nobody has measured it: on RoboTwin's own robots."""
        unit = self.seconds_per_unit
        if self.simulates and config.env.backend == "robotwin" and config.runs_episodes:
            unit = self.box_seconds_per_unit if on_box_robot(config) else math.nan
        return self.units(node, config)[0] * unit

    def has_learner(self, config: RunConfig) -> bool:
        """Whether a model is trained in it, or held to be, whose memory counts."""
        return self.learns

    def settings(self, node: Node, config: RunConfig) -> Any:
        """The section with the steps of a stage that trains; None where nothing is trained."""
        return None

    def run(self, cluster: Any, context: Any) -> None:
        """Do its work with the workers of a run, a `Cluster`; what it writes into `context.out` is its output.

        `context` is a `rl_lab.graph.stage.StageContext`. A kind without it stands for stages of other kinds.
        """
        raise NotImplementedError(self.name)

    def finding(self, out: Path) -> str:
        """The number that a finished stage is remembered by, in words, from its output; "" where there is none."""
        return ""

    def measured(self, out: Path) -> dict[str, float]:
        """What a finished stage measured of a model, from its output, by the names that trackers show; {} for none."""
        return {}

    def sections(self, config: RunConfig) -> tuple[str, ...]:
        """The sections that it may read: those of `reads`, and `LIMITS` for questions of one's own."""
        own = "questions" in self.reads and bool(config.questions.files())
        return (*self.reads, *(LIMITS if own else ()))

    def params(self, config: RunConfig) -> dict[str, Any]:
        """The sections that it reads, with the content of files, and of code of one's own, in place of their paths."""
        params = config.model_dump(mode="json", include=set(self.sections(config)), context=DIGESTS)
        for name in ("rewards", "truth"):
            for model in (params.get(name) or {}).get("models", {}).values():
                model["path"] = tree_digest(Path(model["path"]))
        if params.get("outcome", {}).get("run"):
            params["outcome"]["run"] = answers_digest(Path(params["outcome"]["run"]))
        if params.get("outcome", {}).get("classifier"):
            params["outcome"]["classifier"] = tree_digest(Path(params["outcome"]["classifier"]))
        if config.judge is not None and "rewards" in self.reads:
            params["judge"] = tree_digest(Path(config.judge.path))
        if config.env.backend == "robotwin" and self.has_episodes(config):
            params["robotwin"] = checkout_digest()
        if self.learns and config.placement.ranks > 1:
            params["ranks"] = config.placement.ranks
        if "collect" in params and config.collect.corrector.path is not None:
            digest = recording_digest(Path(config.collect.corrector.path))
            params["collect"]["corrector"]["path"] = digest
        if params.get("model", {}).get("path"):
            params["model"] = params["model"] | {"preset": None, "path": tree_digest(Path(config.model.path or ""))}
        if config.demos.files is not None and "demos" in params:  # most have the files by their input
            params["demos"]["files"] |= {"paths": [], "index": None}
        if "questions" in params:
            params |= {
                section: {name: params[section][name] for name in LIMITS[section]}
                for section in LIMITS.keys() & params.keys()
            }
            questions = params["questions"]
            for name, path in config.questions.files().items():
                *places, key = file_key(name).split(".")[1:]
                reduce(getitem, places, questions)[key] = source_digest(path)
            kept = questions.keys() - set(self.questions_left_out)
            params["questions"] = {name: value for name, value in questions.items() if name in kept}
        return params


def source_digest(path: Path) -> str:
    """SHA-256 over the contents of a source of questions and of the pictures that it names."""
    return hashlib.sha256("".join(map(file_digest, source_files(path))).encode()).hexdigest()


def answers_digest(run: Path) -> str:
    """SHA-256 over a run's stored answers and their questions; of a folder without any, of nothing."""
    digests = [tree_digest(store / FOLDER) for store in stores(run)]
    digests += [file_digest(path) for path in (questions_of(run),) if path.is_file()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def recording_digest(path: Path) -> str:
    """SHA-256 over the contents of a file of demonstrations, or of all files of a folder."""
    return tree_digest(path) if path.is_dir() else file_digest(path)


def tree_digest(root: Path, suffixes: tuple[str, ...] = ()) -> str:
    """SHA-256 over relative names and contents of the files (of these suffixes) under a folder, links followed; cards
    are left out, as they say what was measured since."""
    digest = hashlib.sha256()
    for path in (path for path in files_below(root) if "__pycache__" not in path.parts):
        if path.name != CARD_FILE and (not suffixes or path.suffix in suffixes):
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
        content = [node.kind, node.params, inputs, node.config.seed if node.config else seed, dict(versions)]
        hashes[node.name] = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]
    return hashes
