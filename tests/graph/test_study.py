"""A study as a graph: worlds, methods and training seeds, and what of them is one stage."""

import re

import pytest
import yaml

from rl_lab.common.errors import UserError
from rl_lab.graph.executor import StageError
from rl_lab.graph.run_folder import RunFolder
from rl_lab.reports.study_power import expected_power, power_text
from rl_lab.stages import preflight
from rl_lab.stages.kinds import load_config
from tests.support.experiments import (
    EXPERIMENTS,
    FakeStages,
    differing,
    executor,
    hashes,
    main,
    nodes,
    statuses,
    write_small,
)
from tests.support.refusals import refusal

STUDY = {
    "factors": {"collect.pairs": [10, 60], "objectives.rpro.lambda_pro": [1.0, 3.0]},
    "methods": ["rpro", "dagger_buffered"],
    "control": "dagger_buffered",
    "seeds": 2,
}


def write(tmp_path, **changes):
    return write_small(tmp_path, yaml.safe_dump({"study": STUDY | changes}, sort_keys=False))


@pytest.fixture
def load(tmp_path):
    return lambda **changes: load_config(write(tmp_path, **changes))


def test_one_factor_at_a_time_or_all_combinations(load):
    worlds = ["pairs-10", "pairs-60", "lambda_pro-1-0", "lambda_pro-3-0"]
    assert [world.name for world in load().study.worlds()] == worlds
    combined = load(design="all").study.worlds()
    assert [world.name for world in combined] == [f"{one}_{other}" for one in worlds[:2] for other in worlds[2:]]
    assert combined[1].levels == {"collect.pairs": 10, "objectives.rpro.lambda_pro": 3.0}


def test_worlds_share_every_stage_that_is_alike_and_evaluations_are_listed_in_all(load):
    found = nodes(load())
    made = [name for name, node in found.items() if node.kind in ("demos", "sft")]
    assert made == [f"pairs-10.{seed}.{kind}" for seed in (1, 2) for kind in ("demos", "sft")]
    # 60 pairs and lambda 1 are what the small file has by default.
    assert "lambda_pro-1-0.1.rpro.1.optimise" not in found and "lambda_pro-3-0.1.rpro.1.optimise" in found
    assert found["lambda_pro-3-0.1.rpro.1.optimise"].inputs["pairs.1"] == "pairs-60.1.rpro.1.collect"
    assert found["pairs-10.1.dagger_buffered.1.optimise"].inputs["pairs.1"] == "pairs-10.1.rpro.1.collect"
    evaluated = [node for node in found.values() if node.kind == "evaluate"]
    assert len(evaluated) == 4 * 2 * (1 + 2 * 2)


def test_the_first_seed_of_a_world_as_the_file_has_it_is_the_plain_run(tmp_path, load):
    study = hashes(load())
    plain = hashes(load_config(write_small(tmp_path, "method: rpro\ncontrols: [dagger_buffered]\n")))
    assert plain["sft"] == study["pairs-10.1.sft"] != study["pairs-10.2.sft"]
    assert plain["rpro.2.evaluate"] == study["pairs-60.1.rpro.2.evaluate"] == study["lambda_pro-1-0.1.rpro.2.evaluate"]
    assert plain["rpro.1.evaluate"] not in (study["pairs-10.1.rpro.1.evaluate"], study["pairs-60.2.rpro.1.evaluate"])


WAYS = {"compare": "eval.join", "methods": ["wait", "stitch"], "control": "wait"}
ONE_POLICY = ["stages=[demos, sft, evaluate]"]


def test_ways_to_execute_chunks_share_the_policy_of_a_seed(tmp_path):
    found = nodes(load_config(write(tmp_path, **WAYS, factors={"eval.latency": [0, 2]}), ONE_POLICY))
    made = [name for name, node in found.items() if node.kind in ("demos", "sft")]
    assert made == [f"latency-0.{seed}.{kind}" for seed in (1, 2) for kind in ("demos", "sft")]
    evaluated = {name for name, node in found.items() if node.kind == "evaluate"}
    assert evaluated == {
        f"latency-{steps}.{seed}.{way}.evaluate" for steps in (0, 2) for seed in (1, 2) for way in WAYS["methods"]
    }
    assert found["latency-0.1.wait.evaluate"].params == found["latency-0.1.stitch.evaluate"].params, "the same there"
    assert found["latency-2.1.wait.evaluate"].params != found["latency-2.1.stitch.evaluate"].params
    one = found["latency-2.2.stitch.evaluate"]
    assert one.inputs == {"policy": "latency-0.2.sft"} and one.method == "stitch"
    assert (one.config.eval.join, one.config.eval.latency, one.config.seed) == ("stitch", 2, 1)


