"""`sweep.html` and `sweep.json` of an invented sweep."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import yaml

from rl_lab.config.spread import read_spread
from rl_lab.files import read_json_lines
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.pages.sweep import holds_for
from rl_lab.reports.sweep import Course, course_alarms
from tests.support.language_run_folders import build_language_run
from tests.support.questions import make_item
from tests.support.run_folders import write_jsonl

SPREAD = {"items": 0.05, "seeds": 0.02, "rest": 0.2, "n": 300, "replicates": 3, "source": "three earlier seeds"}
GAINS = {"verifier": 0.05, "judge": 0.35, "form": 0.05, "none": 0.0}


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Run folder of a sweep in which one variant of four failed with one seed."""
    path = build_language_run(tmp_path_factory.mktemp("sweep") / "run", schemes=GAINS, items=120)
    config = yaml.safe_load((path / "config.yaml").read_text())
    config |= {"sweep": {"baseline": "verifier", "variants": {name: {} for name in GAINS}, "spread": SPREAD}}
    config |= {"questions": {"held_out": 120}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    stages = json.loads((path / "stages.json").read_text())
    failed = next(row for row in stages["nodes"] if row["name"] == "none.3.grpo")
    failed["status"] = "failed"
    (path / "examinations" / "none.3.examine" / "results.jsonl").unlink()
    (path / "stages.json").write_text(json.dumps(stages))
    write_report(path)
    return path


def rows(path):
    return {row["variant"]: row for row in json.loads((path / "sweep.json").read_text())["variants"]}


def test_a_clear_gain_is_named_and_an_equal_reward_is_not(sweep):
    found = rows(sweep)
    assert found["judge"]["verdict"]["standing"] == "better"
    assert found["form"]["verdict"]["standing"] == "not distinguishable"
    assert "verdict" not in found["verifier"]


def test_intervals_are_corrected_for_the_three_comparisons(sweep):
    assert rows(sweep)["form"]["verdict"]["level"] == pytest.approx(1 - 0.05 / 3)


def test_a_failed_seed_is_named_and_the_others_count(sweep):
    row = rows(sweep)["none"]
    assert row["failed"] == ["none.3.grpo"]
    assert row["verdict"]["seeds"] == 2
    assert row["verdict"]["scope"] == "items only"


def test_only_a_difference_that_was_shown_holds_for_somebody(sweep):
    found = rows(sweep)
    assert found["form"]["verdict"]["scope"] and holds_for(found["form"]["verdict"]) == ""
    assert holds_for(found["judge"]["verdict"]) == found["judge"]["verdict"]["scope"]


def test_what_could_be_expected_is_said(sweep):
    expected = json.loads((sweep / "sweep.json").read_text())["expected"]
    assert expected["seeds_needed"] > 3
    assert "Known before the start (three earlier seeds)" in (sweep / "sweep.html").read_text()


def test_the_spread_of_a_sweep_plans_the_next_one(sweep):
    measured = [row["verdict"]["spread"]["seeds"] for row in rows(sweep).values() if row.get("verdict")]
    for place in (sweep, sweep / "sweep.json"):
        known = read_spread(str(place))
        assert known["seeds"] == pytest.approx(np.sqrt(np.mean(np.square(measured))))
        assert (known["n"], known["replicates"]) == (120, 2)
        assert known["source"].endswith("sweep.json")


def test_a_spread_that_nobody_measured_is_refused(tmp_path):
    (tmp_path / "sweep.json").write_text('{"name": "s", "variants": [{"verdict": {"spread": null}}]}')
    with pytest.raises(ValueError, match="measured no spread: that takes two training seeds"):
        read_spread(str(tmp_path))
    with pytest.raises(ValueError, match=r"nowhere.json is no sweep.json \(FileNotFoundError\)"):
        read_spread("nowhere.json")


def test_the_numbers_of_curves_and_categories_are_in_the_file_too(sweep):
    curves = json.loads((sweep / "sweep.json").read_text())["curves"]
    assert curves.keys() == GAINS.keys()
    for points in curves.values():
        assert [point["step"] for point in points] == sorted(point["step"] for point in points)
        assert all(point["low"] <= point["value"] <= point["high"] for point in points)
    found = rows(sweep)
    assert found["verifier"]["means"].keys() == found["judge"]["categories"].keys()
    page = (sweep / "sweep.html").read_text()
    assert "judge, over it" in page


def test_a_reward_call_that_failed_is_on_the_page(sweep, tmp_path):
    path = tmp_path / "run"
    shutil.copytree(sweep, path)
    text = "reward call failed: judge on answer 0 to q (time-out: late); such answers are masked"
    with (path / "metrics.jsonl").open("a") as file:
        for step in (1, 2):
            line = {"node": "judge.1.grpo", "method": "judge", "replicate": 1, "step": step, "alarm": text}
            file.write(json.dumps(line) + "\n")
    write_report(path)
    assert rows(path)["judge"]["failures"] == [text]
    assert text in (path / "sweep.html").read_text()


def test_flips_cross_the_threshold(sweep):
    flips = rows(sweep)["judge"]["flips"]
    assert flips
    assert all((flip["variant"] >= 0.5) != (flip["baseline"] >= 0.5) for flip in flips)


def test_a_flip_shows_of_each_side_the_answer_nearest_to_its_mean(sweep, tmp_path):
    path = shutil.copytree(sweep, tmp_path / "run")
    found = {"verifier": defaultdict(list), "judge": defaultdict(list)}
    for file in path.glob("examinations/*/results.jsonl"):
        lines = read_json_lines(file)
        for line in lines:
            line["answers"] = [f"reward {reward}" for reward in line["rewards"]]  # an answer says what it was worth
            if (name := file.parent.name.split(".")[0]) in found:
                found[name][line["item"]] += [reward for reward in line["rewards"] if reward is not None]
        write_jsonl(file, lines)
    answer = {"point": [10, 20], "mask": {"size": [2, 2], "counts": [1, 3]}}
    items = [make_item(number, id=line["item"], answer=answer) for number, line in enumerate(lines)]
    (path / "questions" / "questions").mkdir(parents=True, exist_ok=True)
    write_rows(path / "questions" / "questions" / "held_out.arrow", map(item_row, items))
    write_report(path)
    page = (path / "sweep.html").read_text()
    flip = next(flip for flip in rows(path)["judge"]["flips"] if flip["variant"] > flip["baseline"])
    for name, mean in (("judge", flip["variant"]), ("verifier", flip["baseline"])):
        nearest = min(found[name][flip["item"]], key=lambda reward: abs(reward - mean))
        assert f"<b>{name} (mean {mean:.3f}): </b>reward {nearest}</div>" in page
    assert "[10, 20]" in page and "counts" not in page


def test_the_page_has_a_line_a_variant(sweep):
    page = (sweep / "sweep.html").read_text()
    assert "judge: better than verifier by" in page
    assert "form: not distinguishable from verifier" in page
    assert "none.3.grpo failed" in page
    report = (sweep / "report.html").read_text()
    assert 'href="sweep.html"' in report and "judge: better than verifier by" in report


def test_a_run_that_sweeps_nothing_has_no_such_page(tmp_path):
    path = build_language_run(tmp_path / "run", schemes={"frontier": 0.1}, replicates=1, items=20, steps=10)
    write_report(path)
    assert not (path / "sweep.html").exists()


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
