"""The card of a reward model of answers: how well it knows which answers are correct, and how sure it may be."""

from __future__ import annotations

from typing import Any

from rl_lab.reports.markup import Markup, macros, minus
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.plots import Axis, Series, chart
from rl_lab.reports.rundir import RunFolder
from rl_lab.reports.summary import outcome_models

LANGUAGE = macros("language")


def _number(value: float | None) -> str:
    return "unknown" if value is None else minus(f"{value:.3f}")


def outcome_section(run: RunFolder) -> Markup:
    """A card for every model; nothing for a run without any."""
    cards = [_card(name, record) for name, record in outcome_models(run).items()]
    return LANGUAGE.outcome_models(cards) if cards else Markup("")


def _card(name: str, record: Row) -> Markup:
    test, labels = record["test"], record["labels"]
    sides = labels["answers"]
    learned = {"correctness": f"{sides['train']:,} answers", "preference": f"{labels['pairs']:,} pairs of answers"}
    facts = (
        f"{len(record['platt'])} members, {record['steps']} steps each on {learned[record['learns']]}, "
        f"{percent(labels['correct'])} of all correct (true reward from {record['threshold']:g}); calibrated on "
        f"{sides['calibration']:,}, examined on {sides['test']:,}. Scores {record['answers_per_second']:,.0f} "
        f"answers a second on {record['device']}."
    )
    return LANGUAGE.outcome_card(name, facts, _rows(record), _reliability(test), _ensemble(test))


def _rows(record: Row) -> list[list[Any]]:
    test, blank = record["test"], record["blank"]

    def ends(values: list[float] | None) -> str:
        return "" if values is None else f"{values[0]:.3f} to {values[1]:.3f}"

    return [
        ["Accuracy", _number(test["accuracy"]), ends(test["accuracy_interval"])],
        ["Always the same verdict", _number(test["majority"]), ""],
        ["AUROC", _number(test["auroc"]), ends(test["auroc_interval"])],
        ["AUROC beside grey pictures", _number(blank["auroc"]), ends(blank["auroc_interval"])],
        ["Pairs of one question in order", _number(test["pair_accuracy"]), ""],
        ["Rank correlation with the true reward", _number(test["rank_correlation"]), "Spearman"],
        ["Brier score", _number(test["brier"]), f"share alone {test['brier_of_rate']:.3f}"],
        [
            "Calibration error",
            _number(test["calibration_error"]),
            f"before calibration {test['calibration_error_before']:.3f}",
        ],
    ]


def _reliability(test: Row) -> Markup:
    bins = test["reliability"]
    labels = [f"{one['n']} answers: predicted {one['predicted']:.2f}, correct {one['observed']:.2f}" for one in bins]
    series = [
        Series("perfect", [0.0, 1.0], [0.0, 1.0], "cg", dashed=True),
        Series("this model", [one["predicted"] for one in bins], [one["observed"] for one in bins], labels=labels),
    ]
    axes = Axis("predicted probability", (0.0, 1.0)), Axis("share that is correct", (0.0, 1.0))
    return chart("Calibration", series, *axes)


def _ensemble(test: Row) -> Markup:
    """Members and abstention; nothing for a single model."""
    if "members" not in test:
        return Markup("")
    members = [
        [f"member {k}", _number(row["auroc"]), _number(row["brier"])] for k, row in enumerate(test["members"], 1)
    ]
    left = [[percent(row["kept"]), f"{row['limit']:.3f}", _number(row["accuracy"])] for row in test["abstention"]]
    return LANGUAGE.ensemble(f"{test['disagreement']:.3f}", members, left)
