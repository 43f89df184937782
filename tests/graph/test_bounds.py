"""Every number and every list of a configuration has bounds, and what lies outside is named with them."""

from collections.abc import Iterator
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError

from algos.curriculum.options import CurriculumOptions
from algos.grpo import GRPOOptions
from algos.rft import RFTOptions
from rewards.config import JudgeConfig, RewardConfig
from rl_lab.config.language import Curriculum, GRPOSection, Rewards, Select
from rl_lab.config.schema import RunConfig
from rl_lab.config.section import Section
from rl_lab.stages.kinds import load_config
from tests.support.experiments import write_small
from tests.support.refusals import refusal

CHECKED_BY_HAND = {"tasks", "variants", "controls", "stages"}
"""Lists that may be empty, or say better what must be in them."""
LEAVES = {CurriculumOptions: Curriculum, GRPOOptions: GRPOSection, RFTOptions: Select, RewardConfig: Rewards}
JUDGE = {"base_url": "http://localhost/v1", "model": "m"}


OF_OWN_CODE = "settings"
"""What a class of a user's own takes has no bounds but its own."""


def parts(schema: Any, name: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Everything inside a JSON schema that has a type, by the name of its field; but what `OF_OWN_CODE` holds."""
    if isinstance(schema, list):
        for entry in schema:
            yield from parts(entry, name)
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):
            yield name, schema
        for key, inside in schema.items():
            if key == OF_OWN_CODE:
                continue
            yield from parts(inside, name if key in ("items", "prefixItems", "anyOf", "oneOf") else key)


SCHEMA = list(
    parts({key: part for key, part in RunConfig.model_json_schema().items() if key in ("$defs", "properties")})
)


def test_every_number_has_a_lower_and_an_upper_bound():
    numbers = [(name, part) for name, part in SCHEMA if part["type"] in ("integer", "number")]
    open_ = [
        name
        for name, part in numbers
        if not (part.keys() & {"minimum", "exclusiveMinimum"} and part.keys() & {"maximum", "exclusiveMaximum"})
    ]
    assert len(numbers) > 150 and open_ == []


def test_every_list_has_a_longest_and_is_empty_only_where_that_means_something():
    lists = [(name, part) for name, part in SCHEMA if part["type"] == "array"]
    assert len(lists) > 15 and [name for name, part in lists if "maxItems" not in part] == []
    empty = {name for name, part in lists if not part.get("minItems") and part.get("default") != []}
    assert empty - CHECKED_BY_HAND <= {"otherwise", "trackers"}


def sections(kind: type[BaseModel] = Section) -> Iterator[type[BaseModel]]:
    for below in kind.__subclasses__():
        yield below
        yield from sections(below)


def test_no_section_takes_nan_or_text_for_a_number():
    found = list(sections())
    assert len(found) > 35
    for section in found:
        assert section.model_config["allow_inf_nan"] is False and section.model_config["strict"], section


def unannotated(kind: Any) -> Any:
    return get_args(kind)[0] if get_origin(kind) is Annotated else kind


def numbers_of(kind: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of the number fields of a leaf library's settings."""
    for name, field in kind.model_fields.items():
        if {int, float} & {field.annotation, *map(unannotated, get_args(field.annotation))}:
            yield (*path, name)
        elif isinstance(field.default, BaseModel):
            yield from numbers_of(type(field.default), (*path, name))
    if kind is RewardConfig:
        yield from numbers_of(JudgeConfig, ("judge",))


@pytest.mark.parametrize("value", [10**12, -(10**12), 1e30, -1e30, float("inf"), float("nan")])
@pytest.mark.parametrize(
    ("kind", "path"),
    [(kind, path) for kind in LEAVES for path in numbers_of(kind)],
    ids=lambda part: ".".join(part) if isinstance(part, tuple) else part.__name__,
)
def test_no_number_of_a_leaf_library_is_without_bounds(kind, path, value):
    content: dict[str, Any] = {path[-1]: value}
    content = {path[0]: (JUDGE if path[0] == "judge" else {}) | content} if len(path) > 1 else content
    with pytest.raises(ValidationError) as error:
        TypeAdapter(LEAVES[kind]).validate_python(content)
    assert path[-1].split("_")[-1] in str(error.value)


@pytest.mark.parametrize(
    ("override", "said"),
    {
        "workers.simulation=100000": ("workers.simulation", "less than or equal to 1024", "100000"),
        "eval.episodes=1000000000000": ("eval.episodes", "10000000", "1000000000000"),
        "stages=[demos, sft, {repeat: 1000000, of: [collect, optimise]}]": ("stages.2.repeat", "1000", "1000000"),
        "optimise.train=[]": ("optimise.train", "at least 1 item"),
        "study={control: a, rewards: {}}": ("study", "give one of methods, rewards, rankings"),
        "grpo.num_generations=1000000": ("grpo: num_generations", "1000000", "65536"),
        "sft.lr=1e30": ("sft.lr", "1000000", "1e+30"),
        "seed=9223372036854775808": ("seed", "64 bits"),
    }.items(),
)
def test_absurd_sizes_are_refused_with_key_value_and_bound(tmp_path, override, said):
    line = refusal(lambda: load_config(write_small(tmp_path), [override]))
    assert all(part in line for part in said), line
