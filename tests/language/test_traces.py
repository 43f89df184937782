"""Traces of a pool: fixed steps, kills, a judge, and what the fine-tuning reads of them."""

import json

import numpy as np
import pytest
import torch

from algos.rft import RFTOptions
from rewards.config import JudgeConfig, RewardConfig
from rewards.judge import ReasoningJudge
from rewards.rubric import Rewards
from rl_lab.common.errors import UserError
from rl_lab.config.language import RFTConfig, TracesConfig
from rl_lab.graph.nodes import Node
from rl_lab.learner.plans import Training
from rl_lab.learner.rft import RFTPlan, write_index
from rl_lab.model.checkpoint import Snapshot, digest, load_chat_processor
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import expanded_tokens, imitation_batch, item_prompt, rollout_batch
from rl_lab.records.types import Completion, Prompt, Sampling
from rl_lab.rollouts.clock import Clock
from rl_lab.rollouts.rollouter import Questioner
from rl_lab.stages.kinds import KINDS, load_config
from rl_lab.stages.rft import TraceJudge, TraceSampler, select_traces
from rl_lab.workers.learner import Weights
from tests.rewards.functions import FailsOnArrival
from tests.support.engines import FakeEngines
from tests.support.judges import FakeJudge, completion, verdict
from tests.support.questions import TRAIN, make_item, write_questions
from tests.support.rollouts import learned_groups, read_kept
from tests.support.stage_runs import StageRun

SETTINGS = TracesConfig(samples=4, items=10, max_tokens=16, select=RFTOptions(max_likeness=1.0, min_reward=0.5))
FILES = {"weight": b"0"}


class Traced(StageRun):
    """The `traces` stage with engines that are plain objects."""

    def __init__(self, folder, policy, monkeypatch, num_engines=1):
        super().__init__(folder / "run")
        monkeypatch.setattr("rl_lab.stages.rft.CALLS_PER_STEP", 1)  # 3 questions a step
        self.policy, self.num_engines = policy, num_engines
        self.questions = write_questions(folder / "questions")
        self.inputs = {"questions": self.questions}

    def node(self, config):
        return Node("frontier.1.grpo", KINDS["grpo"], {"curriculum": {"scheme": "frontier"}}, method="frontier")

    def drive(self, context, options):
        settings, rewards = options.get("settings", SETTINGS), options.get("rewards") or Rewards(context.config.rewards)
        self.engines = FakeEngines(self.policy, map(make_item, TRAIN))
        self.engines.num_workers = self.num_engines
        questioner = Questioner(
            ItemFile(self.questions / "train.arrow"),
            self.engines,
            load_chat_processor(self.policy),
            rewards,
            Sampling(settings.max_tokens, num_generations=settings.samples),
            3,
            Clock(),
            context.check_stop,
        )
        try:
            sampler = TraceSampler(context, settings, questioner, Weights(7, Snapshot(7, digest(FILES), FILES)), 5)
            sampler.run()
            self.summary = select_traces(context, settings.select, options.get("judge"), sampler.plan.num_steps + 1)
        finally:
            rewards.close()

    @property
    def rows(self):
        return RolloutStore(self.out).read()

    @property
    def lines(self):
        return self.metrics()


@pytest.fixture
def traced(tmp_path, policy, monkeypatch):
    return lambda name="a", **options: Traced(tmp_path / name, policy, monkeypatch, **options)


def test_every_question_is_asked_in_fixed_steps(traced):
    run = traced().start()
    rows = run.rows
    assert [row["step"] for row in rows] == [1] * 12 + [2] * 12 + [3] * 12 + [4] * 4
    assert len({row["item"] for row in rows}) == 10 and run.engines.units == [3, 3, 3, 1]
    assert all(row["weight_version"] == 7 and row["finished"] for row in rows)
    last = run.lines[-1]
    assert last["step"] == 5 and last["traces/candidates"] == 40 == run.summary.candidates
    assert last["traces/kept"] == len(list(read_kept(run.out))) == sum(row["kept"] for row in rows) > 3
    dropped = {name: value for name, value in last.items() if name.startswith("why_dropped/")}
    assert sum(dropped.values()) + last["traces/kept"] == 40 and "why_dropped/duplicate" in dropped
    assert run.lines[0]["reward/mean"] == np.mean([row["reward"] for row in rows[:12]])


