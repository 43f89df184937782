"""The pages of an invented sweep over rankings of sampled chunks."""

import json

import numpy as np
import pytest
import yaml

from rewards.examination import examine
from rl_lab.reports.page import write_report
from rl_lab.reports.sweep import expected_power
from tests.reports.synthetic import build_run, write_jsonl, write_pairs

RATES = {"base": [0.4], "interventions": [0.5] * 3, "progress": [0.9, 0.92, 0.88], "random": [0.5, 0.52, 0.48]}
RIGHT = {"progress": 0.8, "random": 0.3}
"""Share of chosen pairs that prefer the chunk that led further."""


def collection(name, seed):
    agreement = {"states_that_differ": 60, "rank_correlation": 0.4, "pair_accuracy": 0.7, "chosen_different": 50}
    agreement |= {"chosen_right": RIGHT[name], "chunks_per_second": 900.0}
    disagreed = 95 if (name, seed) == ("progress", 2) else 20
    return {"pairs": 80, "states": 160, "abstained/disagreement": disagreed, "agreement": agreement}


def card(kind):
    rng = np.random.default_rng(0)
    truth = (np.arange(24) % 2).astype(float)
    members = np.clip(0.2 + 0.6 * truth + rng.normal(0, 0.1, (2, 24)), 0.01, 0.99)
    split = {"episodes": 24, "successes": 12}
    known = {"test": examine(members, truth, 0.5, np.arange(24.0), range(24)), "episodes_per_second": 300.0}
    unknown = {"test": None, "episodes_per_second": None}
    splits = {"train": {"episodes": 72, "successes": 36}, "calibration": split, "test": split}
    head = {"kind": kind, "steps": 300, "members": 2, "splits": splits, "demonstrations": False}
    return head | (known if kind == "progress" else unknown)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = build_run(tmp_path_factory.mktemp("sweep") / "run", n=60, methods=RATES, videos=0)
    config = yaml.safe_load((path / "config.yaml").read_text())
    rankings = {"interventions": {}} | {name: {"weights": {name: 1.0}} for name in RIGHT}
    config |= {"replicates": 3, "sweep": {"baseline": "interventions", "variants": {}, "rankings": rankings}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    graph = json.loads((path / "stages.json").read_text())
    for stage in graph["nodes"]:
        if stage["round"]:
            stage |= {"replicate": stage["round"], "round": 1}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    seeds = [{"replicate": line["round"], "round": 1} if line.get("round") else {} for line in lines]
    write_jsonl(path / "metrics.jsonl", [line | seed for line, seed in zip(lines, seeds, strict=True)])
    for name in RIGHT:
        for seed in (1, 2, 3):
            stage = {"name": f"{name}.{seed}.rank", "kind": "rank", "method": name, "round": 1, "replicate": seed}
            graph["nodes"].append(stage | {"status": "done", "hash": f"{name}{seed}", "seconds": 1.0, "reused": False})
            folder = path / "pairs" / f"{name}.{seed}.rank"
            write_pairs(folder, 1, 16, 8)
            (folder / "collection.json").write_text(json.dumps(collection(name, seed)))
    (path / "stages.json").write_text(json.dumps(graph))
    for kind in ("progress", "world_model"):
        folder = path / "reward_models" / f"seed.1.{kind}"
        folder.mkdir(parents=True)
        (folder / "card.json").write_text(json.dumps(card(kind)))
    write_report(path)
    return path


def rows(path):
    return {row["variant"]: row for row in json.loads((path / "sweep.json").read_text())["variants"]}


def test_variants_are_judged_by_success_episode_by_episode_and_seed_by_seed(sweep):
    found = rows(sweep)
    assert found["progress"]["verdict"]["standing"] == "better"
    assert (found["progress"]["verdict"]["n"], found["progress"]["verdict"]["seeds"]) == (60, 3)
    assert found["progress"]["verdict"]["scope"] == "training seeds and episodes"
    assert found["random"]["verdict"]["standing"] == "not distinguishable"
    rate = np.mean(
        [
            [json.loads(line)["success"] for line in (sweep / "episodes" / name / "results.jsonl").open()]
            for name in (f"progress.{seed}.evaluate" for seed in (1, 2, 3))
        ]
    )
    assert found["progress"]["reward"]["value"] == pytest.approx(rate)
    assert json.loads((sweep / "sweep.json").read_text())["unit"] == "held-out episodes nested in training seeds"


def test_a_reward_that_points_away_and_members_that_disagree_raise_alarms_and_others_none(sweep):
    found = rows(sweep)
    assert all("only 30 % prefer the one that led further" in text for text in found["random"]["alarms"])
    assert len(found["random"]["alarms"]) == 3
    assert found["progress"]["alarms"] == ["seed 2: members disagree in 95 of 160 states: the models know too little"]
    assert found["interventions"]["alarms"] == []


def test_flips_are_whole_episodes(sweep):
    flips = rows(sweep)["progress"]["flips"]
    assert flips and all(flip["item"][:2] == ["handover_block", "clean"] for flip in flips)
    assert "Episodes that flip" in (sweep / "sweep.html").read_text()


def test_the_report_shows_cards_rankings_and_verdicts_and_takes_seeds_for_no_rounds(sweep):
    page = (sweep / "report.html").read_text()
    assert "progress: better than interventions by" in page
    assert "Reward models on held-out episodes" in page and "seed.1.progress" in page
    assert "successes or failures alone: nothing to measure" in page
    assert "progress, training seed 2" in page
    assert "round 2" not in page and "round 3" not in page


def test_what_such_a_sweep_could_find_is_known_from_an_earlier_one(sweep):
    config = yaml.safe_load((sweep / "config.yaml").read_text())
    config["env"]["variants"] = ["clean"]
    spread = {"items": 0.1, "seeds": 0.05, "rest": 0.3, "n": 60, "replicates": 3, "source": "an earlier sweep"}
    config["sweep"] |= {"spread": spread}
    found = expected_power(config)
    assert (found["n"], found["replicates"]) == (60, 3) and found["level"] == pytest.approx(0.975)
