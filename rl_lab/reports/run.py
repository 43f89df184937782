"""A run folder as typed records. Whatever an interrupted or small run lacks is absent here, never an error."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, is_dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rl_lab.common.errors import UserError, one_line
from rl_lab.common.files import Record, read_lines_as
from rl_lab.common.reading import DAMAGE, fit, read_object, read_yaml
from rl_lab.reports.examinations import (
    ARMS,
    EXAMINATIONS,
    NOT_EXAMINED,
    TRAININGS,
    Arm,
    Examination,
    LearningCurve,
    read_arm,
    read_examination,
    read_training,
)
from rl_lab.reports.kinds import ON_LANGUAGE
from rl_lab.reports.metrics import read_metrics

HELD_OUT = "held_out.jsonl"
BASE = "base"
"""Name of the model before any round: after SFT, or after the cold start."""
CONTINUED_SFT = "continued_sft"
"""Method name of the plain control: SFT continued for as many optimiser steps."""
LABELS = {
    BASE: "base policy",
    "dynamic": "dynamic sampling",
    "sft": "SFT",
    CONTINUED_SFT: "continued SFT",
    "rpro": "RPRO",
    "rpro_no_sft": "RPRO without SFT",
    "rpro_no_interpolation": "RPRO without interpolation",
    "rpro_trajectory": "RPRO on trajectories",
    "flow_dpo": "Flow-DPO",
    "flow_dpo_sft": "Flow-DPO + SFT",
    "dagger": "DAgger",
    "dagger_buffered": "DAgger-Buffered",
    "dagger_buffered_si": "DAgger-Buffered + SI",
    "advantage_conditioned": "advantage-conditioned",
    "flow_grpo": "Flow-GRPO",
    "reinflow": "ReinFlow",
    "fpo": "FPO",
    "grpo_alone": "GRPO alone",
    "rpro_alone": "RPRO alone",
}


def label(method: str, round_: int | None = None) -> str:
    """Readable name of a method, with its round after the base policy."""
    name = LABELS.get(method, method.replace("_", " "))
    return name if round_ is None or method == BASE else f"{name}, round {round_}"


def parse_node(name: str) -> tuple[str, int]:
    """Method and round of `method.round.kind`; `base.evaluate` and names without a round belong to round 0."""
    parts = name.split(".")
    if len(parts) >= 3 and parts[-2].isdigit():
        return ".".join(parts[:-2]), int(parts[-2])
    return parts[0], 0


def study_place(node: str) -> tuple[str, int, str]:
    """World, training seed (1, 2, ...) and rest of the name of a study's node; "" and 0 where it is none."""
    world, _, rest = node.partition(".")
    seed, _, name = rest.partition(".")
    return (world, int(seed), name) if seed.isdecimal() and name else ("", 0, node)


@dataclass(frozen=True)
class EpisodeResult:
    """One evaluated episode; steps are control steps."""

    task: str
    variant: str
    seed: int
    success: bool
    num_steps: int
    step_limit: int
    stage: int = 0
    failure: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, str, int]:
        """What makes two episodes of different policies the same scene."""
        return self.task, self.variant, self.seed

    @property
    def capped_steps(self) -> int:
        """Control steps to completion, the limit for a failure."""
        return self.num_steps if self.success else self.step_limit


@dataclass(frozen=True)
class Evaluation:
    """All episodes of one evaluate node."""

    node: str
    method: str
    round: int
    episodes: list[EpisodeResult]


@dataclass(frozen=True)
class StageRow:
    """What a report reads of a stage, all but its name optional."""

    name: str
    kind: str | None = None
    method: str | None = None
    round: int | None = None
    hash: str | None = None
    status: str | None = None
    seconds: float | None = None
    reused: bool | None = None
    processor: str | None = None
    """That it ran on, see `rl_lab.common.machine.processor`."""
    inputs: dict[str, str] | None = None
    """Role -> node."""


