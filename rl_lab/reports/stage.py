"""The last stage: what a run leaves for people to read."""

from __future__ import annotations

from rl_lab.reports.films import flipped, record_films, rescued
from rl_lab.reports.page import write_report
from rl_lab.reports.rundir import load_run
from rl_lab.reports.sweep_truth import ranks_actions
from rl_lab.runner.stage_context import Stage, StageContext
from rl_lab.workers.cluster import Cluster


class ReportStage:
    """Films, summary and page."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster

    def functions(self) -> dict[str, Stage]:
        """Stage functions by node kind."""
        return {"report": self.report}

    def report(self, context: StageContext) -> None:
        """Films of episodes that end differently under two policies, then summary and page of the run folder."""
        run = load_run(context.out)
        contrasts = flipped(run) if ranks_actions(run.config) else rescued(run)
        record_films(self.cluster, context, contrasts)
        write_report(context.out)
