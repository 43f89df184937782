"""Settings, dispatch by type, weights, parts, failures, and the signature that TRL calls."""

import json

import pytest

from rewards.config import JudgeConfig, RewardConfig, SandboxConfig
from rewards.judge import agreement
from rewards.rubric import Rewards
from tests.rewards import functions
from tests.support.judges import completion, verdict
from tests.support.refusals import refusal

ITEMS = [
    ("box", [0, 0, 10, 10], "<box>[0, 0, 10, 10]</box>"),
    ("boxes", [[0, 0, 10, 10]], "<box>[0, 0, 10, 10]</box>"),
    ("point", {"point": [5, 5]}, "<point>(5, 5)</point>"),
    ("points", [[5, 5], [6, 6]], "(5, 5), (6, 6)"),
    ("trajectory", [[5, 5], [6, 6]], "(5, 5), (6, 6)"),
    ("number", 0.5, "0.5 m"),
    ("choice", "C", "C"),
    ("yes_no", "yes", "Yes"),
    ("count", 3, "3"),
    ("ordering", ["lift", "place"], "lift, place"),
]
TYPES, TRUTHS, ANSWERS = (list(column) for column in zip(*ITEMS, strict=True))


def reply(answer):
    return f"<think>\n\n</think>\n<answer>\n{answer}\n</answer>"


def message(answer):
    return [{"role": "assistant", "content": reply(answer)}]


def breakdown(rewards, completions, answer, reward_type, **columns):
    prompts = ["question"] * len(completions)
    return rewards.breakdown(prompts, completions, answer=answer, reward_type=reward_type, **columns)


@pytest.fixture
def endpoint(serve):
    def script(request):
        question = json.loads(request["messages"][-1]["content"])
        return 200, completion(verdict(10 if question["answer"] == question["reference"] else 2))

    return serve(script)


@pytest.mark.parametrize("form", [reply, message])
def test_every_type_scores_its_own_truth_with_one(form):
    prompts = ["q"] * len(ITEMS)
    assert Rewards()(prompts=prompts, completions=[form(a) for a in ANSWERS], answer=TRUTHS, reward_type=TYPES) == [
        1.0
    ] * len(ITEMS)


def test_a_table_column_of_json_text_does_as_well_as_values():
    truths = [truth if isinstance(truth, str) else json.dumps(truth) for truth in TRUTHS]
    assert Rewards()(["q"] * 10, [reply(a) for a in ANSWERS], answer=truths, reward_type=TYPES) == [1.0] * 10
    assert Rewards()(["q"], [reply("C")], answer=['"C"'], reward_type=["choice"]) == [1.0]


def test_an_answer_that_does_not_parse_scores_zero_and_fails_nothing():
    result = breakdown(Rewards(), ["no tags at all"] * len(ITEMS), TRUTHS, TYPES)
    assert result.rewards == [0.0] * len(ITEMS)
    assert result.failures == []


def test_weights_combine_parts_to_a_mean():
    rewards = Rewards(RewardConfig(weights={"answer": 3, "format": 1}))
    result = breakdown(rewards, [reply("C"), f"so {reply('C')}", reply("B")], ["C"] * 3, ["choice"] * 3)
    assert result.rewards == [1.0, 0.75, 0.25]
    assert result.parts["format"] == [1.0, 0.0, 1.0]
    assert result.parts["answer"] == result.parts["verifier"] == [1.0, 1.0, 0.0]
    assert result.parts["judge"] == [None] * 3
    assert result.metrics() == {
        "reward/answer": 2 / 3,
        "reward/verifier": 2 / 3,
        "reward/format": 2 / 3,
        "reward_masked": 0.0,
    }


def test_a_bad_truth_or_completion_masks_its_sample_and_is_counted():
    result = breakdown(Rewards(), [reply("C"), reply("C"), None], ["C", "cup", "C"], ["choice"] * 3)
    assert result.rewards == [1.0, None, None]
    assert [(f.sample, f.part, f.reason) for f in result.failures] == [
        (2, "completion", "exception"),
        (1, "verifier", "exception"),
    ]
    assert result.metrics()["reward_failures/verifier/exception"] == 1.0
    assert result.metrics()["reward_masked"] == 2 / 3


def test_functions_of_ones_own_join_with_their_weight_and_their_failures_mask():
    config = RewardConfig(weights={"answer": 1, "mine": 1}, guard=SandboxConfig(timeout_s=60))
    rewards = Rewards(config, {"mine": functions.obedient})
    result = breakdown(rewards, ["0.5", "nothing", "raise", "nan"], ["C"] * 4, ["choice"] * 4)
    rewards.close()
    assert result.rewards == [0.25, 0.0, None, None]
    assert result.parts["mine"] == [0.5, None, None, None]
    assert result.metrics()["reward_failures/mine/not a number"] == 1.0


def test_the_failure_of_a_part_without_weight_masks_nothing():
    rewards = Rewards(RewardConfig(weights={"answer": 1, "mine": 0}), {"mine": functions.obedient})
    result = breakdown(rewards, ["raise"], ["C"], ["choice"])
    rewards.close()
    assert result.rewards == [0.0]
    assert len(result.failures) == 1


def test_open_items_are_judged_and_an_empty_answer_is_zero_unasked(endpoint):
    rewards = Rewards(RewardConfig(judge=JudgeConfig(base_url=endpoint.url, model="m")))
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "what?"}]}]
    result = rewards.breakdown(
        [chat] * 4,
        [reply("a cup"), reply("a fork"), "a cup", message("a cup")],
        answer=["a cup"] * 4,
        reward_type=["open"] * 4,
    )
    assert result.rewards == result.parts["answer"] == [1.0, 0.2, 0.0, 1.0]
    assert result.parts["verifier"] == [None] * 4
    assert result.verdicts == [verdict(10), verdict(2), None, verdict(10)]
    assert {json.loads(r["messages"][1]["content"])["question"] for _, r in endpoint.requests} == {"what?"}