VARIANTS = {
    "variants": {"plain": {}, "coded": {"sft.code_weight": 0.5}},
    "methods": [],
    "control": "plain",
    "factors": {},
}


def test_variants_of_a_file_share_what_they_have_in_common_and_have_policies_of_their_own(tmp_path):
    found = nodes(load_config(write(tmp_path, **VARIANTS), ONE_POLICY))
    made = [name for name, node in found.items() if node.kind in ("demos", "sft")]
    assert made == [f"given.{seed}.{name}" for seed in (1, 2) for name in ("plain.demos", "plain.sft", "coded.sft")]
    one = found["given.2.coded.evaluate"]
    assert one.inputs == {"policy": "given.2.coded.sft"} and one.method == "coded"
    assert found["given.2.coded.sft"].inputs["demos"] == "given.2.plain.demos"
    assert [found[f"given.1.{name}.sft"].config.sft.code_weight for name in VARIANTS["variants"]] == [0, 0.5]


def test_variants_may_be_judged_by_the_answers_of_models_of_their_own(tmp_path):
    coded = VARIANTS | {"variants": {"plain": {}, "coded": {"cold_start.code_weight": 0.5}}, "measure": "reward"}
    found = nodes(load_config(write(tmp_path, **coded), ["stages=[questions, cold_start, examine]"]))
    names = ("plain.questions", "plain.cold_start", "plain.examine", "coded.cold_start", "coded.examine")
    first, second = ({f"given.{seed}.{name}" for name in names} for seed in (1, 2))
    assert set(found) == (first | second) - {"given.2.plain.questions"} | {"report"}
    one = found["given.2.coded.examine"]
    assert one.inputs == {"questions": "given.1.plain.questions", "policy": "given.2.coded.cold_start"}
    assert one.method == "coded" and one.config.cold_start.code_weight == 0.5
    with pytest.raises(UserError, match=r"of one model; let stages be \[questions, cold_start, examine\]"):
        load_config(write(tmp_path, **coded), ONE_POLICY)


def test_stages_have_their_worlds_settings_and_a_world_that_fails_leaves_the_others(tmp_path):
    class Seen(FakeStages):
        seen = {}

        def run(self, context):
            if context.node.kind == "collect":
                self.seen[context.node.name] = context.config.collect.pairs, context.seed
            super().run(context)

    path = write(tmp_path, factors={"collect.pairs": [10, 60]})
    config = load_config(path, ["stages=[demos, sft, {repeat: 1, of: [collect, optimise, evaluate]}]"])
    stages, folder = Seen(steps=2), RunFolder.create(tmp_path / "run", config.name)
    stages.fail_at = "pairs-10.1.rpro.1.collect"
    with pytest.raises(StageError, match="no luck"):
        executor(config, stages, folder, tmp_path / "store").run()
    expected = {f"pairs-{pairs}.{seed}.rpro.1.collect": (pairs, seed - 1) for pairs in (10, 60) for seed in (1, 2)}
    assert stages.seen == expected
    assert statuses(folder)["pairs-60.2.dagger_buffered.1.evaluate"] == "done"
    assert statuses(folder)["pairs-10.1.rpro.1.evaluate"] == "skipped"
    again = FakeStages(steps=2)
    continued = executor(config, again, folder, tmp_path / "store")
    continued.continue_from(folder.read_stages()[1])
    continued.run()
    assert again.ran and all(name.startswith("pairs-10.1.") for name in again.ran)
    assert set(statuses(folder).values()) == {"done"}


REWARDS = {"verifier": {}, "form": {"weights": {"answer": 1.0, "format": 1.0}}}


@pytest.fixture
def answers(tmp_path):
    def load(changes=None, **study):
        tree = yaml.safe_load((EXPERIMENTS / "frontier_smoke.yaml").read_text()) | (changes or {})
        tree["study"] = {"rewards": REWARDS, "control": "verifier", "seeds": 2} | study
        path = tmp_path / "answers.yaml"
        path.write_text(yaml.safe_dump(tree, sort_keys=False))
        return load_config(path)

    return load


def test_rewards_train_from_the_base_of_their_seed_and_are_examined_by_one_truth_on_the_same_questions(answers):
    config = answers()
    found = nodes(config)
    trained = [name for name in found if name.endswith(".grpo")]
    assert trained == [f"given.{seed}.{name}.1.grpo" for seed in (1, 2) for name in REWARDS]
    assert [found[name].inputs["policy"] for name in trained] == [f"given.{n}.cold_start" for n in (1, 1, 2, 2)]
    assert {found[name].inputs["questions"] for name in trained} == {"given.1.questions"}
    form = found["given.1.form.1.grpo"]
    assert (form.method, form.config.rewards.weights) == ("form", {"answer": 1.0, "format": 1.0})
    assert form.params["truth"]["weights"] == config.rewards.weights
    assert found["given.1.form.1.examine"].params == found["given.1.verifier.1.examine"].params
    assert "given.2.base.examine" in found and "given.2.questions" not in found


