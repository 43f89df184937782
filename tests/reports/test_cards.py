"""Cards of models and data, as hubs read them."""

import json
import shutil

import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard

from rl_lab.graph.nodes import tree_digest
from rl_lab.model.vlm_config import HyVLMConfig
from rl_lab.reports.cards import LANGUAGE_MODEL
from rl_lab.reports.pages.run import write_report

INPUTS = {
    "sft": {"demos": "demos"},
    "base.evaluate": {"policy": "sft"},
    "rpro.1.collect": {"policy": "sft"},
    "rpro.1.optimise": {"policy": "sft", "pairs.1": "rpro.1.collect"},
    "rpro.1.evaluate": {"policy": "rpro.1.optimise"},
}


@pytest.fixture
def run(finished_run, tmp_path):
    """A finished run whose stages say what they read, with the folders of one model."""
    run = shutil.copytree(finished_run, tmp_path / "run")
    stages = json.loads((run / "stages.json").read_text())
    for row in stages["nodes"]:
        row["inputs"] = INPUTS.get(row["name"], {})
    (run / "stages.json").write_text(json.dumps(stages))
    model = run / "checkpoints" / "rpro.1.optimise"
    model.mkdir(parents=True)
    (model / "config.json").write_text('{"model_type": "hy_vla"}')
    (model / "lab.json").write_text("{}")
    return run


def test_a_models_card_has_numbers_origin_and_stand_ins(run):
    summary, _ = write_report(run)
    card = ModelCard.load(run / "checkpoints" / "rpro.1.optimise" / "README.md")
    (score,) = (one for one in summary["scores"] if (one["node"], one["scope"]) == ("rpro.1.evaluate", "overall"))
    (result,) = card.data.eval_results
    assert (result.metric_type, result.metric_value) == ("success_rate", round(score["rate"], 4))
    assert result.dataset_name == "tabletop/handover_block"
    assert f"| success rate, % | overall | {score['n']} |" in card.text
    assert "| rpro.1.collect | collect | sft |" in card.text
    assert "| rpro.1.evaluate |" not in card.text
    assert "| MoT-2B | nano |" in card.text
    assert "beta: 1.0" in card.text


def test_cards_hold_no_folder_of_this_machine(run):
    settings = yaml.safe_load((run / "config.yaml").read_text())
    settings["env"]["backend"] = "/home/me/my robots/reach.py:make"
    settings["model"] = {"path": "~/models/base", "code": "/home/me/policy.py:Mine"}
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    environment = json.loads((run / "environment.json").read_text())
    environment["substitutions"].append({"wanted": "RoboTwin", "used": "tabletop", "why": "none in /opt/sims/RoboTwin"})
    (run / "environment.json").write_text(json.dumps(environment))
    write_report(run)
    text = (run / "checkpoints" / "rpro.1.optimise" / "README.md").read_text()
    assert not any(part in text for part in ("/home", "my robots", "~", "/opt"))
    assert all(part in text for part in ("reach.py:make/", "path: base", "code: policy.py:Mine", "none in RoboTwin"))


def test_data_have_cards_with_their_counts(run):
    write_report(run)
    card = DatasetCard.load(run / "pairs" / "rpro.1.collect" / "README.md")
    assert card.data.task_categories == ["robotics"]
    assert "| rows | 3 |" in card.text


def test_language_models_are_known_by_their_config():
    assert HyVLMConfig.model_type == LANGUAGE_MODEL


def test_a_card_is_no_part_of_what_a_model_is(run):
    folder = run / "checkpoints" / "rpro.1.optimise"
    before = tree_digest(folder)
    write_report(run)
    assert (folder / "README.md").is_file() and tree_digest(folder) == before


def test_a_damaged_model_has_no_card_and_is_named(run):
    folder = run / "checkpoints" / "rpro.1.optimise"
    (folder / "config.json").write_text("{")
    summary, _ = write_report(run)
    assert not (folder / "README.md").exists()
    assert any("config.json" in problem for problem in summary["problems"])