def test_the_judge_can_be_asked_about_all_items_without_changing_their_reward(endpoint):
    rewards = Rewards(RewardConfig(judge=JudgeConfig(base_url=endpoint.url, model="m")))
    result = breakdown(rewards, [reply("C"), reply("(C)"), reply("B")], ["C"] * 3, ["choice"] * 3, judge_all=True)
    assert result.rewards == [1.0, 1.0, 0.0]
    found = agreement(result.parts["judge"], result.parts["verifier"])
    assert (found.rate, found.n) == (pytest.approx(2 / 3), 3)


def test_a_failing_judge_masks_open_items_only(serve):
    server = serve(lambda request: (500, b""))
    rewards = Rewards(RewardConfig(judge=JudgeConfig(base_url=server.url, model="m", retries=0)))
    result = breakdown(rewards, [reply("C")] * 2, ["C"] * 2, ["choice", "open"], judge_all=True)
    assert result.rewards == [1.0, None]
    assert result.metrics()["reward_failures/judge/exception"] == 2.0
    assert result.metrics()["reward_masked"] == 0.5


def test_mistakes_in_the_setting_end_the_run_in_one_line():
    with pytest.raises(ValueError, match="weights.formt is the weight of no reward; did you mean format?"):
        Rewards(RewardConfig(weights={"answer": 1, "formt": 1}))
    with pytest.raises(ValueError, match="add weights.mine"):
        Rewards(functions={"mine": functions.obedient})
    with pytest.raises(ValueError, match="unknown reward type 'boxs'; did you mean"):
        Rewards()(["q"], [""], answer=[""], reward_type=["boxs"])
    with pytest.raises(ValueError, match="open items need a judge"):
        Rewards()(["q"], [""], answer=[""], reward_type=["open"])


def test_parts_reach_the_trainers_log():
    logged, extra = {}, {}
    Rewards()(
        ["q"],
        [reply("C")],
        answer=["C"],
        reward_type=["choice"],
        log_metric=logged.__setitem__,
        log_extra=extra.__setitem__,
    )
    assert logged == {"reward/answer": 1.0, "reward/verifier": 1.0, "reward/format": 1.0, "reward_masked": 0.0}
    assert extra == {}


def test_the_defaults_are_the_documented_ones():
    config = RewardConfig.read({}, "rewards")
    assert config == RewardConfig()
    assert config.weights == {"answer": 1.0, "format": 0.0}
    assert (config.point.scale, config.points.scale, config.trajectory.waypoints) == (0.1, 0.1, 15)
    assert (config.trajectory.frechet_weight, config.trajectory.endpoint_weight) == (0.7, 0.3)
    assert (config.number.rate, config.count.partial_credit, config.judge) == (2.0, 0.0, None)


def test_values_are_read_and_whole_numbers_serve_as_floats():
    tree = {"weights": {"answer": 1}, "number": {"rate": 3}, "judge": {"base_url": "http://h/v1", "model": "m"}}
    config = RewardConfig.read(tree, "rewards")
    assert (config.weights, config.number.rate, config.judge.model) == ({"answer": 1.0}, 3.0, "m")
    assert RewardConfig.read({"judge": None}, "rewards").judge is None
    assert RewardConfig.read(config.model_dump(), "rewards") == config


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"trajectry": {}}, "rewards.trajectry is not a known key; did you mean trajectory?"),
        ({"point": {"scal": 1}}, "rewards.point.scal is not a known key; did you mean scale?"),
        ({"count": {"zzz": 1}}, "rewards.count.zzz is not a known key; there are partial_credit"),
        ({"judge": {"model": "m"}}, "rewards.judge.base_url is missing"),
        ({"judge": {"model": "m", "base_url": "h:1"}}, "rewards.judge: base_url is 'h:1'; it must start with http"),
        ({"point": {"scale": 0}}, "rewards.point: scale is 0.0; it must be above 0"),
        ({"point": {"scale": float("nan")}}, "rewards.point: scale is nan; it must be above 0"),
        ({"point": {"scale": "1"}}, "rewards.point.scale is '1'; it must be of type float"),
        ({"point": 0.1}, "rewards.point is 0.1; it must be a section with keys of its own"),
        ({"trajectory": {"waypoints": 15.5}}, "rewards.trajectory.waypoints is 15.5; it must be of type int"),
        ({"trajectory": {"waypoints": 1}}, "waypoints is 1; it must be at least 2 and at most 64"),
        ({"trajectory": {"frechet_weight": 0, "endpoint_weight": 0}}, "all 0"),
        ({"count": {"partial_credit": True}}, "rewards.count.partial_credit is True; it must be of type float"),
        ({"count": {"partial_credit": 2}}, "partial_credit is 2.0; it must be at least 0 and at most 1"),
        ({"boxes": {"extra_penalty": -1}}, "extra_penalty is -1.0; it must be at least 0"),
        ({"weights": {"answer": -1}}, "a weight is a number >= 0"),
        ({"weights": {"answer": 0}}, "weights are all 0"),
        ({"weights": 1}, "rewards.weights is 1; it must map names to values of type float"),
    ],
)
def test_an_error_names_the_key_and_the_fix_in_one_line(tree, message):
    assert message in refusal(RewardConfig.read, tree, "rewards", by=ValueError)
