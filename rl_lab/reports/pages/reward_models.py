"""Cards of reward models: how well they know what is good, and how sure they may be.

Of actions also how the pairs that they made go with the truth.
"""

from __future__ import annotations

from rl_lab.common.reading import read_object
from rl_lab.reports.numbers import Row, percent
from rl_lab.reports.pages.charts import Axis, Series, chart
from rl_lab.reports.pages.markup import Markup, macros, minus, parts
from rl_lab.reports.run import LoadedRun, PairSet
from rl_lab.reports.study_details import ranked_sets

LANGUAGE = macros("language")
LEARNED = {"correctness": "{answers:,} answers", "preference": "{pairs:,} pairs of answers"}
"""What a model of answers learned from."""


def read_cards(run: LoadedRun, name: str) -> dict[str, Row]:
    """The files of this name of the run's reward models, by node; one that cannot be read is among the problems."""
    found = {}
    for path in sorted((run.path / "reward_models").glob(f"*/{name}")):
        try:
            found[path.parent.name] = read_object(path)
        except ValueError as error:
            run.problems.append(f"{path.relative_to(run.path)} cannot be read: {error}")
    return found


def outcome_models(run: LoadedRun) -> dict[str, Row]:
    """Records of the run's reward models of answers, by node."""
    return {node: card for node, card in read_cards(run, "model.json").items() if card.get("kind") == "outcome"}


def action_rewards_section(run: LoadedRun) -> Markup:
    """A row for every reward model, its calibration, and a row for every ranking; nothing for a run without any."""
    cards, sets = read_cards(run, "card.json"), ranked_sets(run)
    if not cards and not sets:
        return Markup("")
    tests = {name: card["test"] for name, card in cards.items() if card["test"] is not None}
    words = "episodes", "succeeded", "share that succeeded"
    return macros("actions").action_rewards(
        cards=_card_table(cards) if cards else "",
        calibration=[_calibration(name, name, test, *words) for name, test in tests.items()],
        rankings=_ranking_table(sets) if sets else "",
    )


def _number(value: float | None, digits: int = 3, missing: str = "") -> str:
    return missing if value is None else minus(f"{value:.{digits}f}")


def _ends(values: list[float] | None, digits: int = 3) -> str:
    return "" if values is None else f"{_number(values[0], digits)} to {_number(values[1], digits)}"


def _with_ends(test: Row, name: str) -> Markup | str:
    if test[name] is None:
        return ""
    ends = _ends(test[f"{name}_interval"], 2)
    return parts.estimate(_number(test[name], 2), f" {ends}" if ends else "")


def _calibration(title: str, name: str, test: Row, units: str, outcome: str, y: str) -> Markup:
    """Predicted probability beside what was observed."""
    bins = test["reliability"]
    x, observed = [one["predicted"] for one in bins], [one["observed"] for one in bins]
    texts = [f"{b['n']} {units}: predicted {b['predicted']:.2f}, {outcome} {b['observed']:.2f}" for b in bins]
    perfect = Series("perfect", [0.0, 1.0], [0.0, 1.0], "cg", dashed=True)
    axes = Axis("predicted probability", (0.0, 1.0)), Axis(y, (0.0, 1.0))
    return chart(title, [perfect, Series(name, x, observed, labels=texts)], *axes)


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
        brier = f"{_number(test['brier'])} (rate {_number(test['brier_of_rate'])})"
        cells = [_with_ends(test, "accuracy"), _with_ends(test, "auroc"), _number(test["rank_correlation"], 2), brier]
        cells += [_number(test["calibration_error"]), _number(test["disagreement"])]
        rows.append([*start, *cells, f"{card['episodes_per_second']:,.0f}"])
    return parts.table(head, rows, "Reward models on held-out episodes", "numbers stacked")


