"""The steps of a run. Each reads its inputs and configuration from the context and writes into `context.out`.

Simulation, rollouts and learning happen in Ray actors; stages only say what is asked of them and what is kept.
"""

from __future__ import annotations

from rl_lab.drivers.action_rewards import ActionRewardStages
from rl_lab.drivers.distill import DistillStages
from rl_lab.drivers.flowpro import ActionStages
from rl_lab.drivers.gate import GateStages
from rl_lab.drivers.joint import JointStages
from rl_lab.drivers.language import LanguageStages
from rl_lab.drivers.outcome import OutcomeStages
from rl_lab.drivers.report import ReportStage
from rl_lab.drivers.rft import RFTStages
from rl_lab.graph.stage import Stage
from rl_lab.workers.cluster import Cluster


def stage_functions(cluster: Cluster) -> dict[str, Stage]:
    """The stage functions of one run by node kind; they share its cluster."""
    parts = (
        ActionStages(cluster),
        ActionRewardStages(cluster),
        LanguageStages(cluster),
        RFTStages(cluster),
        DistillStages(cluster),
        OutcomeStages(cluster),
        JointStages(cluster),
        GateStages(),
        ReportStage(cluster),
    )
    return {kind: function for part in parts for kind, function in part.functions().items()}
