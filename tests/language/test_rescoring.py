"""Stored answers under another reward, from the command line."""

import json
import re

import pytest
import yaml

from rl_lab.common.errors import RunError, UserError
from rl_lab.rescore import main
from tests.support.refusals import refusal
from tests.support.stored_runs import write_answered_run


@pytest.fixture
def run(tmp_path):
    return write_answered_run(tmp_path / "run")


def result(run, name="short"):
    (found,) = json.loads((run / f"rescored-{name}.json").read_text()).values()
    return found


def test_a_reward_that_turns_the_order_around_says_so(run, capsys):
    assert main([str(run), "--reward", "short"]) == 0
    found = result(run)
    assert (found["answers"], found["unscored"], found["groups"]) == (4, 2, 2)
    assert (found["rank_correlation"], found["group_correlation"]) == (pytest.approx(-1), pytest.approx(-1))
    assert (found["best_changed"], found["gained"], found["lost"]) == (1.0, 2, 2)
    assert {flip["sample"] for flip in found["flips"]} == {0, 1}
    assert "another best answer in 100 % of the groups" in capsys.readouterr().out


def test_the_same_order_agrees_and_flips_nothing(run, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def long(prompts, completions, **columns):\n    return [float(len(t.split()) > 9) for t in completions]\n"
    )
    reward = tmp_path / "long.yaml"
    reward.write_text(yaml.safe_dump({"rewards": {"weights": {"l": 1.0}, "functions": {"l": f"{mine}:long"}}}))
    main([str(run), "--reward", str(reward), "--node", "given.1.verifier.1.grpo"])
    found = result(run, "long")
    assert (found["group_correlation"], found["best_changed"], found["flips"]) == (pytest.approx(1), 0.0, [])


FAILING = """
def always(prompts, completions, **columns):
    raise RuntimeError("no licence")

def sometimes(prompts, completions, **columns):
    return [1.0 if completions[0] == "word" else 7.0]
"""


def failing(tmp_path, name):
    (tmp_path / "failing.py").write_text(FAILING)
    path = tmp_path / f"{name}.yaml"
    functions = {"mine": f"{tmp_path / 'failing.py'}:{name}"}
    path.write_text(yaml.safe_dump({"rewards": {"weights": {"mine": 1.0}, "functions": functions}}))
    return str(path)


def test_a_reward_that_always_fails_is_no_result(run, tmp_path, capsys):
    with pytest.raises(RunError) as error:
        main([str(run), "--reward", failing(tmp_path, "always")])
    assert capsys.readouterr().out == "" and error.value.exit_code == 1
    assert str(error.value) == (
        "given.1.verifier.1.grpo: no answer could be scored, 6 calls failed, the first: mine on answer 0 to item-0 of "
        "step 1 (exception: RuntimeError: no licence); mend the reward"
    )
    assert not list(run.glob("rescored-*"))


def test_calls_that_fail_are_counted_and_the_first_is_named(run, tmp_path, capsys):
    assert main([str(run), "--reward", failing(tmp_path, "sometimes")]) == 0
    found = result(run, "sometimes")
    assert (found["answers"], found["unscored"], found["failures"]) == (2, 2, {"mine/out of range": 4})
    said = "mine on answer 0 to item-0 of step 1 (out of range: 7.0 is not in 0..1)"
    assert found["first_failure"] == said
    assert f"failed calls: 4 of mine/out of range; the first: {said}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--reward", "judge"], "neither a file nor a method of the run's study; methods of the run: short"),
        (
            ["--reward", "short", "--node", "given.1.verify.1.grpo"],
            "has no training given.1.verify.1.grpo; did you mean given.1.verifier.1.grpo?",
        ),
    ],
)
def test_what_is_not_there_is_said(run, arguments, said):
    assert said in refusal(lambda: main([str(run), *arguments]))


def test_a_reward_that_cannot_work_names_its_key(run, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("rewards: {wieghts: {}}")
    with pytest.raises(UserError, match=r"bad.yaml: rewards.wieghts is not a known key; did you mean weights\?"):
        main([str(run), "--reward", str(path)])
    assert not list(run.glob("rescored-*"))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no run folder at"):
        main([str(tmp_path), "--reward", "short"])


def test_a_run_that_stored_nothing_is_refused_with_what_to_give(tmp_path):
    (tmp_path / "config.yaml").write_text("name: sft\n")
    with pytest.raises(UserError, match="there is nothing to score again; give a run with grpo or distill"):
        main([str(tmp_path), "--reward", "short"])


@pytest.mark.parametrize("text", ["study: 3", "study: {rewards: 3}", "examine: [1]", "!!int x", "- 1"])
def test_a_broken_config_of_a_run_is_one_line(run, text):
    (run / "config.yaml").write_text(text)
    assert re.search(r"config.yaml", refusal(lambda: main([str(run), "--reward", "short"])))