def test_another_reward_changes_the_hash_of_no_other_stage_and_a_function_that_changes_that_of_its_own(
    answers, tmp_path
):
    mine = tmp_path / "mine.py"

    def found(weight, value):
        mine.write_text(f"def f(prompts, completions, **columns):\n    return [{value}] * len(completions)\n")
        own = {"weights": {"mine": weight}, "functions": {"mine": f"{mine}:f"}}
        return hashes(answers(rewards=REWARDS | {"mine": own}))

    changed = {f"given.{seed}.mine.1.{kind}" for seed in (1, 2) for kind in ("grpo", "examine")}
    first = found(1.0, 0.1)
    assert differing(first, found(2.0, 0.1)) == differing(first, found(1.0, 0.2)) == changed


def test_a_reward_whose_function_is_not_there_is_named_before_the_start(answers, monkeypatch):
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    mine = {"weights": {"mine": 1}, "functions": {"mine": "nowhere.py:f"}}
    with pytest.raises(UserError, match=r"study.rewards.mine.functions.mine: 'nowhere.py:f': there is no file"):
        preflight.check_machine(answers(rewards=REWARDS | {"mine": mine}))


SCHEMES = {"rewards": {}, "compare": "curriculum.scheme", "methods": ["uniform", "frontier"], "control": "uniform"}


def test_curricula_are_compared_like_all_else(answers):
    config = answers(**SCHEMES)
    found = nodes(config)
    assert found["given.2.frontier.1.grpo"].config.curriculum.scheme == "frontier"
    assert found["given.2.frontier.1.examine"].method == "frontier"
    assert found["given.2.frontier.1.grpo"].inputs["policy"] == "given.2.cold_start"


def test_a_scheme_has_the_hash_of_the_plain_run_whatever_is_beside_it(answers):
    two = hashes(answers(**SCHEMES))
    three = hashes(answers(**SCHEMES | {"methods": ["uniform", "dynamic", "frontier"]}))
    assert differing({name: three[name] for name in two}, two) == set()
    plain = hashes(load_config(EXPERIMENTS / "frontier_smoke.yaml"))
    assert plain["frontier.1.examine"] == two["given.1.frontier.1.examine"] != two["given.1.uniform.1.examine"]


@pytest.mark.parametrize(
    "changes, study, said",
    [
        ({}, {"control": "verify"}, "control is 'verify', which is not one of verifier, form; did you mean verifier"),
        ({}, {"rewards": {"verifier": {}}}, "there is only the control, verifier"),
        ({}, {"rewards": REWARDS | {"a": {"wieghts": {}}}}, "did you mean weights?"),
        ({}, {"rankings": {"a": {}}}, "give one of methods, rewards, rankings and variants"),
        ({}, {"factors": {"rewards.point.scale": [0.1, 0.2]}}, "rewards.point.scale is the whole run's, or said by"),
        ({}, SCHEMES | {"methods": ["uniform", "uniform"]}, "repeat one; name each once"),
        ({}, SCHEMES | {"methods": ["uniform", "frontire"]}, "scheme is 'frontire'; choose one of"),
        ({"curriculum": {"mode": "stage"}}, SCHEMES, "mode stage keeps partial success, which scheme uniform does not"),
        ({"stages": ["questions", "cold_start", "grpo"]}, {}, "study: rewards needs examine; add it to stages"),
        ({"stages": ["questions", "cold_start", "examine", "grpo", "rft"]}, {}, "a pipeline makes one chain of models"),
    ],
)
def test_rewards_that_cannot_be_compared_are_one_line(answers, changes, study, said):
    found = refusal(answers, changes, **study)
    assert "study" in found and said in found


@pytest.mark.parametrize(
    "line, said",
    [
        ("sweep: {baseline: a, variants: {a: {}, b: {}}}", "sweep is a study now: write study, with control for b"),
        ("other_schemes: [uniform]", "other_schemes is a study now: write study: {compare: curriculum.scheme, methods"),
        ("replicates: 3", "replicates is a study now: write study: .* and seeds for replicates"),
    ],
)
def test_what_is_a_study_now_is_told_how_it_is_written(tmp_path, line, said):
    assert re.search(said, refusal(load_config, write_small(tmp_path, line + "\n")))


def test_the_folder_of_an_older_run_may_have_their_defaults(tmp_path):
    assert load_config(write_small(tmp_path, "sweep: null\nother_schemes: []\nreplicates: 1\n")).study is None


