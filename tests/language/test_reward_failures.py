"""A study whose rewards misbehave: each is named with function, answer and reason, and the others go on."""

import json
from pathlib import Path

import pytest

from rl_lab.common.errors import UserError
from rl_lab.common.files import write_json_lines
from rl_lab.config.load import dump_config
from rl_lab.graph.executor import Executor
from rl_lab.graph.nodes import stage_hashes
from rl_lab.graph.run_folder import CONFIG_FILE, RunFolder
from rl_lab.graph.store import Store
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.pages.run import write_report
from rl_lab.rollouts.answering import RewardFailures
from rl_lab.stages.grpo import GRPORun
from rl_lab.stages.kinds import expand, load_config
from rl_lab.training.state import RunState
from tests.support.engines import FakeEngines
from tests.support.experiments import statuses
from tests.support.learners import FakeLearner
from tests.support.questions import make_item
from tests.support.rollouts import groups_of
from tests.support.stage_runs import CONFIG, FakeRun

FUNCTIONS = """
import math, time

def raises(prompts, completions, **columns):
    raise ZeroDivisionError("no such luck")

def nan(prompts, completions, **columns):
    return [math.nan]

def pairs(prompts, completions, **columns):
    return [0.5, 0.5]

def forever(prompts, completions, **columns):
    time.sleep(3600)

def high(prompts, completions, **columns):
    return [7.0]

def sometimes(prompts, completions, answer, **columns):
    return [1.0 if answer[0] == "A" else math.inf]
"""
SAID = {
    "raises": "raises on answer 0 to item-{item} (exception: ZeroDivisionError: no such luck)",
    "nan": "nan on answer 0 to item-{item} (not a number: nan is not in 0..1)",
    "pairs": "pairs on answer 0 to item-{item} (exception: ValueError: a reward function returns one value for",
    "forever": "forever on answer 0 to item-{item} (time-out: TimeoutError: no value in 0.2 s; its process was",
    "high": "high on answer 0 to item-{item} (out of range: 7.0 is not in 0..1)",
}


class Stages:
    """Real training of GRPO on plain objects; the other stages hand on what is there."""

    def __init__(self, questions: Path, policy: Path) -> None:
        self.shown = {"questions": questions, "cold_start": policy}

    def show(self, context):
        """The output of a stage that ran before."""
        for path in self.shown[context.node.kind].iterdir():
            (context.out / path.name).symlink_to(path)

    def examine(self, context):
        """Every answer is worth one half."""
        known = {"task": "test", "category": "perception", "reward_type": "choice", "blank": [0.1], "constant": 0.2}
        answers = {"tokens": [4], "finished": [True], "answers": ["A"]}
        rows = [{"item": f"item-{n}", "rewards": [0.5]} | known | answers for n in range(1000, 1005)]
        write_json_lines(context.out / "results.jsonl", rows)

    def grpo(self, context):
        """Steps without vLLM."""
        policy = self.shown["cold_start"]
        engines = FakeEngines(policy, map(make_item, [*range(24), *range(1000, 1005)]))
        state = RunState(context.out, context.scratch, context.say)
        GRPORun(context, policy, engines, FakeLearner(state.learner_state), state).run()

    def functions(self):
        """By kind."""
        return {
            **{"questions": self.show, "cold_start": self.show, "examine": self.examine, "grpo": self.grpo},
            "report": lambda context: write_report(context.out),
        }


@pytest.fixture(scope="module")
def study(tmp_path_factory, questions, policy):
    """Run folder of a study whose rewards do everything that they should not, and what was raised in the end."""
    root = tmp_path_factory.mktemp("study")
    mine = root / "mine.py"
    mine.write_text(FUNCTIONS)
    wrong: dict = {name: {"weights": {name: 1}, "functions": {name: f"{mine}:{name}"}} for name in SAID}
    wrong["forever"]["guard"] = {"timeout_s": 0.2, "batch_timeout_s": 0.5}
    some = {"weights": {"answer": 1, "sometimes": 1}, "functions": {"sometimes": f"{mine}:sometimes"}}
    rewards = {"verifier": {}, **wrong, "sometimes": some}
    text = CONFIG.replace("[questions, cold_start, grpo]", "[questions, cold_start, examine, grpo]")
    (root / "study.yaml").write_text(
        text + f"study: {json.dumps({'control': 'verifier', 'seeds': 1, 'rewards': rewards})}\n"
    )
    config = load_config(root / "study.yaml", ["rl.steps=4", "curriculum.scheme=uniform", "workers.stages=1"])
    nodes = expand(config)
    hashes = stage_hashes(nodes, config.seed, {"code": "1"})
    folder = RunFolder.create(root / "run", config.name)
    folder.write(CONFIG_FILE, dump_config(config))
    stages = Stages(questions, policy).functions()
    run = Executor(config, nodes, hashes, {"code": "1"}, stages, Store(root / "store"), folder)
    with pytest.raises(UserError) as raised:
        run.run()
    folder.close()
    return folder, str(raised.value)


