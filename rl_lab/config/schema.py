"""Every setting of a run, typed; the defaults are the vetted setting.

A section that a stage reads must be listed in the `reads` of its kind (`rl_lab.stages`), so that its content hash
covers it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PrivateAttr, ValidationInfo, model_validator

from algos.curriculum.options import CurriculumOptions
from algos.grpo import GRPOOptions
from algos.methods import ALIASES, METHODS, Method
from envs.by_name import own_names
from envs.options import MAX_PROCESSES, AnyNumber, Named, PositiveInt, Processes, Seconds, Seed
from rewards.config import RewardConfig
from rl_lab.config.actions import (
    BuffersConfig,
    CandidatesConfig,
    CollectConfig,
    DemosConfig,
    EvalConfig,
    ExploreConfig,
    ObjectiveConfig,
    OptimiseConfig,
    RankingConfig,
    RecordConfig,
    RewardModelsConfig,
    SFTConfig,
    check_rankings,
)
from rl_lab.config.env import EnvConfig
from rl_lab.config.hub import HubConfig
from rl_lab.config.joint import JointConfig
from rl_lab.config.language import (
    ColdStartConfig,
    Curriculum,
    DistillConfig,
    EngineConfig,
    ExamineConfig,
    GRPOSection,
    ImitateConfig,
    JudgeServerConfig,
    OutcomeConfig,
    QuestionsConfig,
    Rewards,
    RFTConfig,
    RLConfig,
    TeacherConfig,
    TracesConfig,
)
from rl_lab.config.pipeline import Repeat, Stage, stage_names
from rl_lab.config.placement import Placement, PlacementBlock
from rl_lab.config.section import STATE_POLICY, ModelConfig, Section
from rl_lab.config.study import MethodName, Study


class WorkersConfig(Section):
    """Ray workers; their number changes the speed, never the result."""

    simulation: Processes = 2
    """Simulators, each in a process of its own."""
    rollout: Annotated[int, Field(ge=0, le=MAX_PROCESSES)] = 1
    """vLLM engines that answer questions, each in a process of its own."""
    rollout_threads: Processes = 1
    """Threads of each engine on CPU."""
    rollout_timeout_s: Seconds = 300.0
    """An engine that has not answered a call by then is replaced, and the call repeated."""
    policy: Literal["local", "shared"] = "local"
    """local: every simulation worker acts with a copy of the policy in its own process, on CPU. shared: all ask one
    process, which is on the GPU if the learner is."""
    stages: Processes = 3
    """Stages of the graph that may run at the same time."""
    robotwin_start_timeout_s: Seconds = 300.0
    """RoboTwin's side is ended, and started again, if it has not been imported by then,"""
    robotwin_reset_timeout_s: Seconds = 300.0
    """or has not set a scene up or played its expert by then,"""
    robotwin_step_timeout_s: Seconds = 60.0
    """or has not answered anything else by then."""


class StudyConfig(Study):
    """The experiment in other worlds, by several methods and with several training seeds; see docs/studies.md."""

    rewards: Named[MethodName, Rewards] = {}
    rankings: Named[MethodName, RankingConfig] = {}


