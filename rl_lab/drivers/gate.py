"""Gates of a pipeline: which of two models goes on, decided on questions that nothing else uses.

Both models answered the same development questions. The gain is the mean over questions of the new model's reward minus
that of the model before, with the report's two-sided interval (`rl_lab.stats`: bootstrap over questions)
at the gate's confidence c. The new model passes if the whole interval lies above `rise`: a model that rises by `rise`
and no more passes with a chance of about (1 - c) / 2, 2.5 % at the default. "Not passed" therefore means not shown to
be better, which with few questions also happens to better models.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rl_lab.config.pipeline import Gate
from rl_lab.errors import UserError
from rl_lab.files import Record, read_json_lines, write_whole
from rl_lab.graph.run_folder import GATE_FILE
from rl_lab.graph.stage import StageContext
from rl_lab.graph.store import RECORD_FILE
from rl_lab.reports.examinations import known_mean
from rl_lab.stats import mean_interval
from rl_lab.workers.cluster import Cluster

DEVELOPMENT_FILE = "development.jsonl"
"""Answers of one model to the development questions, in the output of its examination and of the gates behind it."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt")
"""Files of a checkpoint folder in Hugging Face layout."""


@dataclass(frozen=True)
class GateDecision:
    """What a gate found; the content of `gate.json`."""

    passed: bool
    difference: float
    """Mean gain in reward of the new model over the one before."""
    low: float
    high: float
    rise: float
    confidence: float
    n: int
    """Questions that both models have a known reward for."""
    before: float
    """Mean reward of the model before on these."""
    after: float
    otherwise: str | list[str]
    reason: str
    """The same in words."""


def paired_rewards(before: Sequence[Record], after: Sequence[Record]) -> np.ndarray:
    """Rewards of the questions that both answered, [n, 2]. UserError if they were asked different questions."""
    sides = [{row["item"]: known_mean(row["rewards"]) for row in rows} for rows in (before, after)]
    if sides[0].keys() != sides[1].keys():
        raise UserError("the two examinations asked different development questions, so nothing can be compared")
    pairs = np.array([[sides[0][item], sides[1][item]] for item in sides[0]], float).reshape(-1, 2)
    return pairs[~np.isnan(pairs).any(1)]


def decide(before: Sequence[Record], after: Sequence[Record], gate: Gate) -> GateDecision:
    """Whether the new model passes. UserError without two questions that both have a known reward for."""
    pairs = paired_rewards(before, after)
    if len(pairs) < 2:
        raise UserError(f"{len(pairs)} development questions have a known reward of both models; a gate needs two")
    gain = mean_interval((pairs[:, 1] - pairs[:, 0])[:, None], gate.confidence)
    passed = gain.low > gate.rise
    return GateDecision(
        passed=passed,
        difference=gain.value,
        low=gain.low,
        high=gain.high,
        rise=gate.rise,
        confidence=gate.confidence,
        n=len(pairs),
        before=float(pairs[:, 0].mean()),
        after=float(pairs[:, 1].mean()),
        otherwise=gate.otherwise if isinstance(gate.otherwise, str) else list(gate.otherwise),
        reason=_reason(passed, gain.value, gain.low, gain.high, len(pairs), gate),
    )


def _reason(passed: bool, value: float, low: float, high: float, n: int, gate: Gate) -> str:
    found = (
        f"reward changed by {value:+.3f} on {n} development questions ({100 * gate.confidence:g} % interval {low:+.3f} "
        f"to {high:+.3f})"
    )
    if passed:
        return f"passed: {found}, all of it above {gate.rise:g}; the new model goes on"
    what = {"previous": "the model before goes on", "stop": "the run stops with the model before"}
    then = (
        what[gate.otherwise]
        if isinstance(gate.otherwise, str)
        else f"{', '.join(gate.otherwise)} run from the model before"
    )
    return f"not passed: {found}, not all of it above {gate.rise:g}; {then}"


def take_model(source: Path, out: Path) -> None:
    """Show the checkpoint files of a folder in another, by hard links, copied where links fail."""
    for path in sorted(path for pattern in MODEL_FILES for path in source.glob(pattern)):
        target = out / path.name
        if path.name in (RECORD_FILE, GATE_FILE):
            continue
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copy2(path, target)


def gate(cluster: Cluster, context: StageContext) -> None:
    """Compare two examinations; the output is the decision, and the model that goes on with its answers."""
    inputs = context.inputs
    gate = Gate.model_validate_json(json.dumps(context.node.params["gate"]))
    before, after = (read_json_lines(inputs[name] / DEVELOPMENT_FILE) for name in ("before", "after"))
    decision = decide(before, after, gate)
    chosen = "after" if decision.passed else "before"
    policy = inputs.get(f"policy_{chosen}") or Path(context.config.model.path)
    _take(policy, inputs[chosen], context.out)
    write_whole(context.out / GATE_FILE, json.dumps(asdict(decision), indent=1) + "\n")


def join(cluster: Cluster, context: StageContext) -> None:
    """The model of whichever branch ran: the other branch's, else the one that passed the gate."""
    inputs = context.inputs
    if "failed" in inputs:
        _take(inputs["failed"], inputs["failed_examined"], context.out)
    else:
        _take(inputs["passed"], inputs["passed"], context.out)


def _take(model: Path, examined: Path, out: Path) -> None:
    """A model and its answers to the development questions."""
    take_model(model, out)
    shutil.copyfile(examined / DEVELOPMENT_FILE, out / DEVELOPMENT_FILE)