@pytest.mark.parametrize("step", [1, 2, 4, 5])
def test_a_killed_stage_asks_only_what_is_missing(traced, step):
    whole, run = traced("whole").start(), traced("killed")
    run.killed(step)
    stored = RolloutStore(run.out).steps()
    run.start()
    assert run.rows == whole.rows and run.lines == whole.lines and run.summary == whole.summary
    assert len(run.engines.asked) == len(whole.engines.asked) - sum([3, 3, 3, 1][: len(stored)])


def test_a_step_whose_line_is_missing_gets_it_from_the_store(traced):
    whole, run = traced("whole").start(), traced("killed")
    run.killed(2)
    metrics = run.out / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:1]))
    assert run.start().lines == whole.lines


def test_more_engines_change_nothing(traced):
    assert traced("one").start().rows == traced("many", num_engines=5).start().rows


def test_a_damaged_step_is_asked_again(traced, capsys):
    whole, run = traced("whole").start(), traced("killed")
    run.killed(3)
    path = RolloutStore(run.out).path(2)
    path.write_bytes(path.read_bytes()[:-200])
    assert run.start().rows == whole.rows
    assert "step-00000002.parquet is damaged" in capsys.readouterr().err


JUDGED = SETTINGS.model_copy(update={"select": RFTOptions(max_likeness=1.0, min_judge_score=0.5)})


def trace_judge(run, script):
    server = FakeJudge(script)
    config = JudgeConfig(base_url=server.url, model="m", retries=0, timeout_s=60.0)
    return server, TraceJudge(ReasoningJudge(config), ItemFile(run.questions / "train.arrow"))


def test_the_judge_decides_about_correct_traces_of_partial_items(traced):
    def script(request):
        sent = json.loads(request["messages"][-1]["content"])
        assert set(sent) == {"question", "reference", "trace"}
        return 200, completion(verdict(9 if json.loads(sent["reference"])["answer"] == "A" else 2))

    run = traced()
    server, judge = trace_judge(run, script)
    run.start(settings=JUDGED, judge=judge)
    server.close()
    judged = [row for row in run.rows if row["judge_score"] is not None]
    assert {row["judge_score"] for row in judged} == {0.9, 0.2}
    assert {row["why_dropped"] for row in judged if row["judge_score"] == 0.2} == {"low_score"}
    assert all(row["judge_score"] == 0.9 for row in run.rows if row["kept"])


def test_a_judge_out_of_order_stops_the_stage_and_costs_nothing_that_was_done(traced):
    run = traced()
    server, judge = trace_judge(run, lambda request: (500, b"{}"))
    with pytest.raises(UserError, match="the judge scored none of .* traces, the first for: .*500.*and resume"):
        run.start(settings=JUDGED, judge=judge)
    server.close()
    server, judge = trace_judge(run, lambda request: (200, completion(verdict(9))))
    run.start(settings=JUDGED, judge=judge)
    server.close()
    assert run.summary.kept and not run.engines.asked


def index_of(run, folder):
    path = folder / "kept.arrow"
    write_index(run.out, ItemFile(run.questions / "train.arrow"), path)
    return path


def test_training_reads_the_sampled_tokens_with_the_items_pictures(traced, tmp_path):
    run = traced().start()
    settings = RFTConfig(steps=3, batch_size=4, warmup=0)
    plan = RFTPlan(run.policy, settings, index_of(run, tmp_path), run.questions / "train.arrow", 3)
    processor = load_chat_processor(run.policy)
    data, kept = plan.data(processor), list(read_kept(run.out))
    items = {item.id: item for item in map(make_item, range(24))}
    assert len(data.rows) == len(kept)
    for step, numbers in enumerate(data.order):
        batch = data.batch(step)
        for row, number in enumerate(numbers):
            learned = batch.input_ids[row][batch.completion_mask[row]].tolist()
            assert learned == kept[number]["tokens"] and learned[-1] == processor.tokenizer.eos_token_id
            prompt = batch.input_ids[row][batch.attention_mask[row] & ~batch.completion_mask[row]].tolist()
            assert prompt == expanded_tokens(item_prompt(items[kept[number]["item"]], processor), processor)


