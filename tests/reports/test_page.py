"""`report.html` from synthetic run folders: complete, self-contained, tolerant, honest about what is missing."""

import json
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.reports.numbers import spread
from rl_lab.reports.pages import pairs as pair_module
from rl_lab.reports.pages.charts import Axis, Series, chart, make_scale, nice_ticks, thin
from rl_lab.reports.pages.markup import ENVIRONMENT, escape, parts
from rl_lab.reports.pages.pairs import choose, distinct_sets, load_pairs
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import Pair, PairSet, load_run
from tests.support.pages import Outline, outline_of, page_of, visible
from tests.support.run_folders import build_run, summarise, write_jsonl


@pytest.fixture(scope="module")
def page(finished_run):
    return page_of(finished_run)


@pytest.fixture
def copied(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def test_page_is_well_formed_and_its_links_have_targets(page):
    links = [value for name, key, value in outline_of(page).attributes if (name, key) == ("a", "href")]
    assert len(links) >= 9


def test_page_needs_no_network(page):
    policy = [value for _, key, value in outline_of(page).attributes if key == "content" and "default-src" in value]
    assert policy[0].startswith("default-src 'none'; img-src data:")
    assert not re.search(r"@import|<link(?! rel=.icon. href=.data:,.>)|url\((?!\$\{)", page)


def test_page_has_every_part_of_the_report(page):
    text = visible(page)
    for part in ("What stood in for what", "RoboTwin", "Success and completion steps", "Failure modes", "Stages"):
        assert part in text
    for part in ("Implicit rewards of winner and loser", "Learning curves", "From failure to success", "Alarms"):
        assert part in text
    assert "RPRO, round 2" in text
    assert "continued SFT, round 1" in text
    assert "dropped, 1 sub-goal reached" in text
    assert "reused" in text
    assert "collapse" in text
    assert "6 of 6 pairs are in this page" in text


def test_the_verdict_comes_first_and_links_to_what_stood_in(page):
    places = ["solves", 'href="#stand-ins"', "tabletop for RoboTwin", 'id="results"', "What stood in for what"]
    assert [page.index(place) for place in places] == sorted(page.index(place) for place in places)


def test_page_shows_the_numbers_of_the_summary(finished_run, page):
    summary = summarise(load_run(finished_run))
    final = [row for row in summary["scores"] if (row["method"], row["scope"]) == ("rpro", "overall")][-1]
    assert f"{final['successes']} of {final['n']}" in visible(page)
    for sentence in summary["verdict"]:
        assert sentence.replace(" -", " \u2212").split("p <")[0].split("p =")[0] in visible(page)


def test_text_of_runs_is_escaped(copied):
    (copied / "config.yaml").write_text("name: <script>alert(1)</script>\nmethod: rpro\n")
    index = copied / "pairs" / "rpro.1.collect" / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    write_jsonl(index, [{**row, "instruction": "</script><img src=x>"} for row in rows])
    page = page_of(copied)
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert Outline(page).identifiers.count("pair-data") == 1


def test_data_for_scripts_cannot_end_its_element():
    json_script = parts.json_script
    assert "<" not in json_script("x", {"a": "</script>"}).removeprefix('<script type="application/json" id="x">')[:-9]
    with pytest.raises(ValueError, match="JSON compliant"):
        json_script("x", float("nan"))


@given(st.text(), st.text())
def test_elements_give_back_text_and_attributes_as_they_were(text, title):
    text, title = (value.replace("\r", "").replace("\0", "") for value in (text, title))
    template = ENVIRONMENT.from_string('<p title="{{ title }}">{{ text }}</p>')
    outline = Outline(template.render(title=title, text=text))
    assert "".join(outline.text) == text
    assert outline.attributes == [("p", "title", title)]
    assert escape(escape(text)) == escape(text)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("episodes", "No evaluation is in this run folder."),
        ("pairs", "No preference pair is in this run folder."),
        ("videos", "No videos are in this run folder."),
        ("metrics.jsonl", "metrics.jsonl has no training step."),
        ("stages.json", "No stages.json is in this run folder."),
        ("environment.json", "does not say what stood in for what"),
    ],
)
def test_a_missing_part_is_said_and_the_rest_is_there(copied, part, message):
    path = copied / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = visible(page_of(copied))
    assert message in text
    assert "Environment and configuration" in text


def test_a_run_with_nothing_but_a_config_has_a_page(tmp_path):
    (tmp_path / "config.yaml").write_text("name: bare\n")
    summary, page = write_report(tmp_path)
    assert "No policy was evaluated." in visible(page.read_text())
    assert summary["scores"] == []