def _ranking_table(sets: list[PairSet]) -> Markup:
    head = ["Ranking", "States", "Pairs", "Members disagreed", "Too close", "States that differ", "Rank correlation"]
    head += ["Pairs in order", "Chosen pairs right", "Chunks/s"]
    rows = []
    for pairs in sets:
        counts, found = pairs.counts, pairs.counts["agreement"]
        abstained = [counts.get(f"abstained/{reason}", 0) for reason in ("disagreement", "margin")]
        right = found["chosen_right"]
        cells = [_number(found["rank_correlation"], 2), _number(found["pair_accuracy"], 2)]
        cells += ["" if right is None else f"{percent(right)} of {found['chosen_different']}"]
        start = [pairs.label, counts["states"], counts["pairs"], *abstained, found["states_that_differ"]]
        rows.append([*start, *cells, f"{found['chunks_per_second']:,.0f}"])
    return parts.table(head, rows, "Rankings of sampled chunks", "numbers stacked")


def outcome_section(run: LoadedRun) -> Markup:
    """A card for every model; nothing for a run without any."""
    cards = [_card(name, record) for name, record in outcome_models(run).items()]
    return LANGUAGE.outcome_models(cards) if cards else Markup("")


def _card(name: str, record: Row) -> Markup:
    test, labels = record["test"], record["labels"]
    sides = labels["answers"]
    learned = LEARNED[record["learns"]].format(answers=sides["train"], pairs=labels["pairs"])
    facts = (
        f"{len(record['platt'])} members, {record['steps']} steps each on {learned}, "
        f"{percent(labels['correct'])} of all correct (true reward from {record['threshold']:g}); calibrated on "
        f"{sides['calibration']:,}, examined on {sides['test']:,}. Scores {record['answers_per_second']:,.0f} "
        f"answers a second on {record['device']}."
    )
    drawn = _calibration("Calibration", "this model", test, "answers", "correct", "share that is correct")
    return LANGUAGE.outcome_card(name, facts, _rows(test, record["blank"]), drawn, _ensemble(test))


def _known(value: float | None) -> str:
    return _number(value, missing="unknown")


def _rows(test: Row, blank: Row) -> list[list[str]]:
    before = f"before calibration {test['calibration_error_before']:.3f}"
    return [
        ["Accuracy", _known(test["accuracy"]), _ends(test["accuracy_interval"])],
        ["Always the same verdict", _known(test["majority"]), ""],
        ["AUROC", _known(test["auroc"]), _ends(test["auroc_interval"])],
        ["AUROC beside grey pictures", _known(blank["auroc"]), _ends(blank["auroc_interval"])],
        ["Pairs of one question in order", _known(test["pair_accuracy"]), ""],
        ["Rank correlation with the true reward", _known(test["rank_correlation"]), "Spearman"],
        ["Brier score", _known(test["brier"]), f"share alone {test['brier_of_rate']:.3f}"],
        ["Calibration error", _known(test["calibration_error"]), before],
    ]


def _ensemble(test: Row) -> Markup:
    """Members and abstention; nothing for a single model."""
    if "members" not in test:
        return Markup("")
    members = [[f"member {k}", _known(one["auroc"]), _known(one["brier"])] for k, one in enumerate(test["members"], 1)]
    left = [[percent(row["kept"]), f"{row['limit']:.3f}", _known(row["accuracy"])] for row in test["abstention"]]
    return LANGUAGE.ensemble(f"{test['disagreement']:.3f}", members, left)


def outcome_sentence(name: str, record: Row) -> str:
    """What a model is worth, in one line."""
    test, blank = record["test"], record["blank"]
    if test["auroc"] is None:
        return f"{name}: the {test['answers']} answers of its examination are all correct or all wrong."
    ends = _ends(test["auroc_interval"])
    return (
        f"{name} tells correct answers from others with accuracy {test['accuracy']:.3f} (95 % interval "
        f"{_ends(test['accuracy_interval'])}; always the same verdict: {test['majority']:.3f}) and AUROC "
        f"{test['auroc']:.3f}{f' ({ends})' if ends else ''}, on {test['answers']} answers about {test['scenes']} "
        f"unseen scenes; beside grey pictures AUROC {_known(blank['auroc'])}."
    )
