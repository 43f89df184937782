"""The guard: finds when one objective costs the other's skill too much, who is to blame, and what to do. Pure.

Every examination asks the same questions and runs the same episodes, so a fall is a mean of paired differences d_i of a
question's score to its running mean over the examinations without harm (or to the first one). Where nothing changes d
has mean 0, so the one-sided bound mean(d) + z s / sqrt(n) lies below 0 as rarely as the confidence says; the best of
several noisy examinations would be too high a measure. Harm is found where the bound lies below -allowed.
The other objective is suspected, and blamed only if the skill gets back at least half of the fall when what that
objective did to the shared weights is taken away (a second examination, of weights minus its moves). Else the skill's
own objective did it, and the guard lets it be.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

import numpy as np

from rl_lab.config.joint import GuardConfig
from rl_lab.records.types import Exam, GuardEvent, Scores, known_mean
from rl_lab.training.schedule import other

SKILLS = {"grpo": "language", "rpro": "actions"}
"""Objective -> the skill that it is to improve."""

OBJECTIVES = {skill: objective for objective, skill in SKILLS.items()}

WORDS = {"language": "reward on questions", "actions": "success in episodes"}

GIVEN_BACK = 0.5
"""Share of the fall that the skill must get back without the suspect's moves."""


@dataclass
class Reference:
    """What a skill is held against: the mean score of each question or episode over some examinations."""

    turn: int
    """Of the newest."""
    total: list[float]
    known: list[int]
    """Examinations in which it could be scored."""

    def add(self, turn: int, scores: Scores) -> None:
        """One examination more."""
        self.turn = turn
        self.total = [total + (score or 0.0) for total, score in zip(self.total, scores, strict=True)]
        self.known = [known + (score is not None) for known, score in zip(self.known, scores, strict=True)]

    @property
    def means(self) -> Scores:
        """The mean of each; None: never scored."""
        return tuple(total / known if known else None for total, known in zip(self.total, self.known, strict=True))


@dataclass(frozen=True)
class Fall:
    """A paired difference of mean scores with its upper bound."""

    difference: float
    bound: float
    n: int


@dataclass(frozen=True)
class Harm:
    """A skill that fell by more than allowed."""

    skill: str
    suspect: str
    """The objective of the other skill."""
    fall: Fall
    since: int
    """Turn of the newest examination that it is held against."""


def paired_fall(now: Scores, before: Scores, confidence: float) -> Fall | None:
    """Mean of the paired differences and its one-sided upper bound; None for fewer than two pairs."""
    pairs = [(a, b) for a, b in zip(now, before, strict=True) if a is not None and b is not None]
    if len(pairs) < 2:
        return None
    differences = np.array([a - b for a, b in pairs])
    spread = float(differences.std(ddof=1)) / math.sqrt(len(pairs))
    difference = float(differences.mean())
    return Fall(difference, difference + NormalDist().inv_cdf(confidence) * spread, len(pairs))


@dataclass
class Guard:
    """What it remembers: the examinations that skills are held against, and what it has done to whom."""

    config: GuardConfig
    against: dict[str, Reference] = field(default_factory=dict)
    """By skill."""
    strikes: dict[str, int] = field(default_factory=dict)
    """Actions so far, by objective."""
    acted_at: dict[str, float] = field(default_factory=dict)
    """Mean score of a skill when something was last done for it; no more is done while it recovers from there."""
    good: int | None = None
    """Turn of the last examination without harm."""

    def examine(self, exam: Exam) -> list[Harm]:
        """Harm to each skill. Without any this is the last good examination, and it counts in the skill's measure."""
        found = [harm for skill in exam.scores if (harm := self._harm(exam, skill)) is not None]
        for skill in exam.scores.keys() - {harm.skill for harm in found}:
            self.acted_at.pop(skill, None)
            scores = exam.scores[skill]
            if skill not in self.against:
                self.against[skill] = Reference(exam.turn, [0.0] * len(scores), [0] * len(scores))
            elif self.config.against == "start":
                continue
            self.against[skill].add(exam.turn, scores)
        if not found:
            self.good = exam.turn
        return found

    def _harm(self, exam: Exam, skill: str) -> Harm | None:
        if skill not in self.against:
            return None
        before = self.against[skill]
        fall = paired_fall(exam.scores[skill], before.means, self.config.confidence)
        if fall is None or fall.bound >= -self.config.allowed:
            return None
        return Harm(skill, other(OBJECTIVES[skill]), fall, before.turn)

    def is_recovering(self, harm: Harm, exam: Exam) -> bool:
        """Something was done for the skill already, and it is better now than then."""
        return known_mean(exam.scores[harm.skill]) > self.acted_at.get(harm.skill, math.inf)

    def decide(self, harm: Harm, exam: Exam, without: Scores, *, can_freeze: bool) -> GuardEvent:
        """What to do about harm, given the skill's scores without what the suspect did to the shared weights.

        `can_freeze`: the suspect has something else to train; else it is stopped.
        """
        now = exam.scores[harm.skill]
        given_back = _difference(without, now)
        blamed = not given_back < GIVEN_BACK * -harm.fall.difference
        objective = harm.suspect if blamed else OBJECTIVES[harm.skill]
        action = "none"
        if blamed:
            strikes = self.strikes.get(objective, 0)
            action = self.config.actions[min(strikes, len(self.config.actions) - 1)]
            action = "stop" if action == "freeze" and not can_freeze else action
            self.strikes[objective] = strikes + 1
            self.acted_at[harm.skill] = known_mean(now)
        text = _say(harm, objective, action, given_back, blamed=blamed, good=self.good, lower_by=self.config.lower_by)
        fall = harm.fall
        return GuardEvent(
            exam.turn, harm.skill, objective, action, fall.difference, fall.bound, fall.n, harm.since, given_back, text
        )

    def state_dict(self) -> dict[str, Any]:
        """What a resumed guard needs, as JSON."""
        return {
            "against": {skill: asdict(reference) for skill, reference in self.against.items()},
            "strikes": self.strikes,
            "acted_at": self.acted_at,
            "good": self.good,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.against = {skill: Reference(**reference) for skill, reference in state["against"].items()}
        self.strikes, self.acted_at, self.good = dict(state["strikes"]), dict(state["acted_at"]), state["good"]


def _difference(after: Scores, before: Scores) -> float:
    """Mean of the paired differences that are known, 0 without any."""
    pairs = [a - b for a, b in zip(after, before, strict=True) if a is not None and b is not None]
    return sum(pairs) / len(pairs) if pairs else 0.0


def _say(
    harm: Harm, objective: str, action: str, given_back: float, *, blamed: bool, good: int | None, lower_by: float
) -> str:
    """The event in a sentence."""
    fall = harm.fall
    found = (
        f"guard: {WORDS[harm.skill]} fell by {-fall.difference:.3f} from its mean up to turn {harm.since} (n = "
        f"{fall.n}, at least {-fall.bound:.3f}); without what {harm.suspect} did to the shared weights it is "
        f"{given_back:+.3f}"
    )
    if not blamed:
        return f"{found}, so {objective} did it to its own skill; nothing is done"
    does = {
        "lower": f"its learning rate is multiplied by {lower_by:g}",
        "freeze": f"it no longer trains what {harm.skill} reads",
        "stop": f"all that it trains is read by {harm.skill}, so it takes no further step",
        "roll_back": f"weights and optimizers are those of turn {good} again, its rate is multiplied by {lower_by:g}",
    }
    return f"{found}, so {objective} is to blame; {does[action]}"
