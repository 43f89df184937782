"""The report of a run on language: complete, self-contained, small, and working in headless Chromium."""

import json
import shutil

import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.files import append_json_line, read_json_lines
from rl_lab.records.rollouts import RolloutStore
from rl_lab.report import main
from rl_lab.reports.metrics import define
from rl_lab.reports.pages import rollouts
from rl_lab.reports.pages.rollouts import choose_groups
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from tests.support.language_run_folders import build_language_run
from tests.support.pages import CHROMIUM, found_in_browser, outline_of, page_of, visible
from tests.support.questions import HOSTILE
from tests.support.run_folders import as_study, summarise, write_jsonl


@pytest.fixture(scope="module")
def page(language_run):
    return page_of(language_run)


@pytest.fixture
def copied(language_run, tmp_path):
    return shutil.copytree(language_run, tmp_path / "run")


def groups_of(page):
    text = page.split('<script type="application/json" id="rollouts-data">')[1].split("</script>")[0]
    return json.loads(text)["groups"]


def test_page_is_well_formed_needs_no_network_and_stays_small(page):
    assert outline_of(page)
    assert len(page) < 6_000_000


def test_page_has_the_parts_of_language_and_none_of_episodes(page):
    text = visible(page)
    for part in ("Held-out questions", "Paired differences of reward", "Reward by category", "pass@4", "grey pictures"):
        assert part in text
    for part in (
        "Reward by part",
        "Reward by type",
        "Idle share",
        "Observed items",
        "Moves between bands",
        "Staleness",
    ):
        assert part in text
    for part in ("Entropy", "Groups refilled", "Mismatch", "clipped", "answer: timeout", "cold start", "Rollouts"):
        assert part in text
    for part in ("Success", "Failure modes", "Preference pairs", "From failure to success", "Implicit rewards"):
        assert part not in text
    assert "base policy" in text and "With one replicate the interval speaks of items alone" in text
    assert "Held-out reward while training" in text


def test_every_logged_name_is_defined(language_run, page):
    names = {name for record in load_run(language_run).metrics for name in record}
    assert [name for name in names - {"node", "method", "round", "step", "time"} if not define(name)] == []
    assert "not defined" not in visible(page)


@pytest.mark.parametrize("reward", [0.0, 1.0, None])
def test_a_run_whose_rewards_are_all_the_same_or_all_failed_has_a_page(tmp_path, reward):
    schemes = {"frontier": 0.3, "uniform": 0.1}
    run = build_language_run(tmp_path / "run", schemes=schemes, seeds=2, items=4, steps=4)
    as_study(run, compare="curriculum.scheme", methods=[*schemes], control="uniform", seeds=2)
    for path in [*run.glob("examinations/*/results.jsonl"), *run.glob("grpo/*/held_out.jsonl")]:
        rows = read_json_lines(path)
        write_jsonl(path, [row | {name: [reward] * 4 for name in ("rewards", "blank") if name in row} for row in rows])
    text = visible(write_report(run)[1].read_text())
    assert "Held-out questions" in text and ("95 % interval" in text or reward is None)
    assert "What training took" in visible((run / "study.html").read_text())


def test_a_training_that_could_not_learn_opens_the_verdict(copied):
    line = {"node": "frontier.1.grpo", "method": "frontier", "step": 30}
    texts = ("nothing learned: all answers are right (the last 10 steps)", "signal lost: they agree", "collapse: it is")
    for text in texts:
        append_json_line(copied / "metrics.jsonl", line | {"alarm": text})
    verdict = summarise(load_run(copied))["verdict"]
    assert verdict[:2] == [f"frontier.1.grpo, step 30: {text}." for text in texts[:2]]
    assert "collapse" not in " ".join(verdict) and len(verdict) > 2


def test_rollouts_are_newest_and_mixed_and_keep_the_budget(language_run, scheme_study, monkeypatch):
    groups = groups_of(page_of(scheme_study))
    schemes = {"frontier", "uniform", "dynamic sampling", "difficulty pools"}
    assert len(groups) == 24 and {group["scheme"] for group in groups} == schemes
    assert groups[0]["step"] == 37 and len({group["step"] for group in groups}) > 3
    assert all(group["images"] and group["category"] and group["answer"] == "[512, 300]" for group in groups)
    sample = groups[0]["samples"][0]
    assert len(sample["tokens"]) == len(sample["logprobs"])
    assert {name for name, _ in sample["rewards"]} == {"answer", "format"}
    monkeypatch.setattr(rollouts, "IMAGE_BUDGET_BYTES", 1000)
    assert "pictures did not fit into the page" in visible(page_of(language_run))