def test_a_run_says_first_what_it_can_find(tmp_path, capsys):
    assert main(str(write(tmp_path, spread=0.02)), "--plan") == 0
    assert "study: 4 worlds, 4 comparisons, 2 training seeds: differences vary by 2.0 points" in capsys.readouterr().err


def test_the_files_own_world_is_compared_once_however_many_factors_have_it(load):
    config = load(factors={"collect.pairs": [10, 60], "env.success_tolerance": [1.0, 0.5]})
    assert expected_power(config.model_dump(mode="json"))["comparisons"] == 3
    combined = load(design="all", factors=config.study.factors)
    assert expected_power(combined.model_dump(mode="json"))["comparisons"] == 4


def test_base_is_a_control_of_methods_and_not_of_variants(load, tmp_path):
    found = nodes(load(methods=["rpro"], control="base", factors={}))
    assert {node.method for node in found.values() if node.kind == "optimise"} == {"rpro"}
    unseen = ["stages=[demos, sft, {repeat: 1, of: [collect, optimise, evaluate]}]"]
    said = refusal(load_config, write(tmp_path, control="base"), unseen)
    assert "control is base, which nobody evaluates; add evaluate" in said
    variants = {"methods": [], "variants": {"a": {}, "b": {"sft.steps": 5}}, "control": "base"}
    assert "control is 'base', which is not one of a, b" in refusal(load, **variants)


def test_a_mode_without_a_share_changes_nothing(load):
    found = hashes(load(factors={"demos.modes.edge_grasp": [0, 0.4]}))
    assert found["edge_grasp-0.1.demos"] == hashes(load())["pairs-10.1.demos"] != found["edge_grasp-0-4.1.demos"]


def test_one_seed_finds_nothing_and_more_seeds_smaller_differences(answers):
    parts = {"items": 0.01, "seeds": 0.02, "rest": 0.02, "n": 300, "replicates": 3, "source": "an earlier run"}
    loaded = (answers(seeds=seeds, spread=parts).model_dump(mode="json") for seeds in (1, 3, 30))
    one, few, many = (expected_power(config | {"questions": {"held_out": 300}}) for config in loaded)
    assert "one training seed makes no interval; give at least 2" in power_text(one)
    assert many["detectable"] < few["detectable"] / 3
    assert f"{few['seeds_needed']} training seeds" in power_text(few) and few["units"] == "questions"


def test_without_a_known_spread_power_is_that_of_the_episodes(load):
    expected = expected_power(load(seeds=5).model_dump(mode="json"))
    assert expected["spread"] == pytest.approx((0.5 / 100) ** 0.5) and not expected["is_known"]
    assert expected["detectable"] == pytest.approx((2.7764 + 0.9410) * 0.070711 / 5**0.5, rel=1e-3)
    assert expected["detectable"] < expected["detectable_together"]
    assert "and study.spread could say it" in power_text(expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"control": "rpo"}, r"study: control is 'rpo', which is not one of rpro, dagger_buffered; did you mean rpro"),
        ({"factors": {"collect.pears": [1, 2]}}, r"study: collect.pears=1: collect.pears is not a known key"),
        ({"factors": {"collect.pairs": [0]}}, r"study: collect.pairs=0: collect.pairs: "),
        ({"factors": {"seed": [1, 2]}}, r"study: factors: seed is the whole run's, or said by the study"),
        ({"factors": {"collect.pairs": [10, 10]}}, r"study: factors: collect.pairs has a value twice"),
        ({"methods": ["rpro", "dagr"], "control": "rpro"}, r"dagr"),
        ({"spread": "nowhere.json"}, r"study.spread: nowhere.json is no study.json"),
        (WAYS, r"study: compare is eval.join, of one model; let stages be \[demos, sft, evaluate\]"),
        (WAYS | {"factors": {"eval.join": ["wait", "jump"]}}, r"factors: eval.join is the whole run's, or said by the"),
        (VARIANTS, r"study: variants are given, of one model; let stages be \[demos, sft, evaluate\]"),
        (VARIANTS | {"methods": ["rpro"]}, r"study: give one of methods, rewards, rankings and variants"),
        (VARIANTS | {"variants": {"plain": {}, "coded": {"seed": 1}}}, r"variants: seed of coded is the whole run's"),
        (VARIANTS | {"factors": {"sft.code_weight": [0, 1]}}, r"variants: sft.code_weight of coded is a factor too"),
    ],
)
def test_what_cannot_be_studied_is_one_line(load, changes, message):
    assert re.search(message, refusal(load, **changes))


def test_a_study_needs_evaluated_rounds(tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError, match="study: methods are compared by evaluated rounds"):
        load_config(path, ["stages=[demos, sft, evaluate]"])