@dataclass(frozen=True)
class Pair:
    """What a report reads of a line about a pair, whose arrays are a file beside it; older runs lack some of it."""

    id: str
    task: str | None = None
    variant: str | None = None
    seed: int | None = None
    instruction: str | None = None
    trigger: str | None = None
    start_step: int | None = None
    trigger_step: int | None = None
    rollback_steps: int | None = None
    corrector: str | None = None
    weight_version: int | None = None
    start_digest: str | None = None
    origin: str | None = None
    reward: str | None = None
    reward_gap: float | None = None
    restore_method: str | None = None
    exact_restore: bool | None = None
    restore_error: float | None = None


@dataclass(frozen=True)
class Video:
    """What a report reads of a line about an episode that was filmed; films are files beside it."""

    before: str
    after: str
    task: str | None = None
    variant: str | None = None
    seed: int | None = None
    before_node: str | None = None
    after_node: str | None = None
    before_failure: str | None = None
    after_failure: str | None = None
    pictures_hz: float | None = None
    """None for animated pictures, which older runs have."""


@dataclass(frozen=True)
class _Substitution:
    """What stood in for what."""

    wanted: str
    used: str
    why: str


@dataclass(frozen=True)
class PairSet:
    """The preference pairs of one collect node; segments stay on disk."""

    node: str
    method: str
    round: int
    folder: Path
    index: list[Pair]
    counts: dict[str, Any]
    digest: str | None = None
    """Content hash of the stage; equal for methods that share a collection."""
    replicate: int | None = None
    """Training seed, in a study."""

    @property
    def label(self) -> str:
        """Readable name: method and round, in a study also the training seed."""
        seed = "" if self.replicate is None else f", training seed {self.replicate}"
        return f"{label(self.method, self.round)}{seed}"


@dataclass
class LoadedRun:
    """Everything a report reads; `problems` lists files that exist but cannot be used."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    stages: list[StageRow] = field(default_factory=list)
    metrics: list[Record] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    pairs: list[PairSet] = field(default_factory=list)
    explorations: list[PairSet] = field(default_factory=list)
    """Of methods that explore: no pairs, their counts alone."""
    videos: list[tuple[Path, list[Video]]] = field(default_factory=list)
    examinations: list[Examination] = field(default_factory=list)
    trainings: list[LearningCurve] = field(default_factory=list)
    joint: list[Arm] = field(default_factory=list)
    """Arms of joint training."""
    problems: list[str] = field(default_factory=list)

    @property
    def on_language(self) -> bool:
        """Whether the run has stages on questions and answers."""
        kinds = {stage.kind for stage in self.stages}
        return bool(self.examinations or self.trainings or kinds & ON_LANGUAGE.keys())

    @property
    def on_episodes(self) -> bool:
        """Whether the run has stages in an environment; a run with nothing yet counts as one."""
        return bool(self.evaluations or self.pairs) or not self.on_language

    @property
    def schemes(self) -> list[str]:
        """Schemes of the curriculum, in the order of the stages."""
        named = [*(t.scheme for t in self.trainings), *(e.scheme for e in self.examinations)]
        return list(dict.fromkeys(scheme for scheme in named if scheme != BASE))

    @property
    def name(self) -> str:
        """Name of the experiment, or of the folder when the config has none."""
        return str(self.config.get("name") or self.path.resolve().name)

    @property
    def seed(self) -> int | None:
        """Training seed of the run."""
        return self.config.get("seed")

    @property
    def methods(self) -> list[str]:
        """Evaluated methods after the base policy, in the order of the stages."""
        return list(dict.fromkeys(e.method for e in self.evaluations if e.method != BASE))

    @property
    def method(self) -> str | None:
        """The method under test: the config's, else the first one evaluated that is no plain control."""
        wanted = [self.config.get("method"), *[m for m in self.methods if m != CONTINUED_SFT], *self.methods]
        return next((m for m in wanted if m in self.methods), None)

    @property
    def control(self) -> str | None:
        """What the method is held against: continued SFT, else the first evaluated control of the config."""
        listed = self.config.get("controls") or []
        others = [CONTINUED_SFT, *(listed if isinstance(listed, list) else []), *self.methods]
        return next((m for m in others if m in self.methods and m != self.method), None)

    @property
    def reference(self) -> str | None:
        """What a study holds the others against; None for other runs."""
        return (self.config.get("study") or {}).get("control")

    @property
    def own_stages(self) -> list[StageRow]:
        """All stages but the report."""
        return [stage for stage in self.stages if stage.kind != "report"]

    @property
    def unfinished(self) -> list[str]:
        """Stages other than the report that neither ended nor were skipped, as `name (status)`."""
        return [f"{s.name} ({s.status})" for s in self.own_stages if s.status not in ("done", "skipped")]

    @property
    def processors(self) -> list[str]:
        """Processors that the stages ran on, as far as it is known; several round differently."""
        return sorted({stage.processor for stage in self.own_stages if stage.processor})

    @property
    def computed_seconds(self) -> float:
        """Time of the stages that this run computed itself, summed, without the report."""
        return sum(stage.seconds or 0 for stage in self.own_stages if not stage.reused)

    def last_round(self, method: str | None) -> int:
        """Last evaluated round of a method, 0 for none."""
        return max((e.round for e in self.evaluations if e.method == method), default=0)

    def evaluation(self, method: str, round_: int) -> Evaluation | None:
        """The evaluation of a method after a round, None if there is none."""
        return next((e for e in self.evaluations if (e.method, e.round) == (method, round_)), None)


