"""How episodes ended, policy by policy."""

from __future__ import annotations

from collections import Counter

from rl_lab.reports.markup import Cell, Markup, macros, parts
from rl_lab.reports.rundir import EpisodeResult, RunFolder, label


def outcome(episode: EpisodeResult) -> tuple[bool, str, int]:
    """How an episode ended, sortable: success first, then by failure and the sub-goals reached."""
    if episode.success:
        return False, "success", 0
    return True, episode.failure or "timeout", episode.stage


def failure_modes(run: RunFolder) -> Markup:
    """How episodes ended: one row a failure and stage reached, one column a policy."""
    if not run.evaluations:
        return Markup("")
    counts = [Counter(outcome(e) for e in evaluation.episodes) for evaluation in run.evaluations]
    rows = []
    for key in sorted(set().union(*counts)):
        failed, name, stage = key
        text = f"{name.replace('_', ' ')}, {stage} sub-goal{'s' * (stage != 1)} reached" if failed else "success"
        cells = []
        for count, evaluation in zip(counts, run.evaluations, strict=True):
            share = count[key] / len(evaluation.episodes)
            heat = parts.heat(count[key] or "", share, "bad" if failed else "good")
            cells.append(Cell(heat, "heatcell"))
        rows.append([text, *cells])
    head = ["Outcome", *(label(e.method, e.round) for e in run.evaluations)]
    return macros("actions").failures(head, rows)
