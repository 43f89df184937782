"""Two runs on language beside each other: final held-out rewards, paired on the questions that both answered."""

from __future__ import annotations

from rl_lab.errors import UserError
from rl_lab.reports.against_episodes import Pairing
from rl_lab.reports.examinations import Examination, reward_table
from rl_lab.reports.held_out import interval_row, of_scheme
from rl_lab.reports.held_out_page import difference_text
from rl_lab.reports.held_out_verdict import reward, signed
from rl_lab.reports.rundir import BASE, RunFolder, label
from rl_lab.reports.verdict import Row
from rl_lab.stats import REWARD_METHOD

HEAD = ("here", "there", "items", "replicates", "reward here", "reward there", "difference")


def _matched(run: RunFolder, other: RunFolder) -> list[tuple[str, str]]:
    """The base and every shared scheme; the first schemes of both if they share none."""
    known = [scheme for scheme in (BASE, *run.schemes) if of_scheme(run, scheme) and of_scheme(other, scheme)]
    pairs = [(scheme, scheme) for scheme in known]
    if run.schemes and other.schemes and not set(run.schemes) & set(other.schemes):
        pairs.append((run.schemes[0], other.schemes[0]))
    return pairs


def _sides(run: RunFolder, other: RunFolder, here: str, there: str) -> tuple[list[Examination], list[Examination]]:
    """Examinations of the replicates that both have, in the same order."""
    first, second = ({e.replicate: e for e in of_scheme(r, s)} for r, s in ((run, here), (other, there)))
    shared = sorted(first.keys() & second.keys())
    return [first[number] for number in shared], [second[number] for number in shared]


def held_out_rows(run: RunFolder, other: RunFolder) -> list[Row]:
    """Rewards of both sides and their paired difference with its interval. UserError if no question is shared."""
    rows = []
    for here, there in _matched(run, other):
        sides = _sides(run, other, here, there)
        names = [{item.item for examination in side for item in examination.items} for side in sides]
        items = sorted(names[0] & names[1])
        tables = [reward_table(side, items, lambda item: item.reward) for side in sides]
        found = [interval_row(values) for values in (tables[0] - tables[1], *tables)] if items else [None]
        if found[0] is not None:
            rows.append({"here": label(here), "there": label(there), "difference": found[0], "rewards": found[1:]})
    if not rows:
        raise UserError(
            f"{run.path} and {other.path} share no examined question; examine both on the same held-out items"
        )
    return rows


def _cells(row: Row) -> list[str]:
    difference, (here, there) = row["difference"], row["rewards"]
    text = f"{signed(difference['value'])} [{signed(difference['low'])}, {signed(difference['high'])}]"
    counts = [str(difference["n"]), str(difference["replicates"])]
    return [row["here"], row["there"], *counts, reward(here["value"]), reward(there["value"]), text]


def pair_questions(run: RunFolder, other: RunFolder) -> Pairing:
    """Paired differences of held-out reward. UserError if no question is shared."""
    found = held_out_rows(run, other)
    rows = [_cells(row) for row in found]
    marked = [[*cells[:-1], difference_text(row["difference"])] for row, cells in zip(found, rows, strict=True)]
    reading = f"Difference: here minus there on the same questions and replicates. Intervals: {REWARD_METHOD}."
    return Pairing(HEAD, rows, marked, reading)
