"""Every kind of stage says all that a run asks of it."""

from __future__ import annotations

import inspect
from typing import get_args

import pytest

from rl_lab.config.pipeline import StageName
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import RUNTIME
from rl_lab.stages.kinds import KINDS, stage_functions

WORDS = ("repeat", "reward_models")
"""Kinds that stand for several stages of other kinds, so that no node has them."""


def test_every_word_of_a_file_is_a_kind():
    assert set(get_args(StageName)) <= KINDS.keys()


def test_every_kind_that_a_node_can_have_has_a_function_that_does_its_work():
    functions = stage_functions(None)
    assert functions.keys() == KINDS.keys() - set(WORDS)
    for function in functions.values():
        assert list(inspect.signature(function).parameters) == ["context"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_reads_sections_that_there_are_and_shows_its_output_somewhere(kind):
    assert set(kind.reads) <= RunConfig.model_fields.keys() - set(RUNTIME)
    assert kind.folder or kind.name in (*WORDS, "report")