def load_run(path: Path) -> LoadedRun:
    """Read a run folder. UserError if there is none; unusable parts become `problems`."""
    if not path.is_dir():
        raise UserError(f"no run folder at {path}; a finished run prints its path in its last line")
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} is not a run folder: it has no config.yaml")
    run = LoadedRun(path)
    run.config = _part(run, path / "config.yaml", read_yaml, dict) or {}
    run.environment = _part(run, path / "environment.json", _read_environment, dict) or {}
    run.stages = _part(run, path / "stages.json", _read_stages, list) or []
    run.metrics = _part(run, path / "metrics.jsonl", read_metrics, list) or []
    if run.config.get("study"):
        run.metrics = [line | {"replicate": study_place(line.get("node", ""))[1]} for line in run.metrics]
    run.evaluations = [
        Evaluation(*place, episodes)
        for place, folder in _in_stage_order(run, "episodes")
        if (episodes := _part(run, folder / "results.jsonl", read_episodes, list))
    ]
    run.examinations = [
        Examination(node, scheme, _seed(run, node), items)
        for (node, scheme, _), folder in _in_stage_order(run, EXAMINATIONS)
        if (items := _part(run, folder / "results.jsonl", read_examination, list))
    ]
    run.trainings = [
        LearningCurve(
            *(node, scheme, _seed(run, node), folder),
            *(_part(run, folder / HELD_OUT, read_training, tuple) or NOT_EXAMINED),
        )
        for (node, scheme, _), folder in _in_stage_order(run, TRAININGS)
    ]
    run.joint = [
        arm
        for (node, name, _), folder in _in_stage_order(run, ARMS)
        if (arm := _part(run, folder, partial(read_arm, node, name, metrics=run.metrics), Arm))
    ]
    run.pairs = _pair_sets(run)
    run.explorations = [
        PairSet(*place, folder, [], counts)
        for place, folder in _in_stage_order(run, "explorations")
        if (counts := _part(run, folder / "collection.json", read_object, dict))
    ]
    run.videos = [
        (folder, index)
        for folder in _folders(path / "videos")
        if (index := _part(run, folder / "index.jsonl", partial(read_lines_as, kind=Video), list))
    ]
    return run


def _read_stages(path: Path) -> list[StageRow]:
    """The rows of stages.json, as far as reports read them."""
    known = StageRow.__dataclass_fields__
    return [
        fit({name: row[name] for name in known if name in row}, StageRow, f"{path}: {str(row.get('name')):.60}")
        for row in fit(read_object(path).get("nodes"), list[dict[str, Any]], f"{path}: nodes")
    ]


