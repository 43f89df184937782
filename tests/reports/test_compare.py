"""Scores and paired gains, by hand and on a synthetic run."""

import json
import shutil

import pytest

from rl_lab.reports.estimates import gain, gain_row, pair_episodes, score, score_row
from rl_lab.reports.numbers import find
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import EpisodeResult, load_run, parse_node
from rl_lab.reports.summary import measure, written
from tests.support.run_folders import build_run, write_jsonl


def summarise(path):
    return written(measure(load_run(path)))


def episode(seed, success, steps=100, task="handover_block", variant="clean"):
    return EpisodeResult(task, variant, seed, success, steps if success else 180, 180)


def policy(outcomes):
    return [episode(seed, success) for seed, success in enumerate(outcomes)]


def test_scores_by_hand():
    row = score_row(score([episode(0, True, 90), episode(1, True, 110), episode(2, False), episode(3, False)]))
    assert (row["n"], row["successes"], row["rate"]) == (4, 2, 0.5)
    assert (row["steps_over_successes"], row["capped_steps"]) == (100, (90 + 110 + 180 + 180) / 4)
    assert (row["low"], row["high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)


def test_steps_over_successes_are_absent_without_a_success():
    row = score_row(score([episode(0, False)]))
    assert row["steps_over_successes"] is None
    assert row["capped_steps"] == 180


def test_gain_counts_episodes_that_changed():
    before, after = policy([1, 1, 0, 0, 0, 0]), policy([1, 0, 1, 1, 1, 0])
    row = gain_row(gain(after, before))
    assert (row["n"], row["wins"], row["losses"]) == (6, 3, 1)
    assert row["difference"] == pytest.approx(2 / 6)
    assert row["p"] == pytest.approx(10 / 16)
    assert row["low"] < 0 < row["high"]


def test_steps_are_compared_where_both_policies_succeed():
    before = [episode(0, True, 120), episode(1, True, 130), episode(2, False), episode(3, True, 100)]
    after = [episode(0, True, 100), episode(1, True, 100), episode(2, True, 170), episode(3, False)]
    row = gain_row(gain(after, before))
    assert row["steps_where_both_succeed"]["value"] == -25
    assert row["steps_where_both_succeed"]["n"] == 2
    assert row["capped_steps"]["value"] == (-20 - 30 - 10 + 80) / 4


def test_episodes_pair_by_scene_and_not_by_order():
    pairs = pair_episodes([episode(2, True), episode(1, False)], [episode(1, True), episode(2, False)])
    assert [(a.seed, a.success, b.success) for a, b in pairs] == [(1, False, True), (2, True, False)]


@pytest.mark.parametrize("other", [[episode(1, True)], [episode(0, True, variant="randomized")], [], policy([1, 1])])
def test_pairing_different_seeds_is_refused_in_one_line(other):
    with pytest.raises(ValueError, match="evaluate both on the same seeds") as error:
        pair_episodes([episode(0, True)], other)
    assert "\n" not in str(error.value)


def test_names_of_nodes_give_method_and_round():
    assert parse_node("base.evaluate") == ("base", 0)
    assert parse_node("continued_sft.2.evaluate") == ("continued_sft", 2)
    assert parse_node("sft") == ("sft", 0)


def test_summary_has_every_method_and_round_and_gains_over_base_and_control(finished_run):
    summary = summarise(finished_run)
    overall = [(row["method"], row["round"]) for row in summary["scores"] if row["scope"] == "overall"]
    assert overall == [("base", 0), ("continued_sft", 1), ("continued_sft", 2), ("rpro", 1), ("rpro", 2)]
    over_base = find(summary["gains"], scope="overall", method="rpro", round=2, over="base")
    over_control = find(summary["gains"], scope="overall", method="rpro", round=2, over="continued_sft")
    rates = {(row["method"], row["round"]): row["rate"] for row in summary["scores"] if row["scope"] == "overall"}
    assert over_base["difference"] == pytest.approx(rates["rpro", 2] - rates["base", 0])
    assert over_control["difference"] == pytest.approx(rates["rpro", 2] - rates["continued_sft", 2])
    assert find(summary["gains"], method="rpro", round=1, over="continued_sft") is not None
    assert summary["alarms"] == 1
    assert summary["seed_overlap"] == []


def test_summary_of_several_tasks_and_variants_has_a_row_for_each(tmp_path):
    tasks, variants = ["handover_block", "lift_pot"], ["clean", "randomized"]
    run = build_run(tmp_path / "run", n=5, tasks=tasks, variants=variants, pairs=0, videos=0)
    summary = summarise(run)
    n = {row["scope"]: row["n"] for row in summary["scores"]}
    assert n["overall"] == 20
    assert n["lift_pot"] == 10
    assert n["lift_pot/randomized"] == 5


def test_verdict_names_numbers_and_claims_no_more_than_the_interval(tmp_path):
    run = build_run(tmp_path / "run", methods={"base": [0.5], "continued_sft": [0.5], "rpro": [0.5]}, pairs=0, videos=0)
    text = " ".join(summarise(run)["verdict"])
    assert "RPRO" in text
    assert "continued SFT" in text
    assert "the interval includes 0" in text


def test_gains_are_refused_but_scores_remain_when_an_evaluation_used_other_seeds(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    results = run / "episodes" / "rpro.2.evaluate" / "results.jsonl"
    results.write_text("".join(results.read_text().splitlines(keepends=True)[:-4]))
    summary = summarise(run)
    assert find(summary["scores"], method="rpro", round=2)["n"] == 26
    assert "same seeds" in find(summary["gains"], method="rpro", round=2, over="base")["refused"]


def test_a_scene_that_was_evaluated_twice_makes_the_evaluation_unusable(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    results = run / "episodes" / "base.evaluate" / "results.jsonl"
    results.write_text(results.read_text() + results.read_text().splitlines(keepends=True)[0])
    loaded = load_run(run)
    assert loaded.evaluation("base", 0) is None
    assert "more than once" in loaded.problems[0]


def test_evaluation_seeds_in_training_pairs_are_found(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    write_jsonl(run / "pairs" / "rpro.1.collect" / "index.jsonl", [{"id": "a", "seed": 2_000_003}])
    assert summarise(run)["seed_overlap"] == [2_000_003]


def test_summary_and_page_are_written_whole_and_the_summary_is_strict_json(finished_run, tmp_path):
    run = shutil.copytree(finished_run, tmp_path / "run")
    summary, page = write_report(run)
    text = (run / "summary.json").read_text()
    assert json.loads(text, parse_constant=lambda name: pytest.fail(name)) == json.loads(json.dumps(summary))
    assert page == run / "report.html"
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no config.yaml"):
        load_run(tmp_path)
    with pytest.raises(ValueError, match="no run folder"):
        load_run(tmp_path / "absent")


def test_an_interrupted_run_gives_what_is_there(tmp_path):
    (tmp_path / "config.yaml").write_text("name: smoke\nseed: 3\n")
    (tmp_path / "stages.json").write_text('{"nodes": [{"name": "sft", "status": "running", "seconds": null}]}')
    (tmp_path / "environment.json").write_text('{"torn')
    summary = summarise(tmp_path)
    assert summary["verdict"] == ["No policy was evaluated."]
    assert summary["unfinished"] == ["sft (running)"]


def test_what_learning_took_is_summed_over_rounds_where_methods_explore(tmp_path):
    build_run(tmp_path / "run", videos=0)
    assert summarise(tmp_path / "run")["experience"] == [], "of runs without a method that explores"
    for number in (1, 2):
        folder = tmp_path / "run" / "explorations" / f"rpro.{number}.explore"
        folder.mkdir(parents=True)
        (folder / "collection.json").write_text('{"policy_steps": 500}')
    collected = json.loads((tmp_path / "run/pairs/rpro.1.collect/collection.json").read_text())
    rows = {(row["method"], row["round"]): row for row in summarise(tmp_path / "run")["experience"]}
    pairs = sum(collected.get(name, 0) for name in ("policy_steps", "corrector_steps"))
    assert rows["rpro", 1]["environment_steps"] == 500 + pairs
    assert rows["rpro", 2]["environment_steps"] > rows["rpro", 1]["environment_steps"]
    assert rows["continued_sft", 2]["environment_steps"] == rows["continued_sft", 2]["corrections"] == 0