def first_item(folder: RunFolder, name: str) -> str:
    """Of the first step, which all rewards ask alike."""
    return next(iter(RolloutStore(folder.path / "grpo" / "given.1.verifier.1.grpo").read(steps=[1])))["item"]


def test_rewards_that_cannot_be_scored_end_and_the_others_do_not(study):
    folder, _ = study
    found = statuses(folder)
    assert {name for name, status in found.items() if status == "failed"} == {f"given.1.{name}.1.grpo" for name in SAID}
    for name in ("verifier", "sometimes"):
        assert found[f"given.1.{name}.1.grpo"] == found[f"given.1.{name}.1.examine"] == "done"


@pytest.mark.parametrize("name", SAID)
def test_a_reward_that_fails_is_named_with_its_answer_and_reason(study, name):
    folder, _ = study
    item = first_item(folder, name).removeprefix("item-")
    lines = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]
    (alarm,) = (line for line in lines if line["node"] == f"given.1.{name}.1.grpo" and "alarm" in line)
    assert f"reward call failed: {SAID[name].format(item=item)}" in alarm["alarm"]
    assert alarm["step"] == 1


def test_the_error_in_the_end_says_what_to_mend(study):
    _, error = study
    assert error.startswith(
        "given.1.raises.1.grpo: no answer of the last 3 steps has a reward; the first failure: raises on"
    )
    assert error.endswith("mend the reward, and go on with --resume")


def test_answers_without_a_reward_are_masked_and_counted_and_the_rest_is_learned_from(study):
    folder, _ = study
    rows = RolloutStore(folder.path / "grpo" / "given.1.sometimes.1.grpo").read()
    failed = [row for row in rows if row["failures"]]
    assert 0 < len(failed) < len(rows)
    assert all(row["reward"] is None and row["advantage"] == 0 for row in failed)
    assert {name for row in failed for name in row["failures"]} == {"sometimes/out of range"}
    assert all(int(row["item"].removeprefix("item-")) % 2 == 1 for row in failed)


def test_the_page_names_the_rewards_that_failed_and_why(study):
    folder, _ = study
    page = (folder.path / "study.html").read_text()
    for name in SAID:
        assert f"given.1.{name}.1.grpo failed" in page
        assert f"reward call failed: {name} on answer 0 to item-" in page
    assert "such answers are masked" in (folder.path / "report.html").read_text()


def test_an_examination_names_what_it_could_not_score(tmp_path, questions, policy):
    mine = tmp_path / "mine.py"
    mine.write_text(
        "def f(prompts, completions, **columns):\n"
        "    if '100' in str(prompts[0]):\n"
        "        raise RuntimeError('never seen before')\n"
        "    return [1.0]\n"
    )
    given = json.dumps({"weights": {"answer": 1, "mine": 1}, "functions": {"mine": f"{mine}:f"}})
    run = FakeRun(tmp_path / "run", questions, policy, f"rewards={given}", "rl.steps=2").start()
    (alarm,) = (line for line in run.metrics("metrics.jsonl") if "alarm" in line)
    assert (alarm["step"], "exception: RuntimeError: never seen before" in alarm["alarm"]) == (0, True)
    assert not any("held_out/reward" in line for line in run.metrics())


class Heard:
    """What is said of a stage."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)

    def log(self, step, **values):
        pass


def test_an_examination_of_which_nothing_can_be_scored_ends_with_the_reason():
    def group(**fields):
        rows = [{"item": "a", "prompt": "", "completion": ""} | dict(zip(fields, row, strict=True)) for row in
                zip(*fields.values(), strict=True)]  # fmt: skip
        return groups_of(rows)

    failed = group(reward=[None, None], failures=[("mine/exception",), ("mine/exception",)])
    half = group(reward=[1.0, None], failures=[(), ("mine/exception",)])
    inapplicable = group(reward=[None, None], failures=[(), ()])
    heard, why = Heard(), {"mine/exception": "why"}
    RewardFailures(heard).check_all("seen", [*failed, *half], why)
    assert heard.said == ["step 0: reward call failed: why; such answers are masked, and counted in "
                          "reward_failures/mine/exception"]  # fmt: skip
    RewardFailures(heard).check_all("seen", inapplicable, {})
    with pytest.raises(UserError, match="no answer to a question of the set seen has a reward; the first failure: why"):
        RewardFailures(heard).check_all("seen", [*failed, *failed], why)