class RunConfig(Section):
    """A run. `tabletop:` and `robotwin:` in a file are overrides for that backend and are merged while loading."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=128)]
    """Of the run: its folder is `runs/NAME-TIMESTAMP`, and trackers show it."""
    seed: Seed = 0
    """All random numbers follow from it: scenes, noise, sampling, the order of data."""
    env: EnvConfig = EnvConfig()
    model: ModelConfig = ModelConfig()
    demos: DemosConfig = DemosConfig()
    sft: SFTConfig = SFTConfig()
    method: str = "rpro"
    """What the rounds optimise with; a name of `algos.methods.METHODS`, or of an entry of `objectives` with code."""
    controls: AnyNumber[str] = ("continued_sft",)
    """Methods that run beside it from the same SFT policy, with the same rounds and optimiser steps."""
    collect: CollectConfig = CollectConfig()
    explore: ExploreConfig = ExploreConfig()
    optimise: OptimiseConfig = OptimiseConfig()
    objectives: Named[str, ObjectiveConfig] = {}
    """Settings by method name; preference methods without an entry take that of `rpro`."""
    stages: AnyNumber[Stage]
    """What is done, in this order: words, blocks that repeat, and gates."""
    workers: WorkersConfig = WorkersConfig()
    buffers: BuffersConfig = BuffersConfig()
    eval: EvalConfig = EvalConfig()
    questions: QuestionsConfig = QuestionsConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    engine: EngineConfig = EngineConfig()
    examine: ExamineConfig = ExamineConfig()
    rewards: Rewards = RewardConfig()
    judge: JudgeServerConfig | None = None
    """A judge that the run serves itself, for `rewards.judge`."""
    truth: Rewards | None = None
    """What examinations score by; None: by `rewards`."""
    study: StudyConfig | None = None
    """Worlds, methods and training seeds that are compared; None: this one experiment."""
    curriculum: Curriculum = CurriculumOptions()
    """How the items of a step are chosen: options of `algos.curriculum.options`."""
    grpo: GRPOSection = GRPOOptions()
    """The objective, under the names of TRL's `GRPOConfig`."""
    rl: RLConfig = RLConfig()
    traces: TracesConfig = TracesConfig()
    rft: RFTConfig = RFTConfig()
    teacher: TeacherConfig = TeacherConfig()
    distill: DistillConfig = DistillConfig()
    imitate: ImitateConfig = ImitateConfig()
    outcome: OutcomeConfig = OutcomeConfig()
    record: RecordConfig = RecordConfig()
    reward_models: RewardModelsConfig = RewardModelsConfig()
    candidates: CandidatesConfig = CandidatesConfig()
    ranking: RankingConfig = RankingConfig()
    joint: JointConfig = JointConfig()
    placement: PlacementBlock = Placement()
    """Where processes run: auto, cpu or gpu for the learner's device, or a block; auto: the GPU if torch sees one."""
    trackers: AnyNumber[Literal["wandb", "tensorboard", "trackio", "mlflow"]] = ("wandb",)
    """Who follows the run, by the name of the package that must be installed; [] for nobody. See docs/trackers.md."""
    wandb: Literal["offline", "online", "disabled"] = "offline"
    """How Weights & Biases does: into the run's folder, over the network, or not at all."""
    hub: HubConfig | None = None
    """What is uploaded to Hugging Face's hub when the run is over; None: nothing."""
    checkpoint_every: PositiveInt | None = None
    """Optimiser steps between the states from which a killed run continues; None: ten a stage, and one in 200 steps."""
    _registry: Any = PrivateAttr(None)
    """All kinds of stages, `rl_lab.config.pipeline.Registry`, from the loader."""

    @property
    def methods(self) -> tuple[str, ...]:
        """The method and its controls, in the order in which they are reported."""
        return (self.method, *self.controls)

    @property
    def policy_code(self) -> str | None:
        """The class of a policy that is not of our architecture."""
        return self.model.code

    @property
    def own_code(self) -> dict[str, str]:
        """All that it names of the user's own code, by dotted key; the policy of studies is the lab's."""
        return {key: source for key, source in own_names(self).items() if source != STATE_POLICY}

    def objective(self, method: str) -> ObjectiveConfig:
        """Settings of a method: its own entry, else that of `rpro`, of which most are variants, else the defaults."""
        return self.objectives.get(method, self.objectives.get("rpro", ObjectiveConfig()))

    def row(self, method: str) -> Method:
        """What a method is: of our table, or of one's own. ValueError for an unknown name."""
        return self.objective(method).row(method)

    @property
    def trackers_used(self) -> tuple[str, ...]:
        """The trackers, without Weights & Biases where that is disabled."""
        return tuple(name for name in self.trackers if name != "wandb" or self.wandb != "disabled")

    @property
    def registry(self) -> Any:
        """The kinds of stages that it was loaded with, `rl_lab.config.pipeline.Registry`; None without any."""
        return self._registry

    @property
    def kinds(self) -> list[Any]:
        """The kinds of its stages, `rl_lab.graph.nodes.StageKind`."""
        assert self._registry is not None, "loaded without the kinds of stages; see rl_lab.stages.kinds"
        names = self.stage_names
        return [kind for name, kind in self._registry.kinds.items() if name in names]

    def reads(self, section: str) -> bool:
        """Whether any stage reads a section."""
        return any(section in kind.reads for kind in self.kinds)

    @property
    def learns_actions(self) -> bool:
        """Whether any stage is of the action side."""
        return any(kind.of_actions for kind in self.kinds)

    @property
    def runs_episodes(self) -> bool:
        """Whether anything is simulated."""
        return any(kind.has_episodes(self) for kind in self.kinds)

    @property
    def learns_language(self) -> bool:
        """Whether any stage is of the language side."""
        return any(not kind.of_actions for kind in self.kinds)

    @property
    def stage_names(self) -> set[str]:
        """Names of all stages, those inside repeats and other branches included."""
        return stage_names(self.stages)

    @property
    def engine_stages(self) -> set[str]:
        """Names of the stages that sample answers."""
        return {kind.name for kind in self.kinds if kind.samples(self)}

    @property
    def workers_needed(self) -> WorkersConfig:
        """The workers that the stages use: no engines where nothing answers questions."""
        return self.workers if self.engine_stages else self.workers.model_copy(update={"rollout": 0})

    @property
    def is_joint(self) -> bool:
        """Whether both skills are trained on one learner."""
        return any(kind.makes_joint for kind in self.kinds)

    @property
    def sources(self) -> list[str]:
        """Where episodes happen and questions come from, in words."""
        lines = []
        if self.learns_actions:
            if self.demos.files is not None:
                lines.append(f"demonstrations from {', '.join(self.demos.files.paths)}")
            if self.runs_episodes:
                lines.append(f"{self.env.backend}/{', '.join(self.env.tasks)}")
        if self.learns_language:
            files = ", ".join(map(str, self.questions.files().values()))
            stored = f"stored answers of {self.outcome.run}" if "questions" not in self.stage_names else ""
            lines.append(stored or f"questions from {files or 'generated scenes'}")
        return lines

    @property
    def num_rounds(self) -> int:
        """Rounds of collecting and optimising, 0 without any."""
        blocks = (stage for stage in self.stages if isinstance(stage, Repeat) and not stage.on_language)
        return next((block.repeat for block in blocks), 0)

    @property
    def collects_pairs(self) -> bool:
        """Whether any stage corrects the policy's failures; policy gradients collect episodes of their own instead."""
        rows = [self.row(name) for name in self.methods]
        return self.reads("collect") and (any(row.needs_collection for row in rows) or not self.explores)

    @property
    def explores(self) -> bool:
        """Whether any method learns from episodes of its own."""
        return self.num_rounds > 0 and any(self.row(name).sampler is not None for name in self.methods)

    @property
    def needs_policy(self) -> bool:
        """Whether any stage of a comparison acts by a policy or improves one."""
        return self.num_rounds > 0 or any(kind.of_actions and kind.start is not None for kind in self.kinds)

    @model_validator(mode="after")
    def _methods_exist(self) -> Self:
        for key, names in (("method", (self.method,)), ("controls", self.controls), ("objectives", self.objectives)):
            for name in names:
                try:
                    self.row(name)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error
        for name, settings in self.objectives.items():
            what = "a variant" if settings.variant_of is not None else "code of one's own"
            named = settings.variant_of is not None or settings.code is not None
            if named and (name in {*METHODS, *ALIASES} or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_]*", name)):
                raise ValueError(f"objectives.{name}: {what} needs a name of its own: letters, digits and _")
            if settings.variant_of is not None and not self.row(name).has_settings:
                raise ValueError(
                    f"objectives.{name}: {settings.variant_of} has no settings that a variant could change"
                )
            self._check_weights(name, settings)
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"controls: {list(self.controls)} repeat a method of the run; name each once")
        return self

    def _check_weights(self, name: str, settings: ObjectiveConfig) -> None:
        """ValueError for settings that the method's loss does not have."""
        row, fields = self.row(name), ObjectiveConfig.model_fields
        is_gradient = row.sampler is not None
        known = {"lambda_pro": not is_gradient, "lambda_sft": not is_gradient, "reference": not is_gradient}
        known |= {"loser_states": row.rows == "tuples" and row.loser_states == settings.loser_states}
        known |= {"epsilon": is_gradient, "noise": row.sampler == "sde", "noise_bounds": row.sampler == "learned"}
        for key, is_known in known.items():
            if not is_known and row.code is None and getattr(settings, key) != fields[key].default:
                raise ValueError(f"objectives.{name}: {settings.variant_of or name} has no {key}; leave it out")

    @model_validator(mode="after")
    def _experts_know_their_modes(self) -> Self:
        self.env.check_modes(tuple(self.demos.modes))
        return self

    @model_validator(mode="after")
    def _stages_follow(self, info: ValidationInfo) -> Self:
        """Each stage finds what it needs before it; the loader gives, as context, the kinds that know it."""
        if not self.stages:
            raise ValueError("stages is empty; write for example [demos, sft, evaluate]")
        if info.context is not None:
            self._registry = info.context
            info.context.check(self)
        return self

    @model_validator(mode="after")
    def _trackers_are_named(self) -> Self:
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers: {list(self.trackers)} repeat one; name each once")
        if self.wandb == "online" and "wandb" not in self.trackers:
            raise ValueError("wandb is online, but trackers leaves it out; add wandb to trackers")
        return self

    @model_validator(mode="after")
    def _study_fits(self) -> Self:
        if self.study is None:
            return self
        if self.study.on_arms:
            if not {"joint", "evaluate", "examine"} <= self.stage_names:
                raise ValueError(
                    "study: compare is joint.arms, of both skills; stages needs joint, evaluate and examine"
                )
            return self
        if self.study.executes or self.study.variants:
            asks = self.study.on_questions
            if self.num_rounds or ("examine" if asks else "evaluate") not in self.stage_names:
                what = "compare is eval.join" if self.study.executes else "variants are given"
                stages = "[questions, cold_start, examine]" if asks else "[demos, sft, evaluate]"
                raise ValueError(f"study: {what}, of one model; let stages be {stages}")
            return self
        needed = ("grpo", "examine") if self.study.on_questions else ("rank",) if self.study.rankings else ()
        for stage in needed:
            if stage not in self.stage_names:
                raise ValueError(f"study: {self.study.compared} needs {stage}; add it to stages")
        blocks = [stage for stage in self.stages if isinstance(stage, Repeat) and not stage.on_language]
        if not self.study.on_questions and not any("evaluate" in block.of for block in blocks):
            raise ValueError(
                "study: methods are compared by evaluated rounds; let stages end with "
                "{repeat: 1, of: [collect, optimise, evaluate]}"
            )
        if self.study.control == "base" and "evaluate" not in self.stages:
            raise ValueError("study: control is base, which nobody evaluates; add evaluate before the rounds")
        return self

    @model_validator(mode="after")
    def _rankings_fit(self) -> Self:
        check_rankings(self)
        return self

    @model_validator(mode="after")
    def _trl_reads_an_order(self) -> Self:
        if self.rl.backend == "trl" and self.curriculum.mode == "stage":
            raise ValueError("rl.backend is trl, which cannot keep what a probe finds; set curriculum.mode to online")
        return self

    @model_validator(mode="after")
    def _judges_are_served(self) -> Self:
        if self.placement.judges is not None and self.judge is None:
            raise ValueError("placement.judges has no judge to place: give judge.path, a model for the run to serve")
        return self

    @model_validator(mode="after")
    def _adapters_have_a_base(self) -> Self:
        if self.sft.lora is not None and self.model.path is None:
            raise ValueError(
                "sft.lora adapts trained weights, but the preset's are random; give model.path or leave sft.lora out"
            )
        return self
