"""Every kind of stage says all that a run asks of it."""

import inspect

import pytest

from rl_lab.common.errors import UserError
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import RUNTIME
from rl_lab.stages.kinds import KINDS, resolve_config, stage_functions

WORDS = ("repeat", "reward_models")
"""Kinds that stand for several stages of other kinds, so that no node has them."""


@pytest.mark.parametrize(
    ("stages", "where"),
    [
        (["traces"], r"stages.0: input should be 'demos', .* or 'joint', got 'traces'"),
        (["demos", {"repeat": 1, "of": ["sft"]}], r"stages.1.of.0: input should be 'collect', .* or 'gate', got 'sft'"),
        ([{"gate": {"otherwise": ["gate"]}}], r"stages.0.gate.otherwise.0: input should be 'examine', .*, got 'gate'"),
    ],
)
def test_a_file_may_name_a_stage_where_its_kind_says_so(stages, where):
    with pytest.raises(UserError, match=where):
        resolve_config({"name": "x", "stages": stages}, "here")


def test_every_kind_that_a_node_can_have_has_a_function_that_does_its_work():
    functions = stage_functions(None)
    assert functions.keys() == KINDS.keys() - set(WORDS)
    for function in functions.values():
        assert list(inspect.signature(function).parameters) == ["context"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_kind_reads_sections_that_there_are_and_shows_its_output_somewhere(kind):
    assert set(kind.reads) <= RunConfig.model_fields.keys() - set(RUNTIME)
    assert kind.folder or kind.name in (*WORDS, "report")


def test_what_a_run_is_about_is_asked_of_the_kinds_of_its_stages():
    config = resolve_config({"name": "x", "stages": ["evaluate"], "model": {"path": "policy"}}, "here")
    assert config.learns_actions and not config.learns_language and config.sources == ["tabletop/handover_block"]
    files = {"demos": {"files": {"paths": ["recorded"]}}, "sft": {"probe_weight": 0}}
    config = resolve_config({"name": "x", "stages": ["demos", "sft"]} | files, "here")
    assert config.sources == ["demonstrations from recorded"] and not config.runs_episodes
    config = resolve_config({"name": "x", "stages": ["demos", "sft", "reward_models"]} | files, "here")
    assert config.runs_episodes
