"""The methods that can be compared, by name: which rows they see, how buffers are mixed, and which loss is minimised.

All run through the same collection, buffers, learner and budget; a method is one line here. No order is assumed.

The advantage-conditioned one is the baseline called pi0.6* in FlowPRO (arXiv:2606.14409, section 6.3): winners and
losers are both imitated by the plain flow loss; the instruction says which is which. Differs from RECAP
(arXiv:2511.14759): the preference replaces a learned value, so there is no threshold, and the base policy was not
pre-trained with the indicator. At evaluation the policy is asked for the positive one.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from algos.flow_matching import FlowMatching
from algos.flowpro import RPRO
from algos.objective import FlowPolicy, Objective
from algos.policy_gradients.flow_grpo import FlowGRPO
from algos.policy_gradients.fpo import FPO
from algos.policy_gradients.reinflow import ReinFlow
from envs.by_name import OwnCodeError, calling, needs

Rows = Literal["demonstrations", "winners", "tuples", "trajectories", "labelled"]
"""What a method takes from the pairs besides demonstrations.

demonstrations: nothing; winners: winner states; tuples: winner states and loser states with their winner chunk;
trajectories: recorded chunks of both sides, grouped by pair (`TrajectoryBatch`); labelled: the same, as single rows
with an advantage indicator in the text.
"""

Sampler = Literal["sde", "learned", "flow"]
"""How a policy explores: by noise of an SDE, by noise of a learned size, or by the flow's own initial noise alone."""
POLICY_GRADIENTS: dict[Sampler, type[FlowGRPO] | type[ReinFlow] | type[FPO]] = {
    "sde": FlowGRPO,
    "learned": ReinFlow,
    "flow": FPO,
}


@dataclass(frozen=True)
class Method:
    """One row of the comparison."""

    description: str
    source: str
    """Paper or section it comes from."""
    rows: Rows
    loss: Literal["imitation", "preference", "policy gradient"]
    fixed_ratios: bool = True
    """Mix buffers in fixed ratios; else uniformly over all rows together."""
    loser_states: int | None = None
    """How many states of each loser are used, from the shared start on, where any are; None: all."""
    proximal: bool = True
    sft_term: bool = True
    code: str | None = None
    """Name of a user's own class in place of our losses, see `own_objective`; `loss` says if it has a reference."""
    sampler: Sampler | None = None
    """Of policy gradients, which learn from episodes of their own in place of rows."""

    @property
    def needs_collection(self) -> bool:
        """Whether it uses preference pairs at all."""
        return self.rows != "demonstrations"

    @property
    def has_settings(self) -> bool:
        """Whether there are numbers to choose, of its loss or of its rows."""
        return self.loss != "imitation" or self.rows == "tuples"

    @property
    def needs_reference(self) -> bool:
        """Whether its loss compares with a frozen policy."""
        return self.loss == "preference"

    def objective(
        self,
        *,
        groups: tuple[str, ...],
        draws_per_sample: int,
        reference: FlowPolicy | None = None,
        **weights: Any,
    ) -> Objective:
        """The objective that the learner minimises; `weights` are those of `RPRO`, for preference losses only, the
        settings of a policy gradient's class, or those of a user's own."""
        if self.code is not None:
            given = () if reference is None else (reference,)
            return own_objective(self.code, *given, groups=groups, draws_per_sample=draws_per_sample, **weights)
        if self.loss == "imitation":
            return FlowMatching(groups, draws_per_sample)
        if self.sampler is not None:
            return POLICY_GRADIENTS[self.sampler](groups=groups, **weights)
        if reference is None:
            raise ValueError("a preference loss compares with a frozen reference policy; pass one")
        return RPRO(
            reference,
            **(weights if self.sft_term else weights | {"lambda_sft": 0.0}),
            proximal=self.proximal,
            draws_per_sample=draws_per_sample,
            groups=groups,
        )


def own_objective(code: str, /, *reference: FlowPolicy, **settings: Any) -> Objective:
    """What a user's own class makes, called with a reference, where it gets one, and these by name.

    OwnCodeError if the class does not take them, or makes no `Objective`.
    """
    made = calling(code, *("a reference" for _ in reference), **settings)
    objective = made(*reference, **settings)
    lacking = [name for name in ("groups", "loss", "parameters") if not hasattr(objective, name)]
    if lacking:
        raise OwnCodeError(f"{code} makes no objective: it has no {lacking[0]}; inherit from algos.objective.Objective")
    needs(code, objective, "objective", loss="policy, batch, generator")
    return objective


_FLOWPRO = "FlowPRO, arXiv:2606.14409, section 4.2"

