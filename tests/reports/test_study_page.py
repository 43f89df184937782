"""The pages of an invented study."""

import json
import math
import shutil
from itertools import product

import numpy as np
import pytest
import yaml

from rl_lab.common.stats import student_interval, student_p
from rl_lab.config.study import read_spread
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from rl_lab.reports.study import Results, compare
from rl_lab.reports.study_power import expected_power
from rl_lab.reports.summary import measure, summary_lines
from tests.support.run_folders import write_jsonl

GAINS = {"pairs-10": [0.02, -0.03, 0.01, 0.00], "pairs-60": [0.30, 0.32, 0.28, 0.30]}
"""Of RPRO over the control, by world and training seed."""
EPISODES = 100
KINDS, ASKED = ("evaluate", "examine"), {"category": "c", "blank": [0.1]}


def results(path, rate, **more):
    rows = [
        {"task": "lift_pot", "variant": "clean", "seed": number, "success": number < round(rate * EPISODES)}
        | {"num_steps": 40, "step_limit": 100}
        | more
        for number in range(EPISODES)
    ]
    write_jsonl(path / "results.jsonl", rows)


@pytest.fixture
def study(tmp_path):
    path = tmp_path / "run"
    section = {"factors": {"collect.pairs": [10, 60]}, "methods": ["dagger_buffered", "rpro"]}
    section |= {"control": "dagger_buffered", "seeds": 4}
    config = {"name": "map", "seed": 0, "model": {"preset": "state"}, "study": section, "eval": {"episodes": EPISODES}}
    config |= {"env": {"tasks": ["lift_pot"], "variants": ["clean"]}}
    nodes = []
    for world, gains in GAINS.items():
        for seed, gain in enumerate(gains, start=1):
            for name, method, rate in (
                ("base.evaluate", None, 0.2),
                ("dagger_buffered.1.evaluate", "dagger_buffered", 0.5),
                ("rpro.1.evaluate", "rpro", 0.5 + gain),
            ):
                node = f"{world}.{seed}.{name}"
                nodes.append({"name": node, "kind": "evaluate", "method": method, "round": int(method is not None)})
                nodes[-1] |= {"status": "done", "hash": node, "seconds": 1.0, "reused": False}
                results(path / "episodes" / node, rate)
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "stages.json").write_text(json.dumps({"store": "s", "nodes": nodes}))
    (path / "environment.json").write_text(json.dumps({"substitutions": []}))
    return path


def test_differences_are_paired_and_their_intervals_are_over_seeds_and_episodes(study):
    summary = measure(load_run(study))["study"]
    few, many = (row["methods"][0] for row in summary["rows"])
    assert list(many.differences.values()) == pytest.approx(GAINS["pairs-60"])
    # Of 100 episodes 28 are won with every seed, 2 with three, 2 with one; of four seeds the rates hardly differ.
    won = [1.0] * 28 + [0.75] * 2 + [0.25] * 2 + [0.0] * 68
    known, over_seeds = student_interval(won), student_interval(GAINS["pairs-60"])
    assert (many.difference.low, many.difference.high) == pytest.approx((known.low, known.high))
    assert known.low < over_seeds.low and many.p == pytest.approx(student_p(GAINS["pairs-60"]))
    assert many.is_decided and not few.is_decided
    assert summary["rows"][0]["levels"] == pytest.approx({"base": 0.2, "control": 0.5})
    spreads = [np.std(gains, ddof=1) for gains in GAINS.values()]
    assert summary["spread"] == pytest.approx(np.sqrt(np.mean(np.square(spreads))))


def test_the_mean_over_all_worlds_is_compared_apart(study):
    summary = measure(load_run(study))
    (row,) = summary["study"]["over_all"]
    (one,) = row["methods"]
    means = np.mean(list(GAINS.values()), axis=0)
    assert row["worlds"] == list(GAINS) and list(one.differences.values()) == pytest.approx(means)
    known = student_interval(means)
    assert (one.difference.value, one.p) == pytest.approx((known.value, one.corrected_p))
    assert one.difference.low <= known.low and one.mean == pytest.approx(0.5 + known.value)
    assert summary["study"]["spread"] == pytest.approx(
        np.sqrt(np.mean([np.var(gains, ddof=1) for gains in GAINS.values()]))
    )
    assert [
        line for line in summary["verdict"] if "RPRO over DAgger-Buffered in the mean of 2 worlds: +15 points" in line
    ]
    write_report(study)
    assert "mean of 2" in (study / "study.html").read_text()
    assert any("mean of 2 worlds " in line for line in summary_lines(summary).splitlines())