def test_a_step_lowers_the_cross_entropy_and_the_version_counts_on(traced, tmp_path):
    from rl_lab.model.checkpoint import read_info

    run = traced().start()
    settings = RFTConfig(steps=4, batch_size=4, warmup=0, lr=1e-3)
    training = Training(RFTPlan(run.policy, settings, index_of(run, tmp_path), run.questions / "train.arrow", 3))
    losses = [training.run_step()["text/cross_entropy"] for _ in range(4)]
    assert losses[-1] < losses[0]
    training.finish(tmp_path / "out")
    before, after = read_info(run.policy), read_info(tmp_path / "out")
    assert (after.weight_version, after.steps) == (before.weight_version + 1, before.steps + 4)


def test_a_reward_type_of_which_nothing_is_kept_is_named_while_it_runs_and_in_the_report(traced, capsys):
    run = traced().start(settings=SETTINGS.model_copy(update={"select": RFTOptions(min_reward=2.0)}))
    line, alarm = run.lines[-2:]
    assert line["kept_type/choice"] == 0.0
    assert alarm["alarm"].startswith("nothing kept: none of 40 traces of questions with reward type choice")
    assert "nothing kept" in capsys.readouterr().err
    kept = traced("b").start().lines[-1]
    assert kept["kept_type/choice"] == kept["traces/kept"] / 40 and "alarm" not in kept


def test_nothing_kept_is_said_before_anything_is_trained(traced, tmp_path):
    run = traced().start(settings=SETTINGS.model_copy(update={"select": RFTOptions(min_reward=2.0)}))
    assert run.summary.kept == 0
    with pytest.raises(UserError, match="no trace was kept in"):
        index_of(run, tmp_path)


def test_answers_token_by_token_are_what_the_engine_would_be_trained_on(policy):
    """The same rows as a batch of rollouts, whose prompts come from the engine with rows of patches."""
    processor = load_chat_processor(policy)
    items = [make_item(0, 2), make_item(1, 0), make_item(2, 1)]
    prompts = [item_prompt(item, processor) for item in items]
    answers = [[9, 8, 7], [5], [6, 4]]
    batch = imitation_batch(prompts, [(2, answers[0]), (1, answers[1]), (0, answers[2]), (2, answers[2])], processor)

    def asked(place, tokens):
        read = tuple(expanded_tokens(prompts[place], processor))
        return [Completion(read, tuple(tokens), (0.0,) * len(tokens), 1, True)]

    order = [(2, answers[0]), (1, answers[1]), (0, answers[2]), (2, answers[2])]
    whole = [Prompt(prompts[place].tokens, prompts[place].images) for place, _ in order]
    groups = learned_groups(whole, [asked(*row) for row in order], torch.zeros(4, 1))
    other = rollout_batch(groups, processor.image_processor)
    for name in ("input_ids", "attention_mask", "completion_mask"):
        assert torch.equal(getattr(batch, name), getattr(other, name)), name
    assert [len(shown) for shown in batch.visual.shown] == [1, 0, 2, 1]
    assert batch.visual.shown[0] == batch.visual.shown[3] and len(batch.visual.grids) == 3
    chat = processor(
        text=[processor.tokenizer.decode(prompts[0].tokens)], images=list(items[0].images)
    )  # the processor's own way from text
    assert chat["input_ids"][0].tolist() == expanded_tokens(prompts[0], processor)


def test_settings_that_cannot_work_are_one_line(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: a\nstages: [questions, cold_start, examine, rft]\nrft: {backend: trl, ema: 0.9}\n")
    with pytest.raises(UserError, match="backend is trl, which runs here without ema"):
        load_config(path, [])
    path.write_text("name: a\nstages: [questions, cold_start, rft]\ntraces: {select: {low: 2}}\n")
    with pytest.raises(UserError, match=r"traces.select.*0 <= low < high <= 1"):
        load_config(path, [])


def test_traces_without_any_reward_are_not_chosen_from_in_silence(tmp_path, policy, monkeypatch):
    rewards = Rewards(RewardConfig(weights={"f": 1.0}), {"f": FailsOnArrival()})
    with pytest.raises(UserError, match=r"no answer of the last 3 steps has a reward; .* RuntimeError: not today"):
        Traced(tmp_path / "traced", policy, monkeypatch).start(rewards=rewards)
