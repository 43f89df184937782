"""Held-out results of runs on language: scores, paired differences, budgets, verdict; by hand and on invented runs."""

import json
import shutil

import numpy as np
import pytest

from rl_lab.common.errors import UserError
from rl_lab.reports.budgets import at_equal_tokens, curves, make_curve, tokens_needed
from rl_lab.reports.examinations import ItemResult, LearningCurve, read_examination, read_training
from rl_lab.reports.numbers import find
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import StageRow, load_run
from rl_lab.reports.summary import measure, summary_lines
from tests.support.run_folders import summarise, write_jsonl


def result(item, rewards, blank=(0.0,), constant=0.25, category="planning"):
    return {"item": item, "category": category, "rewards": rewards, "blank": list(blank), "constant": constant}


STUDY = """
name: by hand
study: {compare: curriculum.scheme, methods: [frontier, uniform], control: uniform}
questions: {held_out: 40}
"""


def run_of(path, examinations, config="name: by hand\n"):
    """A run folder with these examinations by node."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.yaml").write_text(config)
    for node, rows in examinations.items():
        write_jsonl(path / "examinations" / node / "results.jsonl", rows)
    return load_run(path)


def training(places, rewards, scheme="uniform", replicate=1):
    places = np.array(places, float)
    return LearningCurve(
        f"{scheme}.{replicate}.grpo", scheme, replicate, None, places, 100 * places, np.array(rewards, float)
    )


def test_an_item_by_hand():
    item = ItemResult("a", "planning", (1.0, 0.5, None, 0.2), (0.25, None), 0.1)
    assert item.reward == pytest.approx(1.7 / 3) and item.blank_reward == 0.25 and item.failed == 2
    assert item.passed(1, 0.5) == pytest.approx(2 / 3) and item.passed(2, 0.5) == pytest.approx(1.0)
    assert np.isnan(item.passed(4, 0.5)) and np.isnan(ItemResult("a", "", (None,), (), 0.1).reward)


def test_scores_and_differences_by_hand(tmp_path):
    run = run_of(
        tmp_path,
        {
            "given.1.base.examine": [result("a", [0.0, 0.5]), result("b", [1.0, 1.0])],
            "given.2.base.examine": [result("a", [0.0, 0.5]), result("b", [1.0, 1.0])],
            "given.1.frontier.1.examine": [result("a", [1.0, 0.5]), result("b", [1.0, None])],
            "given.2.frontier.1.examine": [result("a", [1.0, 1.0]), result("b", [None, None])],
        },
        STUDY,
    )
    summary = summarise(run)
    base, frontier = (find(summary["held_out"], scope="overall", scheme=s) for s in ("base", "frontier"))
    assert base["reward"]["value"] == pytest.approx((0.25 + 1.0) / 2)
    assert frontier["reward"]["value"] == pytest.approx(((0.75 + 1.0) / 2 + 1.0) / 2)
    assert (frontier["reward"]["n"], frontier["reward"]["replicates"]) == (2, 2)
    assert (frontier["failed_calls"], frontier["unscored"]) == (3, 1)
    assert base["pass@1"]["value"] == pytest.approx(0.75) and base["pass@2"]["value"] == 1.0
    over = find(summary["held_out_differences"], scope="overall", scheme="frontier", over="base")
    assert over["value"] == pytest.approx(((0.5 + 0.0) / 2 + 0.75) / 2)
    assert find(summary["held_out_differences"], scheme="frontier", over="constant")["value"] == pytest.approx(0.6875)


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (
            0.5,
            "At temperature 0.3 0 over the base (0 to 0): its gain is not told apart from sharper answers",
        ),
        (0.7, "At temperature 0.3 +0.200 over the base (+0.200 to +0.200): it answers better, not only sharper."),
    ],
)
def test_a_gain_at_one_temperature_is_held_against_that_at_a_low_one(tmp_path, low, said):
    before = [result(item, [0.3]) | {"low": [0.5]} for item in "abc"]
    after = [result(item, [0.5]) | {"low": [low]} for item in "abc"]
    nodes = {"base.examine": before, "frontier.1.examine": after}
    run = run_of(tmp_path, nodes, "name: x\nexamine: {low_temperature: 0.3}\n")
    assert find(summarise(run)["held_out"], scope="overall", scheme="frontier")["low"]["value"] == pytest.approx(low)
    assert said in measure(run)["verdict"][1] and "over base at temperature 0.3" in summary_lines(measure(run))
    assert "Over base at temperature 0.3" in write_report(tmp_path)[1].read_text()


def test_a_study_compares_at_the_low_temperature_too(tmp_path):
    rows = {"uniform": [0.4, 0.6], "frontier": [0.6, 0.7]}
    nodes = {
        f"given.{seed}.{way}.1.examine": [result(n, [0.5]) | {"low": [one]} for n, one in zip("ab", low, strict=True)]
        for seed in (1, 2)
        for way, low in rows.items()
    }
    found = measure(run_of(tmp_path, nodes, STUDY + "examine: {low_temperature: 0.3}\n"))["study"]["measures"][
        "reward at low temperature"
    ]["rows"][0]
    assert found["levels"]["control"] == pytest.approx(0.5)
    assert found["methods"][0].difference.value == pytest.approx(0.15)


def test_the_threshold_of_a_pass_comes_from_the_config(tmp_path):
    run = run_of(tmp_path, {"base.examine": [result("a", [0.6, 0.6])]}, "name: x\nexamine: {pass_threshold: 0.7}\n")
    assert find(summarise(run)["held_out"], scheme="base")["pass@1"]["value"] == 0.0


def test_schemes_are_paired_on_items_and_training_seeds(tmp_path):
    """What differs between seeds alike for both schemes does not blur their difference."""
    rng, nodes = np.random.default_rng(0), {}
    level = rng.random(40)
    for replicate, shift in ((1, 0.0), (2, 0.1), (3, 0.2)):
        for scheme, gain in (("frontier", 0.05), ("uniform", 0.0)):
            rows = [result(f"i{n}", [0.6 * level[n] + shift + gain]) for n in range(40)]
            nodes[f"given.{replicate}.{scheme}.1.examine"] = rows
    row = find(summarise(run_of(tmp_path, nodes, STUDY))["held_out_differences"], scheme="frontier", over="uniform")
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.05, 0.05, 0.05))


def test_an_item_twice_makes_an_examination_unusable_and_says_so(tmp_path):
    run = run_of(tmp_path, {"base.examine": [result("a", [1.0]), result("a", [0.0])]})
    assert run.examinations == [] and "more than once" in run.problems[0]
    with pytest.raises(ValueError, match="more than once"):
        read_examination(tmp_path / "examinations" / "base.examine" / "results.jsonl")


def test_curves_are_read_once_a_step_and_failed_calls_are_missing(tmp_path):
    path = tmp_path / "held_out.jsonl"
    rows = [{"step": 0, "tokens": 0, "rewards": [0.0, None]}, {"step": 5, "tokens": 9, "rewards": [9.0, 9.0]}]
    write_jsonl(path, [*rows, {"step": 5, "tokens": 10, "rewards": [1.0, 0.5]}])
    steps, tokens, rewards = read_training(path)
    assert steps.tolist() == [0, 5] and tokens.tolist() == [0, 10] and rewards[1].tolist() == [1.0, 0.5]
    assert np.isnan(rewards[0, 1]) and read_training(tmp_path / "none")[2].shape == (0, 0)
    write_jsonl(path, [*rows, {"step": 6, "tokens": 11, "rewards": [1.0]}])
    with pytest.raises(ValueError, match="different numbers"):
        read_training(path)


@pytest.mark.parametrize("reward", ["text", np.inf, [1.0], True])
def test_rewards_are_finite_numbers(tmp_path, reward):
    path = tmp_path / "lines.jsonl"
    write_jsonl(path, [{"step": 0, "tokens": 0, "rewards": [0.0, reward]}])
    with pytest.raises(UserError, match="lines.jsonl, line 1: rewards.1"):
        read_training(path)
    write_jsonl(path, [result("a", [1.0], blank=[0.0, reward])])
    with pytest.raises(UserError, match="lines.jsonl, line 1: blank.1"):
        read_examination(path)


def test_curves_are_linear_between_examinations_over_the_range_that_all_replicates_cover():
    curve = make_curve([training([0, 10], [[0.0], [1.0]]), training([0, 4, 8], [[0.0], [0.4], [0.4]])], "steps")
    assert curve.places.tolist() == [0, 4, 8]
    assert curve.means == pytest.approx([0.0, 0.4, 0.6])
    assert make_curve([training([3], [[0.5, 0.7]])], "tokens").means == pytest.approx([0.6])
    assert make_curve([], "steps") is None


def with_trainings(path, trainings):
    run = run_of(path, {})
    run.trainings = trainings
    run.stages = [StageRow(one.node, status="done") for one in trainings]
    return run


def test_tokens_to_the_controls_final_reward_by_hand(tmp_path):
    uniform = training([0, 10], [[0.0, 0.0], [0.5, 0.5]])
    quick = training([0, 5, 10], [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]], "frontier")
    never = training([0, 10], [[0.0, 0.0], [0.4, 0.4]], "dynamic")
    rows = tokens_needed(with_trainings(tmp_path, [quick, uniform, never]), "uniform")
    shares = {row["method"]: (row["share"], row["low"], row["high"]) for row in rows}
    assert shares == {"frontier": (0.25, 0.25, 0.25), "uniform": (1.0, 1.0, 1.0), "dynamic": (None, None, None)}
    assert [row["seeds_reached"] for row in rows] == [1, 1, 0]
    assert tokens_needed(with_trainings(tmp_path, [quick, never]), "uniform") == []


def test_rewards_at_equal_tokens_by_hand_are_those_of_finished_trainings(tmp_path):
    short, long = training([0, 10], [[0.0], [0.5]]), training([0, 20], [[0.0], [1.6]], "frontier")
    begun = training([0, 1], [[0.0], [0.1]], "dynamic")
    run = with_trainings(tmp_path, [long, short, begun])
    run.stages[-1] = StageRow(begun.node, status="running")
    assert [(one.scheme, rewards.tolist()) for one, rewards in at_equal_tokens(run)] == [
        ("frontier", pytest.approx([0.8])),
        ("uniform", pytest.approx([0.5])),
    ]


def test_the_whole_summary_is_strict_json_the_same_each_time_and_says_what_was_shown(language_run, tmp_path):
    run = shutil.copytree(language_run, tmp_path / "run")
    summary, _ = write_report(run)
    text = (run / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == json.loads(json.dumps(summary))
    assert write_report(run)[0] == summary
    assert "scores" not in summary and summary["schemes"] == ["frontier"]
    scopes = {row["scope"] for row in summary["held_out"]}
    assert scopes == {"overall", "perception", "prediction", "interaction", "planning"}
    verdict = next(line for line in summary["verdict"] if line.startswith("Frontier: held-out reward"))
    assert "80 items)" in verdict and "Better than (interval above 0): " in verdict
    assert "the base +" in verdict
    printed = summary_lines(measure(load_run(run)))
    assert "frontier" in printed and "pass@4" in printed and "over base" in printed


def test_a_run_that_has_only_begun_has_what_there_is(language_run, tmp_path):
    run = shutil.copytree(language_run, tmp_path / "run")
    shutil.rmtree(run / "examinations")
    for folder in (run / "grpo").iterdir():
        if folder.name != "frontier.1.grpo":
            shutil.rmtree(folder)
    loaded = load_run(run)
    assert summarise(loaded)["verdict"] == ["No model was examined."]
    assert len(curves(loaded, "steps")) == 1 and loaded.on_language and not loaded.on_episodes
    assert summary_lines(measure(loaded)) == "No model was examined."
