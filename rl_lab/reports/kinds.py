"""What reports make of the kinds of stages: one table, to which a kind adds a line if a page is to say more of it than
that it ran."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reported:
    """A kind of stage on questions and answers."""

    makes: str = ""
    """How it makes a model of the chain, in words; empty for what makes none."""
    is_given: bool = False
    """Whether that model was made from no other of the run."""
    is_beside: bool = False
    """Whether the model of its name is a control beside the chain, whatever trained it."""
    means_chain: bool = False
    """Whether a run that has it made one chain of models."""


ON_LANGUAGE = {
    "questions": Reported(),
    "cold_start": Reported("cold start", is_given=True),
    "examine": Reported(),
    "grpo": Reported("GRPO"),
    "outcome_model": Reported(),
    "traces": Reported(means_chain=True),
    "rft": Reported("fine-tuning on kept traces", means_chain=True),
    "gate": Reported(means_chain=True),
    "teacher": Reported("a given checkpoint", is_given=True, is_beside=True, means_chain=True),
    "distill": Reported("on-policy distillation", means_chain=True),
    "imitate": Reported("imitation of the teacher", is_beside=True, means_chain=True),
}
"""Kinds of stages that belong to runs on language; the others work on episodes."""