def _read_environment(path: Path) -> dict[str, Any]:
    """environment.json, its substitutions as they must be."""
    found = read_object(path)
    fit(found.get("substitutions", []), list[_Substitution], f"{path}: substitutions")
    return found


def _part(run: LoadedRun, path: Path, read: Any, kind: type) -> Any:
    """What `read` makes of a file; None, with a line in `problems`, if the file is there but unusable."""
    if not path.exists():
        return None
    try:
        value = read(path)
        json.dumps(value, ensure_ascii=False, default=_shown).encode()  # no page could hold half of a surrogate pair
    except DAMAGE as error:
        run.problems.append(f"{path.relative_to(run.path)} cannot be read: {one_line(error)}")
        return None
    if not isinstance(value, kind):
        run.problems.append(f"{path.relative_to(run.path)} holds no {kind.__name__}")
        return None
    return value


def _shown(value: Any) -> Any:
    return vars(value) if is_dataclass(value) else str(value)


def _folders(parent: Path) -> list[Path]:
    """Subfolders in order of name, without those still being written."""
    if not parent.is_dir():
        return []
    return sorted(p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".") and p.suffix != ".partial")


def _in_stage_order(run: LoadedRun, folder: str) -> list[tuple[tuple[str, str, int], Path]]:
    """(Node name, method, round), and path of each subfolder, ordered as in `stages.json`."""
    stages = {stage.name: (place, stage) for place, stage in enumerate(run.stages)}
    found = []
    for path in _folders(run.path / folder):
        position, stage = stages.get(path.name, (len(stages), StageRow(path.name)))
        method, round_ = parse_node(study_place(path.name)[2] if run.config.get("study") else path.name)
        method, round_ = stage.method or method, stage.round or round_
        found.append((method != BASE, position, round_, path.name, method, path))
    return [((name, method, round_), path) for _, _, round_, name, method, path in sorted(found)]


def _seed(run: LoadedRun, node: str) -> int:
    """The training seed of a study's node, 1, 2, ...; 0 in other runs."""
    return study_place(node)[1] if run.config.get("study") else 0


def in_world(run: LoadedRun, world: str) -> LoadedRun:
    """What a study measured in one of its worlds."""
    names = ("evaluations", "pairs", "explorations", "examinations", "trainings")
    parts: dict[str, Any] = {
        name: [one for one in getattr(run, name) if study_place(one.node)[0] == world] for name in names
    }
    parts |= {"stages": [one for one in run.stages if study_place(one.name)[0] == world]}
    return replace(run, **parts)


def read_episodes(path: Path) -> list[EpisodeResult]:
    """The episodes of a `results.jsonl`. UserError if one scene occurs twice: it would be counted twice."""
    episodes = read_lines_as(path, EpisodeResult)
    if len({e.key for e in episodes}) < len(episodes):
        raise UserError(f"{path} holds the same (task, variant, seed) more than once")
    return episodes


def _pair_sets(run: LoadedRun) -> list[PairSet]:
    """Those of collections, then the rounds of pairs of arms of joint training; rounds of the same weights are the same
    pairs."""
    stages = {stage.name: stage for stage in run.stages}
    found = []
    for (node, method, round_), folder in _in_stage_order(run, "pairs"):
        stage, (index, counts) = stages.get(node) or StageRow(node), _collection(run, folder)
        if index or counts:
            seed = study_place(node)[1] if run.config.get("study") else None
            found.append(PairSet(node, method, round_, folder, index, counts, stage.hash, seed))
    for arm in run.joint:
        for number, folder in enumerate(_folders(arm.folder / "pairs"), start=1):
            index, counts = _collection(run, folder)
            node = f"{arm.node}.{folder.name}"
            found.append(PairSet(node, arm.name, number, folder, index, counts, counts.get("digest")))
    return found


def _collection(run: LoadedRun, folder: Path) -> tuple[list[Pair], dict[str, Any]]:
    """Pairs and counts."""
    index = _part(run, folder / "index.jsonl", partial(read_lines_as, kind=Pair), list) or []
    return index, _part(run, folder / "collection.json", read_object, dict) or {}
