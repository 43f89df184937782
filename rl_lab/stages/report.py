"""The last stage: what a run leaves for people to read."""

from __future__ import annotations

from rl_lab.graph.nodes import StageKind


class ReportKind(StageKind):
    """Films, summary and page of the run folder."""

    name = "report"
    makes = "page"
    seconds_per_unit = 15.0
