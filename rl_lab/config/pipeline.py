"""Stages of a run: their names, repeated blocks and gates; and what a pipeline needs in front of what.

A run on language is a *pipeline*, one chain of models, as soon as its stages hold one of `PIPELINE_STAGES` or a repeat
of language stages; otherwise it is a comparison of curricula from one base. See docs/pipeline.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from rl_lab.config.section import AnyNumber, AtLeastOne, Rounds, Section

StageName = Literal[
    "demos",
    "sft",
    "reward_models",
    "evaluate",
    "questions",
    "cold_start",
    "examine",
    "grpo",
    "rft",
    "gate",
    "teacher",
    "distill",
    "imitate",
    "outcome_model",
    "warm_start",
    "joint",
]
PIPELINE_STAGES = ("rft", "gate", "teacher", "distill", "imitate", "outcome_model")
"""Stages that make a run on language a pipeline."""
TRAINING = ("grpo", "rft", "distill")
"""Stages that take the newest model of the chain and make the next."""
ENGINE_STAGES = ("examine", "grpo", "rft", "distill", "imitate", "joint")
"""Stages that sample answers."""
ACTION_ROUNDS = (
    *(("collect", "optimise"), ("collect", "optimise", "evaluate")),
    *(("collect", "rank", "optimise"), ("collect", "rank", "optimise", "evaluate")),
)
BranchStage = Literal["grpo", "rft", "examine"]


class Gate(Section):
    """Which of two models goes on: the newest one only if its reward on the development questions rose enough."""

    rise: Annotated[float, Field(ge=-1, le=1)] = 0.0
    """The newest model passes if the whole interval of its paired gain lies above this; negative allows a fall."""
    confidence: Annotated[float, Field(ge=0.5, le=0.99)] = 0.95
    """Of the two-sided interval, so a model that did not rise by `rise` passes with a chance of half the rest."""
    otherwise: Annotated[
        Annotated[Literal["previous", "stop"], Tag("a word")] | Annotated[AnyNumber[BranchStage], Tag("a branch")],
        Discriminator(lambda value: "a word" if isinstance(value, str) else "a branch"),
    ] = "previous"
    """Where it does not pass. previous: the model before goes on. stop: nothing after the gate runs. Stages: these
    run from the model before, and what they make goes on."""

    @field_validator("otherwise")
    @classmethod
    def _ends_examined(cls, otherwise: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(otherwise, tuple):
            trained = otherwise[:-1]
            if not trained or otherwise[-1] != "examine" or "examine" in trained or len(set(trained)) < len(trained):
                raise ValueError(
                    f"a branch trains, each way once, and ends with examine, such as [rft, examine], not "
                    f"[{', '.join(otherwise)}]"
                )
        return otherwise


class GateStage(Section):
    """A gate with settings of its own."""

    gate: Gate


class Repeat(Section):
    """Rounds of the same stages: of collecting and optimising, or cycles of a pipeline."""

    repeat: Rounds
    of: AtLeastOne[
        Annotated[
            Annotated[
                Literal["collect", "rank", "optimise", "evaluate", "grpo", "rft", "examine", "gate"], Tag("a stage")
            ]
            | Annotated[GateStage, Tag("a gate")],
            Discriminator(lambda value: "a stage" if isinstance(value, str) else "a gate"),
        ]
    ]

    @property
    def on_language(self) -> bool:
        """Whether these are cycles of a pipeline."""
        return self.of not in ACTION_ROUNDS

    @field_validator("of")
    @classmethod
    def _in_order(cls, of: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [stage_name(stage) for stage in of]
        if of not in ACTION_ROUNDS and (
            not {"grpo", "rft"} & set(names) or set(names) & {"collect", "rank", "optimise"}
        ):
            raise ValueError(
                f"must be [collect, optimise, evaluate], with or without rank before optimise and evaluate behind it, "
                f"or cycles that train, such as [grpo, examine, gate], not [{', '.join(names)}]"
            )
        return of


Stage = Annotated[
    Annotated[StageName, Tag("a stage")] | Annotated[GateStage, Tag("a gate")] | Annotated[Repeat, Tag("a block")],
    Discriminator(
        lambda value: (
            "a stage"
            if isinstance(value, str)
            else "a gate"
            if isinstance(value, GateStage) or (isinstance(value, dict) and "gate" in value)
            else "a block"
        )
    ),
]


@dataclass(frozen=True)
class Step:
    """One stage of a pipeline, with repeats written out."""

    kind: str
    cycle: int | None = None
    """1, 2, ... inside a repeat."""
    gate: Gate | None = None
    """For kind `gate`."""

    @property
    def model(self) -> str:
        """Name of the model that the stage makes, if it makes one."""
        return self.kind if self.cycle is None else f"{self.kind}.{self.cycle}"


def stage_name(stage: str | GateStage | Repeat) -> str:
    """`repeat` for a block, `gate` for one with settings."""
    return stage if isinstance(stage, str) else "gate" if isinstance(stage, GateStage) else "repeat"


def stage_names(stages: Iterable[str | GateStage | Repeat]) -> set[str]:
    """Names of all stages, those inside repeats and other branches included."""
    names: set[str] = set()
    for stage in stages:
        if isinstance(stage, Repeat):
            names |= stage_names(stage.of)
        else:
            names.add(stage_name(stage))
        if isinstance(stage, GateStage) and isinstance(stage.gate.otherwise, tuple):
            names |= set(stage.gate.otherwise)
    return names


def is_pipeline(stages: Iterable[str | GateStage | Repeat]) -> bool:
    """Whether a run trains one chain of models."""
    return any(
        stage.on_language if isinstance(stage, Repeat) else stage_name(stage) in PIPELINE_STAGES for stage in stages
    )


def steps(stages: Iterable[str | GateStage | Repeat], cycle: int | None = None) -> Iterator[Step]:
    """The stages of a pipeline in order, repeats written out."""
    for stage in stages:
        if isinstance(stage, Repeat):
            for number in range(1, stage.repeat + 1):
                yield from steps(stage.of, number)
        elif isinstance(stage, GateStage):
            yield Step("gate", cycle, stage.gate)
        else:
            yield Step(stage, cycle, Gate() if stage == "gate" else None)


class _Order:
    """Walks along a pipeline and says what is missing in front of a stage."""

    def __init__(self, has_base: bool, has_answers: bool, has_classifier: bool) -> None:
        self.has_base, self.has_answers, self.has_classifier = has_base, has_answers, has_classifier
        self.done: set[str] = set()
        self.newest: str | None = "base" if has_base else None
        """The model that an examine would examine."""
        self.examined: set[str] = set()
        self.before: str = ""
        self.chain: list[str] = ["base"]

    def take(self, step: Step) -> None:
        """The next stage. ValueError where it cannot stand."""
        if step.kind not in ("examine", "gate"):
            self._train(step)
        elif step.kind == "examine":
            self._examine()
        else:
            self._gate()
        self.before = step.kind

    def _train(self, step: Step) -> None:
        needs = {"questions": (), "cold_start": ("questions",), "imitate": ("questions", "teacher")}
        needs |= {"distill": ("questions", "teacher"), "outcome_model": () if self.has_answers else ("questions",)}
        for wanted in needs.get(step.kind, ("questions",)):
            if wanted not in self.done:
                raise ValueError(f"stages: {step.kind} needs {wanted} before it")
        if step.model in self.done:
            repeat = f"{{repeat: 2, of: [{step.kind}, ...]}}"
            raise ValueError(f"stages: {step.kind} is there twice; write {repeat}, whose cycles are numbered")
        starts = self.has_base or "cold_start" in self.done
        starts |= step.kind == "outcome_model" and self.has_answers and self.has_classifier
        if step.kind in (*TRAINING, "imitate", "outcome_model") and not starts:
            raise ValueError(f"stages: {step.kind} needs cold_start before it, or a trained model: give model.path")
        self.done.add(step.model)
        if step.kind in TRAINING:
            self.chain.append(step.model)
        if step.kind not in ("questions", "outcome_model"):
            self.newest = "base" if step.kind == "cold_start" else step.model

    def _examine(self) -> None:
        if self.newest is None:
            raise ValueError("stages: examine needs cold_start before it, or a trained model: give model.path")
        if "questions" not in self.done:
            raise ValueError("stages: examine needs questions before it")
        if self.newest in self.examined:
            raise ValueError(f"stages: examine comes twice for the model {self.newest}; leave one out")
        self.examined.add(self.newest)

    def _gate(self) -> None:
        if self.before != "examine":
            raise ValueError("stages: gate needs examine right before it")
        if self.newest != self.chain[-1] or len(self.chain) < 2:
            why = "comes before any training" if len(self.chain) < 2 else f"would decide about {self.newest}"
            raise ValueError(f"stages: a gate decides about a model that grpo, rft or distill made; this one {why}")
        if not self.examined & set(self.chain[:-1]):
            raise ValueError("stages: gate compares with an earlier examination; put examine behind cold_start too")


def check_order(
    stages: Sequence[str | GateStage | Repeat],
    has_base: bool,
    has_answers: bool = False,
    has_classifier: bool = False,
) -> None:
    """ValueError unless every stage of a pipeline finds what it needs before it.

    `has_base`: model.path is given; `has_answers`: a reward model learns from the answers of another run;
    `has_classifier`: it starts from a sequence classifier.
    """
    names = stage_names(stages)
    foreign = sorted(names & {"demos", "sft", "reward_models", "evaluate", "collect", "rank", "optimise"})
    if foreign:
        raise ValueError(f"stages: {foreign[0]} is of the action side; give it a run of its own, beside this pipeline")
    order = _Order(has_base, has_answers, has_classifier)
    for step in steps(stages):
        order.take(step)


def check_gates(names: set[str], development: int, other_file: str | None) -> None:
    """ValueError for gates without questions to decide on."""
    if "gate" in names and development < 2 and other_file is None:
        raise ValueError(
            f"questions.development is {development}, but a gate decides on questions of its own, so that held-out "
            "ones stay clean; set it to 200, or give questions.development_file"
        )
