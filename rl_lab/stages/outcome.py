"""An outcome reward model: labelled answers, one training a member, calibration and examination."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.spatial_qa.items import blank as grey
from rewards.calibration import Platt, calibration_error, examine, fit_platt
from rl_lab.common.errors import UserError
from rl_lab.common.files import write_file, write_whole
from rl_lab.common.seeding import integer
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import StageKind
from rl_lab.graph.stage import StageContext
from rl_lab.graph.store import METRICS_FILE, RECORD_FILE, link_tree
from rl_lab.learner.language import GROUPS
from rl_lab.learner.outcome import (
    LABELS_FILE,
    SPLITS,
    TRUTH,
    LabelledCompletions,
    OutcomePlan,
    answer_pairs,
    label_answers,
    save_member,
    training_rows,
)
from rl_lab.learner.plans import optimiser
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import questions_of, stores
from rl_lab.rollouts.answering import policy_folder
from rl_lab.rollouts.reward_model import (
    KIND,
    MODEL_FILE,
    OutcomeModel,
    QuestionInput,
    TextClassifier,
    check_classifier,
    load_member,
)
from rl_lab.stages.base import BASE_MODEL, TrainingKind
from rl_lab.stages.rft import check_traces
from rl_lab.stages.trl import trl_logger
from rl_lab.training.dataset import train
from rl_lab.workers.cluster import Cluster

ITEMS_FILE = "items.arrow"

SUMMARY_FILE = "labels.json"

ROWS_AT_ONCE = 512
"""Answers between two signs of life."""


class OutcomeLabelsKind(StageKind):
    """Labelled answers of a finished run, or of the traces of this one, beside their questions."""

    name = "outcome_labels"
    named_in = ()
    reads = ("outcome",)
    folder = "reward_models"
    makes = "table"
    seconds_per_unit = 5.0

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Labelled answers of a finished run, or of the traces of this one, beside their questions."""
        settings = context.config.outcome
        if settings.run is None:
            folders, questions = [context.inputs["traces"]], context.inputs["questions"] / "train.arrow"
        else:
            folders, questions = stores(Path(settings.run)), questions_of(Path(settings.run))
        shares = (settings.calibration, settings.test)
        answers, unknown = label_answers(folders, ItemFile(questions), shares, context.seed)
        answers.save(context.out / LABELS_FILE)
        write_file(context.out / ITEMS_FILE, lambda file: file.write(questions.read_bytes()))
        correct = answers.truth >= settings.threshold
        counts = {name: int((answers.split == place).sum()) for place, name in enumerate(SPLITS)}
        pairs = len(answer_pairs(answers.of("train"), settings.margin, settings.pairs, context.seed))
        summary = {"answers": counts, "pairs": pairs, "correct": float(correct.mean()), "without_reward": unknown}
        write_whole(context.out / SUMMARY_FILE, json.dumps(summary, indent=1) + "\n")


class OutcomeMemberKind(TrainingKind):
    """One member, which starts from the newest model."""

    name = "outcome_member"
    named_in = ()
    reads = ("model", "outcome")
    section = "outcome"
    seconds_per_row = 0.006

    def has_learner(self, config: RunConfig) -> bool:
        """A classifier of one's own is trained by TRL."""
        return config.outcome.classifier is None

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """One member, in the Learner or with TRL."""
        settings, labels = context.config.outcome, context.inputs["labels"]
        number = context.node.params["member"]
        seed = integer(context.seed, "outcome", number)
        if settings.classifier is not None:
            trl_classifier(context, labels / LABELS_FILE, labels / ITEMS_FILE, seed)
            return
        plan = OutcomePlan(policy_folder(context), settings, labels / LABELS_FILE, labels / ITEMS_FILE, seed)
        if settings.backend == "trl":
            trl_outcome(context, plan)
        else:
            train(cluster, context, plan)


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
        labels: dict[str, Any] = {"method": "outcome_model"}
        if outcome.run is None:
            inputs = {"questions": "questions"}
            asked = inputs | graph.head.inputs()
            inputs["traces"] = graph.add("outcome_model.traces", "traces", asked, **labels).name
        labelled = {"labels": graph.add("outcome_model.labels", "outcome_labels", inputs, **labels).name}
        start, members = {} if outcome.classifier else graph.head.inputs(), dict[str, str]()
        for number in range(1, outcome.members + 1):
            name, more = f"outcome_model.member.{number}", {"member": number}
            graph.add(name, "outcome_member", labelled | start, more=more, **labels)
            members[f"member.{number}"] = name
        graph.add("outcome_model", "outcome_model", labelled | members, **labels)

    def samples(self, config: RunConfig) -> bool:
        """Traces, unless it learns from the answers of another run."""
        return config.outcome.run is None

    def check(self, config: RunConfig) -> None:
        """There is something to learn from, and what it starts from."""
        outcome = config.outcome
        if outcome.run is None:
            check_traces(config)
        else:
            _check_answers(Path(outcome.run))
        if outcome.classifier is not None:
            _check_classifier(Path(outcome.classifier))

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Calibrate the members, examine the model, and put it together as `reward_model.OutcomeReward` reads it."""
        settings, labels = context.config.outcome, context.inputs["labels"]
        folders = [context.inputs[f"member.{number}"] for number in range(1, settings.members + 1)]
        answers, items = LabelledCompletions.load(labels / LABELS_FILE), ItemFile(labels / ITEMS_FILE)
        model = OutcomeModel([load_member(folder) for folder in folders], [Platt()] * len(folders))
        fitted, test = answers.of("calibration"), answers.of("test")
        model.platts = _platts(_logits(context, model, items, fitted, "calibration"), fitted, settings.threshold)
        began = time.perf_counter()
        logits = _logits(context, model, items, test, "test")
        seconds = time.perf_counter() - began
        record = {
            "kind": KIND,
            "learns": settings.learns,
            "threshold": settings.threshold,
            "platt": [{"scale": platt.scale, "shift": platt.shift} for platt in model.platts],
            "labels": json.loads((labels / SUMMARY_FILE).read_text()),
            "steps": settings.steps,
            "test": _measures(model, logits, test, items, settings.threshold),
            "blank": _blank(context, model, items, test, settings.threshold),
            "answers_per_second": len(test) / seconds,
            "device": model.device,
        }
        for number, folder in enumerate(folders, start=1):
            link_tree(folder, context.out / f"member-{number}", without=(METRICS_FILE, RECORD_FILE))
        write_whole(context.out / MODEL_FILE, json.dumps(record, indent=1) + "\n")
        numbers = {name: record["test"][name] for name in ("accuracy", "auroc", "brier", "calibration_error")}
        context.log(settings.steps, **{f"outcome/test_{name}": value for name, value in numbers.items()})


def _check_answers(run: Path) -> None:
    """There are answers to learn a reward from, and their questions."""
    if not stores(run) or not questions_of(run).is_file():
        raise UserError(f"outcome.run: {run} has no stored answers with their questions; give a run that sampled some")


def _check_classifier(folder: Path) -> None:
    """There is a classifier, or a model that can become one."""
    try:
        check_classifier(folder)
    except UserError as error:
        raise UserError(f"outcome.classifier: {error}") from error


def _questions(items: ItemFile, answers: LabelledCompletions, *, blank: bool = False) -> list[QuestionInput]:
    """Text and pictures of each answer's question; answers to one question share the tuple of its pictures."""
    read = {row: items[row] for row in np.unique(answers.row).tolist()}
    shown = {row: grey(item) if blank else item for row, item in read.items()}
    return [(shown[row].prompt, shown[row].images) for row in answers.row.tolist()]