METHODS: dict[str, Method] = {
    "continued_sft": Method(
        "More steps of imitation on the demonstrations alone, the same number as every other method",
        "the plain baseline",
        rows="demonstrations",
        loss="imitation",
    ),
    "dagger": Method(
        "Imitation of corrections and demonstrations together, uniformly over all rows; failures are not used",
        "DAgger in arXiv:2606.14409, section 6.3",
        rows="winners",
        loss="imitation",
        fixed_ratios=False,
    ),
    "dagger_buffered": Method(
        "DAgger with the fixed buffer ratios of FlowPRO",
        "DAgger-Buffered of FlowPRO; defined in no text we could read",
        rows="winners",
        loss="imitation",
    ),
    "dagger_buffered_si": Method(
        "DAgger-Buffered that also imitates the interpolated chunks at loser states: RPRO's data without its contrast",
        "our control: the difference to rpro is the preference loss alone",
        rows="tuples",
        loss="imitation",
    ),
    "flow_dpo": Method(
        "The contrast alone, without proximal and SFT terms; known to collapse",
        "Flow-DPO, arXiv:2501.13918",
        rows="tuples",
        loss="preference",
        proximal=False,
        sft_term=False,
    ),
    "flow_dpo_sft": Method(
        "Flow-DPO with the SFT term, which is RPRO without its proximal term",
        "ablation of " + _FLOWPRO,
        rows="tuples",
        loss="preference",
        proximal=False,
    ),
    "rpro": Method(
        "Contrast, proximal and SFT terms on interpolated tuples", _FLOWPRO, rows="tuples", loss="preference"
    ),
    "rpro_no_sft": Method(
        "RPRO with lambda_sft = 0",
        "ablation of " + _FLOWPRO,
        rows="tuples",
        loss="preference",
        sft_term=False,
    ),
    "rpro_no_interpolation": Method(
        "RPRO with the shared start state as the only real tuple of a pair",
        "ablation of " + _FLOWPRO,
        rows="tuples",
        loss="preference",
        loser_states=1,
    ),
    "rpro_trajectory": Method(
        "RPRO with one comparison a pair, of the mean losses over both recorded trajectories",
        "trajectory-wise preference (TPO, GRAPE) with the loss of " + _FLOWPRO,
        rows="trajectories",
        loss="preference",
    ),
    "advantage_conditioned": Method(
        "Imitation of both sides with the preference in the instruction; asked for the positive one at evaluation",
        "pi0.6* in arXiv:2606.14409, section 6.3; RECAP, arXiv:2511.14759",
        rows="labelled",
        loss="imitation",
    ),
    "flow_grpo": Method(
        "Policy gradient on success: noise in every denoising step, each with a clipped ratio; no corrections",
        "Flow-GRPO, arXiv:2505.05470; pi_RL, arXiv:2510.25889",
        rows="demonstrations",
        loss="policy gradient",
        sampler="sde",
    ),
    "reinflow": Method(
        "Policy gradient on success: noise whose size is learned, one clipped ratio a chunk; no corrections",
        "ReinFlow, arXiv:2505.22094",
        rows="demonstrations",
        loss="policy gradient",
        sampler="learned",
    ),
    "fpo": Method(
        "Policy gradient on success: a clipped ratio from flow losses in place of probabilities; no corrections",
        "FPO, arXiv:2507.21053",
        rows="demonstrations",
        loss="policy gradient",
        sampler="flow",
    ),
}

ALIASES = {"rpro_no_proximal": "flow_dpo_sft"}
"""Second names: RPRO without its proximal term *is* Flow-DPO with the SFT term, so it has one row."""


def find_method(name: str) -> Method:
    """The method of a name or second name; ValueError with the nearest name for an unknown one."""
    name = ALIASES.get(name, name)
    if name not in METHODS:
        near = difflib.get_close_matches(name, [*METHODS, *ALIASES], n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(METHODS)}"
        raise ValueError(f"unknown method {name!r}; {hint}")
    return METHODS[name]


POSITIVE, NEGATIVE = "Advantage: positive", "Advantage: negative"
"""Indicators behind the instruction."""


def with_advantage(instruction: str, positive: bool) -> str:
    """The instruction with its indicator behind it, which is just before the action tokens."""
    return f"{instruction.rstrip()} {POSITIVE if positive else NEGATIVE}"


def condition_instructions(instructions: Sequence[str], positive: Sequence[bool] | np.ndarray) -> list[str]:
    """Instructions with indicators: demonstrations and winners are positive, losers negative."""
    return [with_advantage(text, bool(good)) for text, good in zip(instructions, positive, strict=True)]


def dropped(count: int, generator: np.random.Generator, dropout: float = 0.3) -> np.ndarray:
    """Which rows of a batch lose their indicator, bool [count], each with probability `dropout` (0.3 in RECAP).

    To be drawn anew for every batch, so that every row is learned both with and without. ValueError outside [0, 1].
    """
    if not 0 <= dropout <= 1:
        raise ValueError(f"advantage dropout is {dropout}; it is a probability between 0 and 1")
    return generator.random(count) < dropout
