"""What the pages of invented studies of rewards and of rankings show beside the map."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import yaml

from rewards.calibration import examine
from rl_lab.common.files import read_json_lines
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from rl_lab.reports.study_details import Course, course_alarms
from rl_lab.reports.summary import measure, summary_lines
from rl_lab.stages.report import flipped
from tests.support.language_run_folders import build_language_run
from tests.support.questions import make_item
from tests.support.run_folders import as_study, build_run, preference_row, write_jsonl, write_pairs, write_videos

GAINS = {"verifier": 0.05, "judge": 0.35, "form": 0.05, "none": 0.0}
RATES = {"base": [0.4], "interventions": [0.5] * 3, "progress": [0.9, 0.92, 0.88], "random": [0.5, 0.52, 0.48]}
RIGHT = {"progress": 0.8, "random": 0.3}
"""Share of chosen pairs that prefer the chunk that led further."""
FAILED = "reward call failed: judge on answer 0 to q (time-out: late); such answers are masked"


@pytest.fixture(scope="module")
def rewards(tmp_path_factory):
    """Run folder of a study in which one reward of four failed with one seed, and calls of another."""
    path = build_language_run(tmp_path_factory.mktemp("rewards") / "run", schemes=GAINS, seeds=3, items=120)
    as_study(path, rewards={name: {} for name in GAINS}, control="verifier")
    stages = json.loads((path / "stages.json").read_text())
    next(row for row in stages["nodes"] if row["name"] == "given.3.none.1.grpo")["status"] = "failed"
    (path / "stages.json").write_text(json.dumps(stages))
    (path / "examinations" / "given.3.none.1.examine" / "results.jsonl").unlink()
    with (path / "metrics.jsonl").open("a") as file:
        for step in (1, 2):
            line = {"node": "given.1.judge.1.grpo", "method": "judge", "step": step, "alarm": FAILED}
            file.write(json.dumps(line) + "\n")
    answer = {"point": [10, 20], "mask": {"size": [2, 2], "counts": [1, 3]}}
    ids = [line["item"] for line in read_json_lines(path / "examinations" / "given.1.base.examine" / "results.jsonl")]
    (path / "questions" / "given.1.questions").mkdir(parents=True)
    items = [item_row(make_item(number, id=name, answer=answer)) for number, name in enumerate(ids)]
    write_rows(path / "questions" / "given.1.questions" / "held_out.arrow", items)
    for file in path.glob("examinations/*/results.jsonl"):  # an answer says what it was worth
        lines = read_json_lines(file)
        write_jsonl(file, [line | {"answers": [f"reward {one}" for one in line["rewards"]]} for line in lines])
    write_report(path)
    return path


def found(path):
    return json.loads((path / "study.json").read_text())


def methods(path):
    return {one["method"]: one for one in found(path)["rows"][0]["methods"]}


def test_a_clear_gain_is_decided_an_equal_reward_is_not_and_a_failed_seed_leaves_the_others(rewards):
    judge, form, none = (methods(rewards)[name] for name in ("judge", "form", "none"))
    assert judge["corrected_p"] < 0.05 < form["corrected_p"] and judge["difference"]["low"] > 0
    assert (judge["seeds"], none["seeds"]) == (3, 2)
    assert 100 < judge["n"] <= 120, "questions of which a call failed are left out"
    assert found(rewards)["means"]["given"]["judge"].keys() == {"1", "2", "3"}
    page, report = ((rewards / name).read_text() for name in ("study.html", "report.html"))
    assert "judge over verifier: +0." in page and "Not told apart from verifier: 2 of 3 comparisons" in page
    assert 'href="study.html"' in report and "judge over verifier: +0." in report
    assert "Held-out reward over steps" in page and "Held-out questions" in report


def test_curves_and_categories_are_in_the_file_too(rewards):
    (world,) = found(rewards)["details"]
    assert world["curves"].keys() == GAINS.keys()
    for points in world["curves"].values():
        assert [point["step"] for point in points] == sorted(point["step"] for point in points)
        assert all(point["low"] <= point["value"] <= point["high"] for point in points)
    assert len(world["categories"]) == 4 and all(len(row["methods"]) == 3 for row in world["categories"])


def test_rewards_are_compared_after_equal_tokens_too_in_the_trainings_that_ended(rewards):
    (row,) = found(rewards)["measures"]["reward at equal tokens"]["rows"]
    form, judge, none = row["methods"]
    assert (judge["seeds"], judge["n"], none["seeds"]) == (3, 120, 2)
    # All trainings spent the same, so these are the last short examinations.
    last = [read_json_lines(rewards / "grpo" / f"given.{n}.judge.1.grpo" / "held_out.jsonl")[-1] for n in (1, 2, 3)]
    assert judge["mean"] == pytest.approx(np.mean([line["rewards"] for line in last]))
    assert judge["corrected_p"] < 0.05 < form["corrected_p"]
    page = (rewards / "study.html").read_text()
    assert "The experiment: reward at equal tokens" in page and "after as many completion tokens" in page


def test_what_training_took_stands_beside_the_rewards(rewards):
    _, judge, none, verifier = found(rewards)["details"][0]["spent"]
    assert (judge["tokens"], judge["questions"]) == (40 * 2800, 200 + 28 + 3)  # hard or frontier, easy, flat
    assert judge["signal"] == pytest.approx(0.5 + 0.3 * np.mean([1 - np.exp(-3 * n / 40) for n in range(1, 41)]))
    assert judge["share"] < 1 >= verifier["share"] and judge["seeds_reached"] == 3
    assert none["seeds_reached"] < none["seeds"] == 3
    page = (rewards / "study.html").read_text()
    assert "What training took" in page and "Seeds that got there" in page


def test_curricula_are_compared_after_what_the_cheapest_spent(scheme_study, tmp_path):
    path = shutil.copytree(scheme_study, tmp_path / "run")
    write_report(path)
    frontier, uniform, *_ = found(path)["details"][0]["spent"]
    assert (frontier["tokens"], uniform["tokens"]) == (40 * 3000, 40 * 2800)
    methods = found(path)["measures"]["reward at equal tokens"]["rows"][0]["methods"]
    means = []
    for seed in (1, 2, 3):  # uniform ends where the frontier has step 37.3, between its examinations at 35 and 40
        lines = read_json_lines(path / "grpo" / f"given.{seed}.frontier.1.grpo" / "held_out.jsonl")
        before, after = (np.mean(line["rewards"]) for line in lines[-2:])
        means.append(before + (after - before) * (40 * 2800 / 3000 - 35) / 5)
    assert methods[0]["method"] == "frontier" and methods[0]["mean"] == pytest.approx(np.mean(means))


def test_what_failed_is_named(rewards):
    alarms, page = found(rewards)["details"][0]["alarms"], (rewards / "study.html").read_text()
    assert alarms["judge"].count(FAILED) == 1 and "given.3.none.1.grpo failed" in alarms["none"]
    assert FAILED in page and "given.3.none.1.grpo failed" in page


def test_a_flip_crosses_the_threshold_and_shows_of_each_side_the_answer_nearest_to_its_mean(rewards):
    flips = found(rewards)["details"][0]["flips"]["judge"]
    assert flips and all((flip["method"] >= 0.5) != (flip["control"] >= 0.5) for flip in flips)
    known = {"verifier": defaultdict(list), "judge": defaultdict(list)}
    for file in rewards.glob("examinations/*/results.jsonl"):
        if (name := file.parent.name.split(".")[2]) in known:
            for line in read_json_lines(file):
                known[name][line["item"]] += [reward for reward in line["rewards"] if reward is not None]
    page, flip = (rewards / "study.html").read_text(), next(flip for flip in flips if flip["method"] > flip["control"])
    for name, mean in (("judge", flip["method"]), ("verifier", flip["control"])):
        nearest = min(known[name][flip["item"]], key=lambda reward: abs(reward - mean))
        assert f"<b>{name} (mean {mean:.3f}): </b>reward {nearest}</div>" in page
    assert "[10, 20]" in page and "[1, 3]" not in page


RISING = [0.3 + 0.01 * step for step in range(40)]
STEADY = [0.5] * 40


def test_a_hacked_course_raises_its_alarms_and_a_clean_one_none():
    hacked = Course(
        reward=RISING,
        truth_high=0.01,
        length=[20 + 2 * step for step in range(40)],
        format=STEADY,
        spread=[0.3] * 20 + [0.01] * 20,
        parts={"answer": [0.0, 1.0] * 20, "bonus": [0.0, 9.0, 0.0, 0.0] * 10},
    )
    found = course_alarms(hacked, {"answer": 1.0, "bonus": 1.0})
    assert len(found) == 4
    clean = Course(reward=RISING, truth_high=0.2, length=STEADY, format=STEADY, spread=STEADY)
    assert course_alarms(clean, {"answer": 1.0}) == []


def test_a_course_without_examinations_says_nothing_of_the_truth():
    assert course_alarms(Course(reward=RISING, truth_high=None, length=[1, 50] * 20), {"answer": 1.0}) == []


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
def rankings(tmp_path_factory):
    """Run folder of a study of rankings of sampled chunks."""
    path = build_run(tmp_path_factory.mktemp("rankings") / "run", n=60, methods=RATES, videos=0)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config["env"]["variants"] = ["clean"]
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    graph, rng = json.loads((path / "stages.json").read_text()), np.random.default_rng(5)
    for stage in graph["nodes"]:
        if stage["name"].endswith("evaluate"):
            stage["inputs"] = {"policy": f"given.{stage['round']}.{stage['method']}.1.optimise"}
    lines = [json.loads(line) for line in (path / "metrics.jsonl").open() if '"sft"' in line]
    lines += [
        preference_row("rpro", seed, step, step / 100, rng) | {"node": f"{name}.{seed}.optimise", "method": name}
        for name in RATES
        for seed in (1, 2, 3)
        for step in range(1, 101)
        if name != "base"
    ]
    write_jsonl(path / "metrics.jsonl", lines)
    for name in RIGHT:
        for seed in (1, 2, 3):
            stage = {"name": f"{name}.{seed}.rank", "kind": "rank", "method": name, "round": 1}
            graph["nodes"].append(stage | {"status": "done", "hash": f"{name}{seed}", "seconds": 1.0, "reused": False})
            folder = path / "pairs" / f"{name}.{seed}.rank"
            write_pairs(folder, 1, 16, 8)
            (folder / "collection.json").write_text(json.dumps(collection(name, seed)))
    (path / "stages.json").write_text(json.dumps(graph))
    for kind in ("progress", "world_model"):
        (path / "reward_models" / f"reward.{kind}").mkdir(parents=True)
        (path / "reward_models" / f"reward.{kind}" / "card.json").write_text(json.dumps(card(kind)))
    own = {"interventions": {}} | {name: {"weights": {name: 1.0}} for name in RIGHT}
    as_study(path, rankings=own, control="interventions")
    write_report(path)
    return path


def test_rankings_are_judged_by_success_episode_by_episode_and_seed_by_seed(rankings):
    progress, random = (methods(rankings)[name] for name in RIGHT)
    assert (progress["n"], progress["seeds"]) == (60, 3) and progress["corrected_p"] < 0.05 < random["corrected_p"]
    rate = np.mean(
        [
            [json.loads(line)["success"] for line in (rankings / "episodes" / name / "results.jsonl").open()]
            for name in (f"given.{seed}.progress.1.evaluate" for seed in (1, 2, 3))
        ]
    )
    assert progress["mean"] == pytest.approx(rate)


def test_the_terminal_shows_the_map_and_verdicts(rankings):
    table, verdicts = summary_lines(measure(load_run(rankings))).split("\n\n")
    assert "progress over it" in table and "*" in table
    assert verdicts.startswith("progress over interventions: +")
    assert "study" not in json.loads((rankings / "summary.json").read_text())


def test_a_reward_that_points_away_and_members_that_disagree_raise_alarms_and_others_none(rankings):
    alarms = found(rankings)["details"][0]["alarms"]
    assert all("only 30 % prefer the one that led further" in text for text in alarms["random"])
    assert len(alarms["random"]) == 3 and alarms["interventions"] == []
    assert alarms["progress"] == ["seed 2: members disagree in 95 of 160 states: the models know too little"]


def test_films_of_flipped_episodes_stand_beside_their_method_alone(rankings, tmp_path):
    path = shutil.copytree(rankings, tmp_path / "run")
    names = {"before_node": "given.1.interventions.1.optimise", "after_node": "given.1.progress.1.optimise"}
    folder = path / "videos" / names["after_node"]
    write_videos(folder, 1, 16)
    (row,) = [json.loads(line) for line in (folder / "index.jsonl").open()]
    write_jsonl(folder / "index.jsonl", [row | names | {"after_failure": None}])
    write_report(path)
    page = (path / "study.html").read_text()
    assert page.count("interventions, round 1, training seed 1: dropped") == 2
    assert page.count("progress, round 1, training seed 1: success") == 2
    assert "From failure to success" not in (path / "report.html").read_text()


def test_filmed_are_flips_of_all_seeds_that_the_first_seed_shows_too(rankings):
    run = load_run(rankings)
    contrasts = {one.after: one for one in flipped(run)}
    ends = {one.node: {episode.key: episode.success for episode in one.episodes} for one in run.evaluations}
    contrast = contrasts["given.1.progress.1.optimise"]
    assert contrast.before == "given.1.interventions.1.optimise" and set(contrast.solved.values()) <= {True, False}
    flips = {tuple(flip["item"]) for flip in found(rankings)["details"][0]["flips"]["progress"]}
    for key, solved in contrast.solved.items():
        assert key in flips
        assert ends["given.1.progress.1.evaluate"][key] is solved
        assert ends["given.1.interventions.1.evaluate"][key] is not solved


def test_pages_show_training_cards_rankings_and_take_seeds_for_no_rounds(rankings):
    page, map_ = ((rankings / name).read_text() for name in ("report.html", "study.html"))
    assert "progress over interventions: +" in page
    assert "Reward models on held-out episodes" in page and "given.1.reward.progress" in page
    assert "successes or failures alone: nothing to measure" in page
    assert "progress, round 1, training seed 2" in page
    assert "round 2" not in page and "round 3" not in page
    assert "reward/margin" in map_ and "Episodes that flip" in map_
