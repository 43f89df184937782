"""The steps of a run. Each reads its inputs and configuration from the context and writes into `context.out`.

Simulation, rollouts and learning happen in Ray actors; stages only say what is asked of them and what is kept.
"""

from __future__ import annotations

from rl_lab.action.reward_stages import ActionRewardStages
from rl_lab.action.stages import ActionStages
from rl_lab.joint.stages import JointStages
from rl_lab.language.distill_stages import DistillStages
from rl_lab.language.gates import GateStages
from rl_lab.language.outcome_stages import OutcomeStages
from rl_lab.language.rft_stages import RFTStages
from rl_lab.language.stages import LanguageStages
from rl_lab.reports.stage import ReportStage
from rl_lab.runner.stage_context import Stage
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
