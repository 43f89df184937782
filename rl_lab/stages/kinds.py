"""All kinds of stages by name.

A new one is a class in a file beside this, and a line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from rl_lab.config import load
from rl_lab.config.pipeline import Registry
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, StageKind
from rl_lab.graph.stage import Stage
from rl_lab.stages.action_rewards import CandidatesKind, RankKind, RecordKind, RewardModelKind, RewardModelsKind
from rl_lab.stages.distill import DistillKind, ImitateKind, TeacherKind
from rl_lab.stages.flowpro import (
    ORDERS,
    CollectKind,
    DemosKind,
    EvaluateKind,
    ExploreKind,
    GivenKind,
    OptimiseKind,
    RoundsKind,
    SFTKind,
)
from rl_lab.stages.gate import GateKind, JoinKind
from rl_lab.stages.grpo import GRPOKind
from rl_lab.stages.joint import JointKind, WarmStartKind
from rl_lab.stages.language import ColdStartKind, DevelopmentKind, ExamineKind, QuestionsKind
from rl_lab.stages.outcome import OutcomeLabelsKind, OutcomeMemberKind, OutcomeModelKind
from rl_lab.stages.report import ReportKind
from rl_lab.stages.rft import RFTKind, TracesKind
from rl_lab.stages.study import study_nodes, worlds

KINDS = {
    kind.name: kind
    for kind in (
        *(DemosKind(), SFTKind(), GivenKind()),
        *(RewardModelsKind(), RecordKind(), RewardModelKind(), CandidatesKind()),
        *(RoundsKind(), CollectKind(), ExploreKind(), RankKind(), OptimiseKind(), EvaluateKind()),
        *(QuestionsKind(), DevelopmentKind(), ColdStartKind(), ExamineKind()),
        *(GRPOKind(), TracesKind(), RFTKind(), GateKind(), JoinKind()),
        *(TeacherKind(), DistillKind(), ImitateKind()),
        *(OutcomeLabelsKind(), OutcomeMemberKind(), OutcomeModelKind()),
        *(WarmStartKind(), JointKind()),
        ReportKind(),
    )
}


def _expand(config: RunConfig) -> list[Node]:
    return Expansion(config, KINDS).run()


def settings_of(config: RunConfig) -> list[RunConfig]:
    """The configurations that stages of a run have: its own, or those of the worlds of a study."""
    return [config] if config.study is None else [settings for *_, settings in worlds(config)]


def expand(config: RunConfig) -> list[Node]:
    """The nodes of a run, every node after its inputs; the last is the report."""
    nodes = _expand(config) if config.study is None else study_nodes(config, _expand)
    return [*nodes, Node("report", KINDS["report"], inputs={node.name: node.name for node in nodes})]


def check_repeat(names: Sequence[str]) -> None:
    """ValueError unless repeated stages are rounds of a method, or cycles of a pipeline that train its model."""
    kinds = [KINDS[name] for name in names]
    trains = any(kind.learns and not kind.of_actions for kind in kinds)
    if tuple(names) not in ORDERS and (not trains or any(kind.named_in == ("repeat",) for kind in kinds)):
        raise ValueError(
            f"must be [collect, optimise, evaluate], with or without rank before optimise and evaluate behind it, "
            f"or cycles that train, such as [grpo, examine, gate], not [{', '.join(names)}]"
        )


def check_stages(config: RunConfig) -> None:
    """ValueError unless every stage finds what it needs before it, and settings that fit it."""
    graph = Expansion(config, KINDS, hashed=False)
    if config.study is not None:
        if graph.is_chain:
            raise ValueError("study: a pipeline makes one chain of models; a study needs rounds, or grpo and examine")
        worlds(config)
        return
    graph.run()
    for name in sorted(config.engine_stages):
        if config.workers.rollout < 1:
            raise ValueError(f"workers.rollout is 0, but {name} needs an engine; give at least 1")
    for name in sorted(graph.names):
        KINDS[name].fits(config)


def stage_functions(cluster: Any) -> dict[str, Stage]:
    """What does the work of each kind that a node can have, with the workers of one run, a `Cluster`."""
    return {name: partial(kind.run, cluster) for name, kind in KINDS.items() if type(kind).run is not StageKind.run}


REGISTRY = Registry(KINDS, check_repeat, check_stages)

load_config = partial(load.load_config, registry=REGISTRY)
resolve_config = partial(load.resolve_config, registry=REGISTRY)