def test_unusable_files_and_unfinished_stages_are_named(copied):
    (copied / "environment.json").write_text("{torn")
    (copied / "pairs" / "rpro.1.collect" / "pair-0000.npz").write_bytes(b"no archive")
    (copied / "videos" / "rescued" / "0-after.webm").unlink()
    stages = json.loads((copied / "stages.json").read_text())
    stages["nodes"][-1]["status"] = "stopped"
    (copied / "stages.json").write_text(json.dumps(stages))
    text = visible(page_of(copied))
    assert "This report is incomplete." in text
    assert "environment.json cannot be read" in text
    assert "pair-0000 of rpro.1.collect cannot be read" in text
    assert "a video listed in rescued is missing" in text
    assert "rpro.2.evaluate (stopped)" in text


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("pairs/rpro.1.collect/index.jsonl", "trigger", "\ud800"),
        ("pairs/rpro.1.collect/index.jsonl", "seed", []),
        ("pairs/rpro.1.collect/index.jsonl", "id", None),
        ("videos/rescued/index.jsonl", "before", {}),
        ("videos/rescued/index.jsonl", "task", "\ud800"),
        ("episodes/base.evaluate/results.jsonl", "task", "\ud800"),
        ("metrics.jsonl", "method", "\ud800"),
        ("environment.json", "commit", "\ud800"),
    ],
)
def test_a_damaged_value_is_named_and_left_out(copied, name, key, value):
    first, *others = (copied / name).read_text().splitlines() if name.endswith("l") else ["{}"]
    (copied / name).write_text("\n".join([json.dumps(json.loads(first) | {key: value}), *others, ""]))
    assert f"{name} cannot be read" in visible(page_of(copied))


def test_videos_outside_their_folder_are_not_embedded(copied):
    index = copied / "videos" / "rescued" / "index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    write_jsonl(index, [{**rows[0], "after": "../../config.yaml"}])
    assert "a video listed in rescued is missing" in visible(page_of(copied))


def test_page_of_long_runs_with_large_images_stays_small(tmp_path):
    run = build_run(tmp_path / "run", n=5, pairs=14, pair_steps=24, size=112, steps=4000)
    summary, page = write_report(run)
    assert page.stat().st_size < 5_000_000
    assert "24 of 28 pairs are in this page" in visible(page.read_text())


def test_pairs_are_spread_over_the_collection_and_sets_take_turns(tmp_path):
    assert spread(57, 12)[0] == 0
    assert spread(57, 12)[-1] == 56
    assert len(spread(57, 12)) == 12
    assert spread(3, 12) == [0, 1, 2]
    assert spread(0, 12) == []
    sets = [PairSet(n, "rpro", 1, tmp_path, [Pair(i) for i in range(count)], {}) for n, count in (("a", 3), ("b", 1))]
    assert [(s.pair_set.node, s.pair.id) for s in choose(sets)] == [("a", 0), ("b", 0), ("a", 1), ("a", 2)]


def test_methods_that_share_a_collection_show_it_once(tmp_path):
    sets = [
        PairSet("rpro.1.collect", "rpro", 1, tmp_path, [Pair("p")], {}, "same"),
        PairSet("dagger.1.collect", "dagger", 1, tmp_path, [Pair("p")], {}, "same"),
        PairSet("dagger.2.collect", "dagger", 2, tmp_path, [Pair("p")], {}, "other"),
    ]
    distinct = distinct_sets(sets)
    assert list(distinct) == ["rpro.1.collect", "dagger.2.collect"]
    assert [other.method for other in distinct["rpro.1.collect"][1]] == ["dagger"]


def test_browser_data_is_the_recorded_trajectory_in_millimetres(finished_run):
    run = load_run(finished_run)
    data = load_pairs(run)[0]
    with np.load(run.pairs[0].folder / f"{data['id']}.npz") as arrays:
        poses = arrays["loser_poses"]
    assert data["loser"]["steps"] == len(poses) - 1
    np.testing.assert_allclose(data["loser"]["arms"][1], 1000 * poses[:, 8:11], atol=0.5)
    assert data["winner"]["frames"][0] == 0
    assert data["winner"]["frames"][-1] == data["winner"]["steps"] - 1


def test_the_byte_budget_of_pairs_is_kept(finished_run):
    run = load_run(finished_run)
    assert len(load_pairs(run)) == 6
    one = len(json.dumps(load_pairs(run)[0]))
    assert len(load_pairs(run, budget=2 * one)) < 6
    assert pair_module.BUDGET_BYTES < 15_000_000


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside_the_axis(low, span):
    high = low + span
    if high > low:
        ticks = nice_ticks(low, high)
        slack = 1e-6 * max(1.0, abs(low), abs(high))
        assert 1 <= len(ticks) <= 12
        assert all(low - slack <= tick <= high + slack for tick in ticks)


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_every_value_lies_inside_its_axis(values):
    for may_be_log in (False, True):
        scale = make_scale(values, Axis("y", may_be_log=may_be_log), 0, 100)
        assert all(-1e-6 <= scale(value) <= 100 + 1e-6 for value in values)


def test_long_curves_are_thinned_to_means_that_keep_the_overall_mean():
    x, y = list(range(1000)), [float(i % 7) for i in range(1000)]
    few_x, few_y = thin(x, y, 250)
    assert len(few_x) == len(few_y) == 250
    assert np.mean(few_y) == pytest.approx(np.mean(y))
    assert thin(x[:10], y[:10], 250) == (x[:10], y[:10])


def test_a_chart_without_points_is_nothing_and_one_with_a_single_point_is_drawn():
    assert chart("empty", [Series("a", [], [])], Axis("x"), Axis("y")) == ""
    assert "circle" in chart("one", [Series("a", [1], [2], labels=["here"])], Axis("x"), Axis("y"))
