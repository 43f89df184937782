"""The pages of an invented sweep over rankings of sampled chunks."""

import json
import shutil
from dataclasses import astuple

import numpy as np
import pytest
import yaml

from rewards.calibration import examine
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.pages.sweep import seeds_interval
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure, summary_lines
from rl_lab.reports.sweep import expected_power
from rl_lab.stages.report import flipped
from tests.support.run_folders import build_run, preference_row, write_jsonl, write_pairs, write_videos

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
    config |= {
        "optimise": {"steps": 100},
        "replicates": 3,
        "sweep": {"baseline": "interventions", "variants": {}, "rankings": rankings},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    graph = json.loads((path / "stages.json").read_text())
    for stage in graph["nodes"]:
        if stage["round"]:
            stage |= {"replicate": stage["round"], "round": 1}
    rng, names = np.random.default_rng(5), [(name, seed) for name in rankings for seed in (1, 2, 3)]
    lines = [json.loads(line) for line in (path / "metrics.jsonl").open() if '"sft"' in line]
    lines += [
        preference_row("rpro", seed, step, step / 100, rng) | {"node": f"{name}.{seed}.optimise", "method": name}
        for name, seed in names
        for step in range(1, 101)
    ]
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


def test_the_terminal_shows_truth_differences_and_verdicts_and_no_rounds(sweep):
    summary = measure(load_run(sweep))
    table, verdicts = summary_lines(summary).split("\n\n")
    lines = {line.split()[0]: line for line in table.splitlines()[2:]}
    assert set(lines) == {"interventions", *RIGHT} and "training seeds and episodes" in lines["progress"]
    assert [line.split(":")[0] for line in verdicts.splitlines()] == ["progress", "random"]
    assert verdicts.startswith("progress: better than interventions by +0.")
    assert "sweep" not in json.loads((sweep / "summary.json").read_text())


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


def test_films_of_flipped_episodes_stand_beside_their_variant_alone(sweep, tmp_path):
    path = shutil.copytree(sweep, tmp_path / "run")
    folder = path / "videos" / "progress.1.optimise"
    write_videos(folder, 1, 16)
    (row,) = [json.loads(line) for line in (folder / "index.jsonl").open()]
    names = {"before_node": "interventions.1.optimise", "after_node": "progress.1.optimise", "after_failure": None}
    write_jsonl(folder / "index.jsonl", [row | names])
    write_report(path)
    page = (path / "sweep.html").read_text()
    assert (
        page.count("interventions, training seed 1: dropped") == page.count("progress, training seed 1: success") == 2
    )
    assert "From failure to success" not in (path / "report.html").read_text()


def test_filmed_are_flips_of_all_seeds_that_the_first_seed_shows_too(sweep):
    run = load_run(sweep)
    found = {one.after: one for one in flipped(run)}
    ends = {one.node: {episode.key: episode.success for episode in one.episodes} for one in run.evaluations}
    contrast = found["progress.1.optimise"]
    assert contrast.before == "interventions.1.optimise" and set(contrast.solved.values()) <= {True, False}
    flips = {tuple(flip["item"]) for flip in rows(sweep)["progress"]["flips"]}
    for key, solved in contrast.solved.items():
        assert key in flips
        assert ends["progress.1.evaluate"][key] is solved and ends["interventions.1.evaluate"][key] is not solved


def test_curves_begin_with_the_base_and_end_with_the_trained_policies(sweep):
    found = json.loads((sweep / "sweep.json").read_text())["curves"]
    assert set(found) == {"interventions", *RIGHT}
    assert {points[0]["value"] for points in found.values()} == {found["random"][0]["value"]}
    assert found["progress"][1]["value"] == pytest.approx(rows(sweep)["progress"]["reward"]["value"])
    assert [point["step"] for point in found["progress"]] == [0, 100]
    page = (sweep / "sweep.html").read_text()
    assert "Success before and after" in page and "reward/margin" in page


def test_a_training_metric_has_students_interval_over_training_seeds_and_none_of_one_seed():
    values = np.array([[1.0, 2.0], [2.0, 2.0], [3.0, 2.0]])
    mean, low, high = np.array([astuple(one) for one in seeds_interval(values)]).T
    half = 4.302652729911275 / np.sqrt(3)
    assert np.allclose(mean, 2.0) and np.allclose(low, [2 - half, 2.0]) and np.allclose(high, [2 + half, 2.0])
    assert all(astuple(one) == (value,) * 3 for one, value in zip(seeds_interval(values[:1]), values[0], strict=True))


def test_without_the_base_there_is_no_curve_of_success(sweep, tmp_path):
    path = shutil.copytree(sweep, tmp_path / "run")
    shutil.rmtree(path / "episodes" / "base.evaluate")
    write_report(path)
    assert json.loads((path / "sweep.json").read_text())["curves"] == {}
    assert "Success before and after" not in (path / "sweep.html").read_text()


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