def test_chosen_groups_are_within_the_stored_ones(language_run, tmp_path):
    store = RolloutStore(language_run / "grpo" / "frontier.1.grpo")
    chosen, problems = choose_groups(store, 9)
    assert len(chosen) == 9 and problems == [] and [group[0]["step"] for group in chosen[:3]] == [37, 37, 37]
    assert len({(group[0]["step"], group[0]["group"]) for group in chosen}) == 9
    few = RolloutStore(tmp_path)
    few.folder.mkdir()
    shutil.copy(store.path(1), few.path(1))
    assert {group[0]["step"] for group in choose_groups(few, 9)[0]} == {1}


def test_hostile_prompts_stay_text(page):
    assert HOSTILE not in page


def test_what_cannot_be_read_is_said_and_the_rest_is_there(copied):
    node = copied / "grpo" / "frontier.1.grpo"
    RolloutStore(node).path(37).write_bytes(b"torn")
    (node / "pool.sqlite").unlink()
    (copied / "examinations" / "base.examine" / "results.jsonl").write_text('{"item": 1}\n')
    text = visible(page_of(copied))
    assert "frontier.1.grpo: step-00000037.parquet cannot be read" in text and "has no curriculum pool" in text
    assert "base.examine/results.jsonl cannot be read" in text and "Rollouts" in text


def test_a_live_run_whose_nodes_are_links_has_a_page(copied, tmp_path):
    node = copied / "grpo" / "frontier.1.grpo"
    shutil.move(node, tmp_path / "work")
    node.symlink_to(tmp_path / "work")
    assert len(groups_of(page_of(copied))) == 24


def test_report_against_pairs_final_rewards_on_questions(copied, tmp_path, capsys):
    other = build_language_run(tmp_path / "other", schemes={"frontier": 0.2}, items=60, seed=3)
    assert main([str(copied), "--against", str(other)]) == 0
    printed = capsys.readouterr().out
    assert "reward here" in printed and "frontier" in printed and "  60 " in printed
    assert "Paired differences" in (copied / "compare-other.html").read_text()


def test_runs_that_share_no_question_or_kind_are_refused_in_one_line(copied, finished_run, tmp_path):
    for other, message in ((finished_run, "compare two runs of one kind"), (copied, "share no examined question")):
        run = shutil.copytree(copied, tmp_path / message)
        for results in run.glob("examinations/*/results.jsonl"):
            results.write_text(results.read_text().replace('"item": "', '"item": "other-'))
        before = sorted(run.iterdir())
        with pytest.raises(UserError, match=message):
            main([str(run), "--against", str(other)])
        assert sorted(run.iterdir()) == before


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_the_browser_of_rollouts_filters_and_shows_tokens(scheme_study, tmp_path):
    _, path = write_report(shutil.copytree(scheme_study, tmp_path / "run"))
    script = """
      found.all = names();
      found.detail = document.querySelector(".pool-detail").innerText;
      found.tokens = tokens();
      pick("scheme", "uniform");
      found.uniform = names();
      pick("category", "planning");
      found.planning = names();
      pick("scheme", ""); pick("category", ""); pick("mean reward", "from 0.75");
      found.high = names();
    """
    found = found_in_browser(path, script)
    groups = {group["id"]: group for group in groups_of(path.read_text())}
    first = groups[found["all"][0]]
    assert len(found["all"]) == 24 and first["step"] == 37 and first["prompt"] in found["detail"]
    assert found["tokens"][0][0] == first["samples"][0]["tokens"][0]
    assert found["tokens"][0][1].startswith("log-probability -")
    assert {groups[name]["scheme"] for name in found["uniform"]} == {"uniform"} and len(found["uniform"]) == 6
    assert all(groups[name]["category"] == "planning" for name in found["planning"])
    assert found["high"] and all(groups[name]["mean"] >= 0.75 for name in found["high"])
