"""An outcome reward model: labelled answers, one training a member, calibration and examination."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.errors import UserError
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import StageKind
from rl_lab.records.rollouts import QUESTIONS_FILE, stores
from rl_lab.stages.base import BASE_MODEL, TrainingKind
from rl_lab.stages.rft import check_traces


class OutcomeLabelsKind(StageKind):
    """Labelled answers of a finished run, or of the traces of this one, beside their questions."""

    name = "outcome_labels"
    reads = ("outcome",)
    folder = "reward_models"
    makes = "table"
    seconds_per_unit = 5.0


class OutcomeMemberKind(TrainingKind):
    """One member, which starts from the newest model."""

    name = "outcome_member"
    reads = ("model", "outcome")
    section = "outcome"
    seconds_per_row = 0.006

    def has_learner(self, config: RunConfig) -> bool:
        """A classifier of one's own is trained by TRL."""
        return config.outcome.classifier is None


class OutcomeModelKind(StageKind):
    """The members, calibrated and examined; not part of the chain."""

    name = "outcome_model"
    reads = ("outcome",)
    folder = "reward_models"
    makes_chain = True
    makes = "model"
    seconds_per_unit = 30.0

    def needs(self, graph: Expansion) -> tuple[str, ...]:
        """Questions, unless it learns from the answers of another run."""
        return ("questions",) if graph.config.outcome.run is None else ()

    def starts(self, graph: Expansion) -> tuple[str, str] | None:
        """From the newest model, or from a classifier."""
        outcome = graph.config.outcome
        return None if outcome.run is not None and outcome.classifier is not None else BASE_MODEL

    def expand(self, graph: Expansion, step: Step) -> None:
        """Traces, labels, members, model."""
        outcome, inputs = graph.config.outcome, dict[str, str]()
        labels: dict[str, Any] = {"method": "outcome_model", "replicate": 1}
        if outcome.run is None:
            inputs = {"questions": "questions"}
            asked = inputs | graph.head.inputs()
            inputs["traces"] = graph.add("outcome_model.traces", "traces", asked, more={"replicate": 1}, **labels).name
        labelled = {"labels": graph.add("outcome_model.labels", "outcome_labels", inputs, **labels).name}
        start, members = {} if outcome.classifier else graph.head.inputs(), dict[str, str]()
        for number in range(1, outcome.members + 1):
            name, more = f"outcome_model.member.{number}", {"member": number}
            graph.add(name, "outcome_member", labelled | start, more=more, **labels)
            members[f"member.{number}"] = name
        graph.add("outcome_model", "outcome_model", labelled | members, **labels)

    def check(self, config: RunConfig) -> None:
        """There is something to learn from, and what it starts from."""
        outcome = config.outcome
        if outcome.run is None:
            check_traces(config)
        else:
            _check_answers(Path(outcome.run))
        if outcome.classifier is not None:
            _check_classifier(Path(outcome.classifier))


def _check_answers(run: Path) -> None:
    """There are answers to learn a reward from, and their questions."""
    if not stores(run) or not (run / QUESTIONS_FILE).is_file():
        raise UserError(f"outcome.run: {run} has no stored answers with their questions; give a run that sampled some")


def _check_classifier(folder: Path) -> None:
    """There is a classifier, or a model that can become one."""
    from rl_lab.rollouts.reward_model import check_classifier  # here, because it imports transformers

    try:
        check_classifier(folder)
    except UserError as error:
        raise UserError(f"outcome.classifier: {error}") from error
