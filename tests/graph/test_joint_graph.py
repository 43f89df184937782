"""Joint runs as graphs: arms from one start, what their hashes cover, and settings that cannot work together."""

import pytest

from rl_lab.graph.nodes import Node
from rl_lab.graph.plan import seconds
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import hashes
from tests.support.refusals import refusal

TEXT = """
name: joint
env: {backend: tabletop}
questions: {development: 20}
optimise: {steps: 25, warmup: 0}
rl: {steps: 12}
joint: {block: 10, rounds: 2}
stages: [demos, questions, warm_start, examine, evaluate, joint]
wandb: disabled
"""


@pytest.fixture
def load(tmp_path):
    """A configuration with overrides."""
    path = tmp_path / "joint.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_config(path, overrides)


def test_every_arm_starts_from_the_warm_start_and_both_skills_are_measured(load):
    nodes = {node.name: node for node in expand(load())}
    arms = ["together", "sequence", "grpo_alone", "rpro_alone"]
    assert list(nodes)[:6] == ["demos", "questions", "development", "warm_start", "base.examine", "base.evaluate"]
    assert list(nodes)[6:] == [f"{arm}.{kind}" for arm in arms for kind in ("joint", "examine", "evaluate")] + [
        "report"
    ]
    for arm in arms:
        start = {role: role for role in ("demos", "questions", "development")} | {"policy": "warm_start"}
        assert nodes[f"{arm}.joint"].inputs == start and nodes[f"{arm}.joint"].params["arm"] == arm
        assert nodes[f"{arm}.examine"].inputs["policy"] == nodes[f"{arm}.evaluate"].inputs["policy"] == f"{arm}.joint"


def test_an_arm_is_reused_whatever_other_arms_there_are(load):
    all_arms, one = hashes(load()), hashes(load("joint.arms=[together]"))
    assert one["together.joint"] == all_arms["together.joint"] and "sequence.joint" not in one
    assert len({all_arms[f"{arm}.joint"] for arm in ("together", "sequence", "grpo_alone", "rpro_alone")}) == 4
    assert hashes(load("joint.guard.allowed=0.2"))["together.joint"] != all_arms["together.joint"]
    assert hashes(load("objectives={rpro: {beta: 2.0}}"))["together.joint"] != all_arms["together.joint"]
    assert hashes(load("eval.episodes=7"))["warm_start"] == all_arms["warm_start"]


VARIANT = "joint.variants={frozen: {arm: sequence, changes: {rl.train: [vlm], joint.method: continued_sft}}}"


def test_a_variant_is_an_arm_with_settings_of_its_own(load):
    config = load(VARIANT, "joint.arms=[together, frozen]", "joint.lead=2")
    nodes = {node.name: node for node in expand(config)}
    frozen, plain = nodes["frozen.joint"], nodes["together.joint"]
    assert frozen.params["arm"] == "sequence" and frozen.config.rl.train == ("vlm",) and plain.config is None
    assert frozen.config.joint.guard is None and frozen.config.joint.lead == 0, "as the controls"
    assert nodes["frozen.evaluate"].params == nodes["together.evaluate"].params
    assert seconds(frozen, config) < seconds(plain, config), "it collects nothing"
    same = VARIANT.replace("rl.train: [vlm], joint.method: continued_sft", "")
    found = hashes(load(same, "joint.arms=[sequence, frozen]", "joint.guard=null"))
    assert found["frozen.joint"] == found["sequence.joint"] != hashes(config)["frozen.joint"]


def test_a_study_compares_arms_by_what_they_start_from(load):
    study = "study={compare: joint.arms, methods: [grpo_alone, frozen], control: base, seeds: 2}"
    nodes = {node.name: node for node in expand(load(VARIANT, study))}
    assert [name for name in nodes if name.endswith(".joint")] == [
        f"given.{seed}.{arm}.joint" for seed in (1, 2) for arm in ("grpo_alone", "frozen")
    ]
    assert nodes["given.2.frozen.joint"].config.seed == 1 and nodes["given.2.frozen.joint"].config.rl.train == ("vlm",)
    assert nodes["given.2.frozen.joint"].inputs["policy"] == "given.2.warm_start"


def test_the_plan_counts_the_turns_of_each_arm(load):
    config = load()
    nodes = {node.name: node for node in expand(config)}

    def units(node: Node) -> tuple[int, str]:
        return node.stage.units(node, config)

    turns = {name: units(nodes[f"{name}.joint"])[0] for name in ("together", "grpo_alone", "rpro_alone")}
    assert turns == {"together": 12 + 2 * 3, "grpo_alone": 12, "rpro_alone": 6}
    assert units(nodes["warm_start"]) == (config.cold_start.steps + config.sft.steps, "steps")
    alone = sum(seconds(nodes[f"{name}.joint"], config) for name in ("grpo_alone", "rpro_alone"))
    assert seconds(nodes["together.joint"], config) <= alone


def test_a_policy_with_both_skills_makes_the_warm_start_unnecessary(load, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    nodes = {
        node.name: node for node in expand(load(f"model.path={tmp_path}", "stages=[demos, questions, examine, joint]"))
    }
    assert "base.examine" in nodes and "policy" not in nodes["together.joint"].inputs


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stages=[questions, warm_start, joint]"], "warm_start needs demos before it"),
        (["stages=[demos, questions, joint]"], "joint needs warm_start before it, or a trained policy"),
        (["stages=[demos, questions, warm_start]"], "add joint"),
        (["stages=[demos, questions, warm_start, joint, sft]"], "sft cannot be part of a joint run"),
        (["stages=[demos, demos, questions, warm_start, joint]"], "demos is there twice"),
        (["questions.development=0"], "set it to 60"),
        (["workers.rollout=0"], "needs an engine"),
        (["optimise.ema=0.9"], "optimise.ema"),
        (["rl.lora={rank: 4}"], "leave lora out"),
        (["rl.backend=trl"], "joint needs backend: lab"),
        (["curriculum.mode=stage"], "joint needs mode: online"),
        (["joint.collect_ahead=3"], "a round has 3 turns"),
        (["joint.arms=[together, together]"], "names one twice"),
        (["joint.arms=[isolated]", "joint.lead=2"], "leave lead out too"),
        (["joint.arms=[together, togehter]"], "did you mean"),
        (["joint.variants={base: {arm: sequence}}"], "give it a name of its own"),
        (["joint.variants={mine: {arm: sequence, changes: {eval.episodes: 3}}}"], "not a variant's to change"),
        (["joint.variants={mine: {arm: sequence, changes: {rl.train: [x]}}}", "joint.arms=[mine]"], "rl.train"),
        (
            ["study={compare: joint.arms, methods: [sequence], control: base}", "stages=[demos, questions]"],
            "needs joint",
        ),
        (["joint.guard.lower_by=1.5"], "joint.guard.lower_by"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(load, overrides, message):
    assert message in refusal(load, *overrides)
