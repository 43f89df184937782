"""The card of a reward model of answers, and a run that made nothing else."""

import json

import numpy as np
import pytest

from rewards.calibration import examine
from rl_lab.reports.metrics import define
from rl_lab.reports.pages.run import write_report
from tests.support.run_folders import write_jsonl


def record(seed=0, **changes):
    """A model of two members, of invented answers."""
    rng = np.random.default_rng(seed)
    truth = rng.random(200)
    logits = 4 * (truth - 0.5) + rng.normal(0, 1, (2, 200))
    found = examine(1 / (1 + np.exp(-logits)), truth, 0.5, np.arange(200) // 4, (np.arange(200) // 8).tolist())
    labels = {"answers": {"train": 900, "calibration": 200, "test": 200}, "pairs": 70, "correct": 0.5}
    blank = {"accuracy": 0.5, "auroc": 0.61, "auroc_interval": [0.55, 0.66], "pair_accuracy": 0.5}
    return {
        **{"kind": "outcome", "learns": "correctness", "threshold": 0.5, "platt": [{"scale": 1, "shift": 0}] * 2},
        **{"labels": labels | {"without_reward": 0}, "steps": 30, "test": found | {"calibration_error_before": 0.3}},
        **{"blank": blank, "answers_per_second": 123.0, "device": "cpu"},
    } | changes


@pytest.fixture
def run(tmp_path):
    """A run folder whose only stages made a reward model."""
    kinds = {"outcome_model.labels": "outcome_labels", "outcome_model": "outcome_model"}
    rows = [{"name": name, "kind": kind, "status": "done", "seconds": 1.0} for name, kind in kinds.items()]
    (tmp_path / "stages.json").write_text(json.dumps({"store": "", "nodes": rows}))
    (tmp_path / "config.yaml").write_text("name: outcome\nseed: 0\n")
    write_jsonl(tmp_path / "metrics.jsonl", [{"node": "outcome_model", "step": 30, "outcome/test_auroc": 0.8}])
    folder = tmp_path / "reward_models" / "outcome_model"
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(json.dumps(record()))
    return tmp_path


def test_the_card_says_how_good_it_is_and_how_sure_one_can_be(run):
    summary, page = write_report(run)
    test, text = summary["reward_models"]["outcome_model"]["test"], page.read_text()
    assert f"with accuracy {test['accuracy']:.3f} (95 % interval {test['accuracy_interval'][0]:.3f} to" in text
    assert "always the same verdict" in text
    assert "beside grey pictures AUROC 0.610" in text
    assert "2 members, 30 steps each on 900 answers" in text
    assert f"{test['calibration_error']:.3f}" in text and "before calibration 0.300" in text
    assert "abstain_above" in text and "member 2" in text
    assert "was not examined" not in text


def test_a_model_that_could_not_be_ranked_is_said_to_be(run):
    answers = np.full((2, 50), 0.9)
    same = examine(answers, np.ones(50), 0.5, np.arange(50), list(range(50))) | {"calibration_error_before": 0.1}
    path = run / "reward_models" / "outcome_model" / "model.json"
    path.write_text(json.dumps(record(test=same, blank={"auroc": None, "auroc_interval": None})))
    assert "are all correct or all wrong" in write_report(run)[1].read_text()


def test_a_card_that_cannot_be_read_is_named_and_others_are_not_its_business(run):
    (run / "reward_models" / "outcome_model" / "model.json").write_text("{")
    (run / "reward_models" / "success").mkdir()
    (run / "reward_models" / "success" / "model.json").write_text('{"kind": "success"}')
    summary, page = write_report(run)
    assert "reward_models" not in summary
    assert "reward_models/outcome_model/model.json cannot be read" in page.read_text()


def test_the_metrics_of_reward_models_are_defined():
    assert "members" in define("reward/disagreement/learned")
    assert define("outcome/test_auroc") and define("outcome/accuracy")
