"""What is said of the configuration is complete, is what the fields say, and fits every experiment."""

from pathlib import Path

import jsonschema
import pytest
import yaml

from rl_lab import run
from rl_lab.common.errors import UserError
from rl_lab.config.reference import json_schema, keys_text, meanings, references
from rl_lab.stages.kinds import REGISTRY
from rl_lab.stages.reference import files
from tests.support.experiments import EXPERIMENTS, SMALL

MODELINE = "# yaml-language-server: $schema=schema.json\n"


@pytest.fixture(scope="module")
def validator():
    schema = json_schema(REGISTRY.words)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def test_every_key_is_described():
    missing = [
        f"{section.kind.__name__}.{key}"
        for section in references()
        for key in section.kind.model_fields
        if len(meanings(section.kind).get(key, "")) < 5
    ]
    assert missing == [] and len(references()) > 40


def test_page_and_schema_are_current():
    stale = [str(path) for path, text in files().items() if not path.is_file() or path.read_text() != text]
    assert stale == [], "run: python -m rl_lab.stages.reference"


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_experiment_fits_the_schema_and_tells_editors_of_it(path, validator):
    assert path.read_text().startswith(MODELINE)
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(
    "change",
    [
        {"sft": {"stepz": 3}},
        {"sft": {"steps": "many"}},
        {"sft": {"steps": 0}},
        {"stages": ["demos", "sfft"]},
        {"stages": [{"repeat": 0, "of": ["collect"]}]},
        {"placement": "cgpu"},
        {"buffers": {"mix_first": [0.5]}},
        {"robotwin": {"imagesize": 3}},
    ],
)
def test_what_a_run_refuses_by_shape_the_schema_refuses_too(change, validator):
    assert list(validator.iter_errors(yaml.safe_load(SMALL) | change))


@pytest.mark.parametrize(
    "change",
    [
        {"placement": "gpu"},
        {"placement": {"device": "cpu", "strategy": "SPREAD"}},
        {"collect": {"corrector": "scripted_expert"}},
        {"grpo": {"scale_rewards": False, "epsilon_high": None}},
        {
            "robotwin": {"variants": ["demo_clean"], "model": {"path": "x"}, "eval": {"robotwin_seed": 3}},
            "tabletop": None,
        },
        {"study": {"control": "a", "rewards": {"a": {}, "b": {}}, "spread": "runs/x"}},
        {"stages": ["questions", {"gate": {"otherwise": ["rft", "examine"]}}, {"gate": {"otherwise": "stop"}}]},
    ],
)
def test_short_forms_are_part_of_the_schema(change, validator):
    assert [error.message for error in validator.iter_errors(yaml.safe_load(SMALL) | change)] == []


def test_a_section_is_printed_by_its_place(capsys):
    assert run.main(["--keys", "sft.lora"]) == 0
    printed = capsys.readouterr().out
    assert "sft.lora.rank: whole number above 0 to 65536; default 16\n    Inner size of each adapter." in printed
    assert "rewards.judge.timeout_s: number above 0 to 1000000; seconds; default 60.0" in keys_text("rewards.judge")
    assert "objectives.*.beta" in keys_text("objectives.*") and "name: text; required" in keys_text("")


def test_an_unknown_section_is_refused_with_its_neighbour():
    with pytest.raises(UserError, match="there is no section 'optimize'; did you mean optimise"):
        run.main(["--keys", "optimize"])


def test_help_says_where_keys_are_described():
    assert all(text in run.__doc__ for text in ("--keys", "docs/configuration.md", "docs/own-yaml.md"))
    assert all(Path(EXPERIMENTS.parent, "docs", name).is_file() for name in ("configuration.md", "own-yaml.md"))
