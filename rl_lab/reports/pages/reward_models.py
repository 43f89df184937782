"""Cards of reward models: how well they know what is good, and how sure they may be.

Of actions also how the pairs that they made go with the truth.
"""

from __future__ import annotations

from typing import Any

from rl_lab.reading import read_object
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.pages.charts import Axis, Series, chart
from rl_lab.reports.pages.markup import Markup, macros, minus, parts
from rl_lab.reports.run import LoadedRun, PairSet
from rl_lab.reports.summary import outcome_models
from rl_lab.reports.sweep import ranked_sets

FOLDER, CARD_FILE = "reward_models", "card.json"


def action_cards(run: LoadedRun) -> dict[str, Row]:
    """Cards of the run's reward models, by node; one that cannot be read is among the problems."""
    found = {}
    for path in sorted((run.path / FOLDER).glob(f"*/{CARD_FILE}")):
        try:
            found[path.parent.name] = read_object(path)
        except ValueError as error:
            run.problems.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return found


def action_rewards_section(run: LoadedRun) -> Markup:
    """A row for every reward model, its calibration, and a row for every ranking; nothing for a run without any."""
    cards, sets = action_cards(run), ranked_sets(run)
    if not cards and not sets:
        return Markup("")
    return macros("actions").action_rewards(
        cards=_card_table(cards) if cards else "",
        calibration=_calibration(cards),
        rankings=_ranking_table(sets) if sets else "",
    )


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}".replace("-", "\u2212")


def _with_ends(test: Row, name: str) -> Markup | str:
    if test[name] is None:
        return ""
    ends = test[f"{name}_interval"]
    interval = "" if ends is None else f" {_number(ends[0])} to {_number(ends[1])}"
    return parts.estimate(_number(test[name]), interval)


def _card_table(cards: dict[str, Row]) -> Markup:
    head = ["Model", "Learned from", "Held-out", "Accuracy", "AUROC", "Rank correlation", "Brier", "Calibration error"]
    head += ["Disagreement", "Episodes/s"]
    rows = []
    for name, card in cards.items():
        train, held_out = card["splits"]["train"], card["splits"]["test"]
        demos = " and demonstrations" if card["demonstrations"] else ""
        start = [name, f"{train['episodes']} episodes ({train['successes']} successes){demos}"]
        start.append(f"{held_out['episodes']} ({held_out['successes']})")
        test = card["test"]
        if test is None:
            rows.append([*start, "successes or failures alone: nothing to measure", *[""] * 6])
            continue
        brier = f"{_number(test['brier'], 3)} (rate {_number(test['brier_of_rate'], 3)})"
        cells = [_with_ends(test, "accuracy"), _with_ends(test, "auroc"), _number(test["rank_correlation"]), brier]
        cells += [_number(test["calibration_error"], 3), _number(test["disagreement"], 3)]
        rows.append([*start, *cells, f"{card['episodes_per_second']:,.0f}"])
    return parts.table(head, rows, "Reward models on held-out episodes", "numbers stacked")


def _calibration(cards: dict[str, Row]) -> list[Markup]:
    """Predicted beside observed success of every model."""
    charts = []
    for name, card in cards.items():
        if card["test"] is None:
            continue
        bins = card["test"]["reliability"]
        texts = [
            f"{one['n']} episodes: predicted {one['predicted']:.2f}, succeeded {one['observed']:.2f}" for one in bins
        ]
        series = [
            Series("perfect", [0.0, 1.0], [0.0, 1.0], "cg", dashed=True),
            Series(name, [one["predicted"] for one in bins], [one["observed"] for one in bins], labels=texts),
        ]
        axes = Axis("predicted probability", (0.0, 1.0)), Axis("share that succeeded", (0.0, 1.0))
        charts.append(chart(name, series, *axes))
    return charts


def _ranking_table(sets: list[PairSet]) -> Markup:
    head = ["Ranking", "States", "Pairs", "Members disagreed", "Too close", "States that differ", "Rank correlation"]
    head += ["Pairs in order", "Chosen pairs right", "Chunks/s"]
    rows = []
    for pairs in sets:
        counts, found = pairs.counts, pairs.counts["agreement"]
        right = (
            "" if found["chosen_right"] is None else f"{percent(found['chosen_right'])} of {found['chosen_different']}"
        )
        rows.append(
            [
                *(pairs.label, counts["states"], counts["pairs"]),
                *(counts.get(f"abstained/{reason}", 0) for reason in ("disagreement", "margin")),
                *(found["states_that_differ"], _number(found["rank_correlation"]), _number(found["pair_accuracy"])),
                *(right, f"{found['chunks_per_second']:,.0f}"),
            ]
        )
    return parts.table(head, rows, "Rankings of sampled chunks", "numbers stacked")


LANGUAGE = macros("language")


def _three_digits(value: float | None) -> str:
    return "unknown" if value is None else minus(f"{value:.3f}")


def outcome_section(run: LoadedRun) -> Markup:
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
        ["Accuracy", _three_digits(test["accuracy"]), ends(test["accuracy_interval"])],
        ["Always the same verdict", _three_digits(test["majority"]), ""],
        ["AUROC", _three_digits(test["auroc"]), ends(test["auroc_interval"])],
        ["AUROC beside grey pictures", _three_digits(blank["auroc"]), ends(blank["auroc_interval"])],
        ["Pairs of one question in order", _three_digits(test["pair_accuracy"]), ""],
        ["Rank correlation with the true reward", _three_digits(test["rank_correlation"]), "Spearman"],
        ["Brier score", _three_digits(test["brier"]), f"share alone {test['brier_of_rate']:.3f}"],
        [
            "Calibration error",
            _three_digits(test["calibration_error"]),
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
        [f"member {k}", _three_digits(row["auroc"]), _three_digits(row["brier"])]
        for k, row in enumerate(test["members"], 1)
    ]
    left = [[percent(row["kept"]), f"{row['limit']:.3f}", _three_digits(row["accuracy"])] for row in test["abstention"]]
    return LANGUAGE.ensemble(f"{test['disagreement']:.3f}", members, left)