def _logits(
    context: StageContext,
    model: OutcomeModel,
    items: ItemFile,
    answers: LabelledCompletions,
    name: str,
    *,
    blank: bool = False,
) -> np.ndarray:
    """Scores [M, N], with signs of life."""
    parts = []
    for start in range(0, len(answers), ROWS_AT_ONCE):
        some = answers.take(np.arange(start, min(start + ROWS_AT_ONCE, len(answers))))
        parts.append(model.logits(_questions(items, some, blank=blank), some.completion))
        context.progress(start + len(some), len(answers), name)
    return np.concatenate(parts, axis=1)


def _platts(logits: np.ndarray, answers: LabelledCompletions, threshold: float) -> list[Platt]:
    correct = (answers.truth >= threshold).astype(np.float64)
    try:
        return [fit_platt(row, correct) for row in logits]
    except ValueError as error:
        raise UserError(f"outcome.calibration: {error}; give it a larger share, or sample more answers") from error


def _measures(
    model: OutcomeModel, logits: np.ndarray, answers: LabelledCompletions, items: ItemFile, threshold: float
) -> dict[str, Any]:
    scenes = [items.record(row)["scene"] for row in answers.row.tolist()]
    found = examine(model.probabilities(logits), answers.truth, threshold, answers.row, scenes)
    correct = (answers.truth >= threshold).astype(np.float64)
    raw = np.stack([Platt()(row) for row in logits]).mean(0)
    return found | {"calibration_error_before": calibration_error(raw, correct), "truth": TRUTH}


def _blank(
    context: StageContext, model: OutcomeModel, items: ItemFile, answers: LabelledCompletions, threshold: float
) -> dict[str, Any]:
    """The same answers beside grey pictures: what the model knows without looking."""
    logits = _logits(context, model, items, answers, "grey pictures", blank=True)
    found = _measures(model, logits, answers, items, threshold)
    return {name: found[name] for name in ("accuracy", "auroc", "auroc_interval", "pair_accuracy")}


def trl_outcome(context: StageContext, plan: OutcomePlan) -> None:
    """A member of an outcome reward model by TRL's `RewardTrainer`, which reads the pairs that the Learner would."""
    from rl_lab.trl_backend.outcome import train_outcome  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    torch.set_num_threads(plan.settings.threads)
    start, head = plan.start()
    data, settings = plan.data(start.processor), plan.settings
    trl_settings = Settings(
        optimiser(settings), (*GROUPS, "head"), gradient_checkpointing=settings.gradient_checkpointing
    )
    train_outcome(start, head, data.both_sides, data.order, trl_settings, trl_logger(context, settings))
    save_member(context.out, start, head, settings.steps)


def trl_classifier(context: StageContext, labels: Path, items: Path, seed: int) -> None:
    """A member that is a sequence classifier, by TRL's `RewardTrainer` on pairs of texts."""
    from rl_lab.trl_backend.outcome import CLASSIFIER, train_classifier  # here, because it imports TRL
    from rl_lab.trl_backend.trainer import Settings

    settings = context.config.outcome
    torch.set_num_threads(settings.threads)
    answers, questions = LabelledCompletions.load(labels).of("train"), ItemFile(items)
    units, order = training_rows(answers, settings, seed)
    classifier = TextClassifier.load(Path(settings.classifier), seed)

    def tokens(place: int) -> list[int]:
        return classifier.encode(questions.record(int(answers.row[place]))["prompt"], answers.completion[place])

    pairs = [(tokens(better), tokens(worse)) for better, worse in units]
    checkpointing = settings.gradient_checkpointing
    trl_settings = Settings(optimiser(settings), (CLASSIFIER,), gradient_checkpointing=checkpointing)
    train_classifier(classifier, pairs, order, trl_settings, trl_logger(context, settings))
    classifier.save(context.out)
