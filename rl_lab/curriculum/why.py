"""Why an item was or was not sampled at a step, in words, from what the pool recorded then."""

from __future__ import annotations

import numpy as np

from algos.curriculum.draws import ALL
from algos.curriculum.frontier import RESTING, frontier_weight
from algos.curriculum.items import BANDS
from rl_lab.common.errors import UserError
from rl_lab.curriculum.view import REASONS, PoolRow, PoolView


def posterior(view: PoolView, observation: PoolRow | None) -> tuple[float, float]:
    """a and b of the Beta distribution after an observation, or those of the prior."""
    total, evidence = (observation["successes"], observation["evidence"]) if observation else (0.0, 0.0)
    return view.options.prior[0] + total, view.options.prior[1] + evidence - total


def beta_text(view: PoolView, observation: PoolRow | None) -> str:
    """The same in words: `Beta(5.0, 3.2), mean 0.61`."""
    a, b = posterior(view, observation)
    return f"Beta({a:.1f}, {b:.1f}), mean {a / (a + b):.2f}"


def explain(view: PoolView, item: str, step: int) -> list[str]:
    """Lines that say what was known of the item before this step's selection and what became of it.

    UserError if there is no such item or step.
    """
    number = view.number(item)
    rounds = view.rows("SELECT * FROM steps WHERE step = ? ORDER BY round", step)
    if not rounds:
        newest = view.now[0]
        there = f"the steps are 0 to {newest}" if newest >= 0 else "nothing was selected yet"
        raise UserError(f"{view.name} made no selection at step {step}; {there}")
    about = view.item(number)
    head = f"{item} ({about['category']}{', ' * bool(about['task'])}{about['task']}) at step {step}, "
    known = view.observations(number, before=step)
    lines = [f"{head}weight version {rounds[0]['version']}", _known(view, known)]
    taken = [row for row in view.selections(number) if row["step"] == step]
    if taken:
        return [*lines, *(_taken(row) for row in taken), *_result(view, number, step)]
    return [*lines, f"Not sampled: {_reason(view, number, step, rounds, known)}"]


def _known(view: PoolView, known: list[PoolRow]) -> str:
    if not known:
        return f"Known before: nothing, it had never been observed; prior {beta_text(view, None)}."
    last = known[-1]
    return (
        f"Known before: {len(known)} group{'s' * (len(known) != 1)}, the newest at step {last['step']} (weight version "
        f"{last['version']}, mean reward {last['mean']:.2f}); pass rate {beta_text(view, last)}; probability "
        f"{last['band_probability']:.2f} of lying in the band {view.options.low:g} to {view.options.high:g}; band "
        f"{BANDS[last['band']]}."
    )


def _taken(row: PoolRow) -> str:
    where = "in the batch" if row["round"] == 0 else f"as a replacement (refill {row['round']})"
    return f"Sampled {where}: {REASONS[row['reason']]}; its chance was {percent(row['chance'])}."


def _result(view: PoolView, number: int, step: int) -> list[str]:
    rows = [row for row in view.observations(number) if row["step"] >= step]
    if not rows:
        return ["Result: not there yet."]
    row = rows[0]
    signal = "differ, it was trained on" if row["signal"] else "do not differ, it taught nothing"
    failed = f", {row['failures']} failed" * bool(row["failures"])
    change = f"Band {BANDS[row['band_before']]} -> {BANDS[row['band']]}, pass rate {beta_text(view, row)}."
    scored = f"{row['rollouts']} rollouts scored{failed}, mean reward {row['mean']:.2f}, standard deviation"
    return [f"Result (step {row['step']}): {scored} {row['spread']:.2f}: they {signal}. {change}"]


def _reason(view: PoolView, number: int, step: int, rounds: list[PoolRow], known: list[PoolRow]) -> str:
    """What kept the item out of a step."""
    edits = [e for e in view.edits(number) if e["applied_step"] is not None and e["applied_step"] <= step]
    retired = [e for e in edits if e["action"] in ("retire", "restore")]
    if retired and retired[-1]["action"] == "retire":
        return f"it was retired by hand at step {retired[-1]['applied_step']}."
    earlier = [row["step"] for row in view.selections(number) if row["step"] < step]
    if earlier and (not known or known[-1]["step"] < earlier[-1]):
        return f"its rollouts of step {earlier[-1]} were still out."
    code = view.category_code(view.item(number)["category"])
    draws = [(row, draw) for row in rounds for draw in _draws(view, row) if draw[1] in (code, ALL)]
    if not any(draw[0] != "pinned" for _, draw in draws):
        return "its category had no free place."
    rests = bool(earlier) and earlier[-1] >= step - max(draw[5] for _, draw in draws)
    odds = [
        f"{'batch' if row['round'] == 0 else 'refill'}: {text}"
        for row, draw in draws
        if (text := _odds(view, row, known, draw, rests))
    ]
    if odds:
        return "; ".join(odds) + "."
    return f"no place was for items like it: {', '.join(f'{draw[2]} {draw[0]}' for _, draw in draws)}."


def _draws(view: PoolView, made: PoolRow) -> list[tuple[str, int, int, int, float, int]]:
    """Reason, category, places, candidates, total weight and steps of rest of each draw of a step."""
    return view.content(made["draws"], list[tuple[str, int, int, int, float, int]], f"draws of step {made['step']}")


def _odds(
    view: PoolView, made: PoolRow, known: list[PoolRow], draw: tuple[str, int, int, int, float, int], rests: bool
) -> str:
    """The chance that the item had in one draw; empty if the draw was not for it."""
    reason, _, places, candidates, total, rest = draw
    share = f"{places} place{'s' * (places != 1)} for {candidates} candidates ({reason})"
    even = percent(places / max(candidates, 1))
    if reason == "frontier" and known:
        weight = float(frontier_weight(np.array([known[-1]["band_probability"]]), view.options.sharpness)[0])
        weight *= RESTING if rests else 1.0
        chance = min(places * weight / total, 1.0) if total else 0.0
        because = f" while it rests for {rest} steps after its last selection" * rests
        return f"{share}; its weight was {weight:.2g} of {total:.4g}{because}, a chance of {percent(chance)}"
    if reason == "unseen" and not known:
        return f"{share}, each with a chance of {even} on average, by what items of its task and level were like"
    stale = known and known[-1]["version"] < made["version"] - view.options.stale_after
    mine = {
        "stale": bool(stale) and not rests,
        "easy": bool(known) and known[-1]["mean"] >= view.options.easy_border,
        "hard": bool(known) and known[-1]["mean"] <= view.options.hard_border,
    }
    mine["normal"] = not mine["easy"] and not mine["hard"]
    if mine.get(reason):
        return f"{share}, each with a chance of {even}"
    if reason == "uniform":
        return f"{share}, each with a chance of {even} among those that were read least often"
    if reason == "own":
        return f"{share}, each with a chance of {even} on average, by the weights of a scheme of one's own"
    if reason in ("probe", "stage"):
        return f"{places} items came from the {candidates} of this {reason}, it was not their turn or not among them"
    return ""


def percent(chance: float) -> str:
    """A chance for reading."""
    return f"{100 * chance:.2g} %" if chance < 0.995 else "100 %"
