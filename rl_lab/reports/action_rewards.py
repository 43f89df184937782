"""Cards of reward models of actions, and how the pairs that they made go with the truth."""

from __future__ import annotations

from rl_lab.reading import read_object
from rl_lab.reports.markup import Markup, macros, parts
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.plots import Axis, Series, chart
from rl_lab.reports.rundir import PairSet, RunFolder
from rl_lab.reports.sweep import ranked_sets

FOLDER, CARD_FILE = "reward_models", "card.json"


def action_cards(run: RunFolder) -> dict[str, Row]:
    """Cards of the run's reward models, by node; one that cannot be read is among the problems."""
    found = {}
    for path in sorted((run.path / FOLDER).glob(f"*/{CARD_FILE}")):
        try:
            found[path.parent.name] = read_object(path)
        except ValueError as error:
            run.problems.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return found


def action_rewards_section(run: RunFolder) -> Markup:
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