def test_factors_of_one_value_are_one_table_of_worlds_with_the_mean_last(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"]["factors"] = {"collect.pairs": [10], "demos.pairs": [60]}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    write_report(study)
    page = (study / "study.html").read_text()
    found = [page.index(text) for text in ("Worlds</h2>", "1. collect.pairs 10", "2. demos.pairs 60", "3. mean of 2")]
    assert found == sorted(found) and "<h2>collect.pairs" not in page


def test_seeds_that_agree_and_episodes_that_never_change_leave_no_point(study):
    for seed in (1, 2, 3, 4):
        results(study / "episodes" / f"pairs-10.{seed}.rpro.1.evaluate", 0.5)
    few = measure(load_run(study))["study"]["rows"][0]["methods"][0]
    half = 1.9842 * 2**0.5 / 102  # t_{0.975, 99}, and one of 102 episodes won and one lost
    assert (few.difference.low, few.difference.high) == pytest.approx((-half, half), rel=1e-4)
    assert few.p == 1 and few.detectable == pytest.approx((1.9842 + 0.8453) * 2**0.5 / 102, rel=1e-3)


def test_success_over_environment_steps_where_methods_explore(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"]["factors"] = {"collect.pairs": [60]}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    assert measure(load_run(study))["study"]["experience"] == []
    stages = json.loads((study / "stages.json").read_text())
    for seed in (1, 2, 3, 4):
        node = f"pairs-60.{seed}.rpro.1.explore"
        row = {"name": node, "kind": "explore", "method": "rpro", "round": 1, "status": "done", "seconds": 10.0 * seed}
        stages["nodes"].append(row | {"hash": node, "reused": False})
        (study / "explorations" / node).mkdir(parents=True)
        (study / "explorations" / node / "collection.json").write_text(json.dumps({"policy_steps": 1000 * seed}))
    (study / "stages.json").write_text(json.dumps(stages))
    rows = {row["method"]: row for row in measure(load_run(study))["study"]["experience"]}
    assert (rows["base"]["environment_steps"], rows["base"]["success"]["value"]) == (0, pytest.approx(0.2))
    assert (rows["rpro"]["environment_steps"], rows["rpro"]["seconds"], rows["rpro"]["seeds"]) == (2500, 25, 4)
    known = student_interval([0.8, 0.82, 0.78, 0.8])
    assert (rows["rpro"]["success"]["low"], rows["rpro"]["success"]["high"]) == pytest.approx((known.low, known.high))
    write_report(study)
    assert "Success over environment steps" in (study / "study.html").read_text()
    for seed in (2, 3, 4):
        (study / "episodes" / f"pairs-60.{seed}.rpro.1.evaluate" / "results.jsonl").unlink()
    write_report(study)
    rows = json.loads((study / "study.json").read_text())["experience"]
    assert [(row["method"], row["seeds"], row["success"]["low"]) for row in rows if row["method"] == "rpro"] == [
        ("rpro", 1, None)
    ]


def test_methods_are_held_against_the_base_they_start_from(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"] |= {"control": "base"}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    row = measure(load_run(study))["study"]["rows"][1]
    assert [one.method for one in row["methods"]] == ["dagger_buffered", "rpro"]
    assert list(row["methods"][0].differences.values()) == pytest.approx([0.3] * 4)
    assert row["levels"]["control"] == pytest.approx(0.2)
    write_report(study)
    assert "DAgger-Buffered over base" in (study / "study.html").read_text()


def test_a_world_that_two_factors_have_counts_and_speaks_once(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config |= {"collect": {"pairs": 60}, "sft": {"steps": 300}}
    config["study"]["factors"] |= {"sft.steps": [300]}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    alone = measure(load_run(study))["study"]["rows"]
    for node in list((study / "episodes").iterdir()):
        if node.name.startswith("pairs-60."):
            shutil.copytree(node, study / "episodes" / node.name.replace("pairs-60", "steps-300"))
    stages = json.loads((study / "stages.json").read_text())
    more = [node for node in stages["nodes"] if node["name"].startswith("pairs-60.")]
    stages["nodes"] += [node | {"name": node["name"].replace("pairs-60", "steps-300")} for node in more]
    (study / "stages.json").write_text(json.dumps(stages))
    summary = measure(load_run(study))
    rows = summary["study"]["rows"]
    assert [row["methods"] for row in rows[:2]] == [row["methods"] for row in alone[:2]]
    assert rows[2]["methods"] == rows[1]["methods"] and [row["repeats"] for row in rows] == [False, False, True]
    assert len([line for line in summary["verdict"] if "60: +30 points" in line]) == 1
    assert any("1 of 2 comparisons" in line for line in summary["verdict"])
    assert summary["study"]["over_all"][0]["worlds"] == ["pairs-10", "pairs-60"]


def test_the_spread_of_a_study_plans_the_next_one(study):
    write_report(study)
    known = read_spread(str(study))
    assert (known["n"], known["replicates"]) == (100, 4) and known["source"].endswith("study.json")
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"]["spread"] = known
    expected = expected_power(config)
    assert expected["is_known"] and expected["spread"] == pytest.approx(
        (known["seeds"] ** 2 + known["rest"] ** 2 / 100) ** 0.5
    )


def test_the_page_says_that_it_is_a_study_and_has_the_data_behind(study):
    written, path = write_report(study)
    page = (study / "study.html").read_text()
    assert "A study with the simulator&#39;s truth" in page or "A study with the simulator's truth" in page
    assert "RPRO over DAgger-Buffered at collect.pairs 60: +30 points" in page and "<svg" in page
    assert page.count("pairs-60") >= 3  # a line each of base, control and method
    assert "study.html" in path.read_text() and written["verdict"][0].startswith("RPRO over DAgger-Buffered")
    found = json.loads((study / "study.json").read_text())
    assert found["means"]["pairs-60"]["rpro"] == pytest.approx({"1": 0.8, "2": 0.82, "3": 0.78, "4": 0.8})
    assert "Not told apart from DAgger-Buffered: 1 of 2 comparisons" in written["verdict"][1]


def test_the_page_names_a_base_policy_where_there_is_one(study):
    write_report(study)
    assert "Base policy and" in (study / "study.html").read_text()
    for path in study.glob("episodes/*.base.evaluate"):
        shutil.rmtree(path)
    write_report(study)
    assert "ase policy and" not in (study / "study.html").read_text()


def test_the_terminal_shows_the_map(study):
    lines = summary_lines(measure(load_run(study)))
    assert "collect.pairs 60" in lines and "+30 (+21 to +39)*" in lines


def test_a_study_that_is_under_way_shows_what_there_is(study):
    for seed in (2, 3, 4):
        (study / "episodes" / f"pairs-60.{seed}.rpro.1.evaluate" / "results.jsonl").unlink()
    summary = measure(load_run(study))["study"]
    assert summary["rows"][1]["methods"][0].difference is None
    write_report(study)
    assert "one seed" in (study / "study.html").read_text()
    for path in study.glob("episodes/*.rpro.1.evaluate/results.jsonl"):
        path.unlink()
    assert measure(load_run(study))["verdict"] == ["Still to be measured: 2 of 2 comparisons."]


def test_ways_to_execute_chunks_are_measured_by_steps_jerk_and_stalls_too(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    section = {"compare": "eval.join", "methods": ["wait", "stitch"], "control": "wait", "seeds": 4}
    config["study"] = section | {"factors": {"eval.latency": [2]}}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    nodes = [
        {"name": f"latency-2.{seed}.{way}.evaluate", "kind": "evaluate", "method": way, "status": "done"}
        for seed in range(1, 5)
        for way in section["methods"]
    ]
    (study / "stages.json").write_text(json.dumps({"store": "s", "nodes": nodes}))
    shutil.rmtree(study / "episodes")
    for number, node in enumerate(nodes):
        jerk, stalled = (3.0 + 0.1 * (number % 3), 0) if node["method"] == "stitch" else (2.0, 9)
        results(study / "episodes" / node["name"], 0.5, extra={"jerk": jerk, "stalled_steps": stalled})
    summary, _ = write_report(study)
    found = json.loads((study / "study.json").read_text())["measures"]
    (jerk,), (stalled,), (steps,) = (found[name]["rows"][0]["methods"] for name in ("jerk", "stalled steps", "steps"))
    assert jerk["mean"] == pytest.approx(3.1, abs=0.1)
    assert jerk["difference"]["low"] > 0.5 and jerk["corrected_p"] < 0.05
    assert stalled["difference"] == {"value": -9.0, "low": -9.0, "high": -9.0} and steps["difference"]["value"] == 0
    assert found["steps"]["means"]["latency-2"]["wait"]["1"] == 70, "failures count as all steps that are allowed"
    page = (study / "study.html").read_text()
    assert '<b class="worse">+1' in page and '<b class="better">−9' in page
    assert "eval.latency: jerk" in page and "base policy" not in page
    assert summary["verdict"][0].startswith("Not told apart from wait: 1 of 1 comparisons")


def test_arms_of_joint_training_are_held_against_their_start_in_both_skills(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"] = {"compare": "joint.arms", "methods": ["grpo_alone", "mixed"], "control": "base", "seeds": 3}
    config |= {"questions": {"held_out": 40}, "examine": {"pass_threshold": 0.5}}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(study / "episodes")
    nodes = []
    for seed, (arm, success, reward) in product(
        range(1, 4), ((None, 0.5, 0.4), ("grpo_alone", 0.1, 0.6), ("mixed", 0.5, 0.4))
    ):
        name = f"given.{seed}.{arm or 'base'}"
        nodes += [
            {"name": f"{name}.{kind}", "kind": kind, "method": arm, "round": int(arm is not None)} for kind in KINDS
        ]
        results(study / "episodes" / f"{name}.evaluate", success)
        asked = [ASKED | {"item": f"{n}", "rewards": [reward + 0.01 * (n % 5)]} for n in range(40)]
        write_jsonl(study / "examinations" / f"{name}.examine" / "results.jsonl", asked)
    nodes = [node | {"status": "done", "hash": node["name"], "seconds": 1.0, "reused": False} for node in nodes]
    (study / "stages.json").write_text(json.dumps({"store": "s", "nodes": nodes}))
    write_report(study)
    found = json.loads((study / "study.json").read_text())
    (alone, mixed), (_, kept) = found["rows"][0]["methods"], found["measures"]["reward"]["rows"][0]["methods"]
    assert alone["difference"]["value"] == pytest.approx(-0.4) and alone["corrected_p"] < 0.05
    assert mixed["difference"]["value"] == kept["difference"]["value"] == 0 and kept["n"] == 40
    assert found["means"]["given"]["base"]["2"] == 0.5
    page = (study / "study.html").read_text()
    assert "The experiment: reward" in page and "ase policy and" not in page, "the base is the control"


def test_variants_on_questions_have_what_pictures_give_beside_their_reward(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"] = {"variants": {"none": {}, "code": {}}, "measure": "reward", "control": "none", "seeds": 3}
    config |= {"questions": {"held_out": 40}, "examine": {"pass_threshold": 0.5}}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    shutil.rmtree(study / "episodes")
    nodes = []
    for seed, (name, seen, blank) in product(range(1, 4), (("none", 0.5, 0.4), ("code", 0.6, 0.2))):
        node = f"given.{seed}.{name}.examine"
        nodes.append({"name": node, "kind": "examine", "method": name, "status": "done"})
        asked = [ASKED | {"item": f"{n}", "rewards": [seen + 0.01 * (n % 5)], "blank": [blank]} for n in range(40)]
        write_jsonl(study / "examinations" / node / "results.jsonl", asked)
    (study / "stages.json").write_text(json.dumps({"store": "s", "nodes": nodes}))
    write_report(study)
    found = json.loads((study / "study.json").read_text())
    (code,), (gain,) = found["rows"][0]["methods"], found["measures"]["gain over grey pictures"]["rows"][0]["methods"]
    assert code["difference"]["value"] == pytest.approx(0.1) and gain["difference"]["value"] == pytest.approx(0.3)
    assert gain["mean"] == pytest.approx(0.42) and "gain over grey pictures" in (study / "study.html").read_text()


def test_variants_show_what_their_training_took(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    config["study"] = {"variants": {"one": {}, "four": {}}, "control": "one", "seeds": 2}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"node": f"given.{seed}.{name}.sft", "step": step, "seconds/cpu": cpu_s}
        for name, cpu_s in (("one", 2.0), ("four", 0.5))
        for seed, step in product((1, 2), (1, 2, 2))  # a step that was repeated counts once
    ]
    write_jsonl(study / "metrics.jsonl", lines)
    write_report(study)
    found, page = json.loads((study / "study.json").read_text()), (study / "study.html").read_text()
    assert found["training_cpu_s"]["given"] == {"one": {"1": 4.0, "2": 4.0}, "four": {"1": 1.0, "2": 1.0}}
    assert "What training took" in page and "25 %" in page


def test_worlds_are_paired_before_they_are_averaged_where_a_value_is_missing():
    easy, hard = ({seed: dict.fromkeys(range(20), rate) for seed in (1, 2)} for rate in (0.75, 0.25))
    lacking = {seed: {n: math.nan if n < 5 else 0.25 for n in range(20)} for seed in (1, 2)}
    found = {"a": Results({"own": easy, "control": easy}), "b": Results({"own": hard, "control": lacking})}
    one = compare(found, ["a", "b"], "own", "control")
    assert list(one.differences.values()) == [0, 0] and one.n == 20
    assert one.mean == pytest.approx((5 * 0.75 + 15 * 0.5) / 20)
