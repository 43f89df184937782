"""Rewards of actions as a graph: what rankings of a study share, and what cannot be ranked."""

import pytest
import yaml

from rl_lab.stages.kinds import load_config
from tests.support.experiments import EXPERIMENTS, differing, hashes, nodes
from tests.support.refusals import refusal

STUDY = yaml.safe_load((EXPERIMENTS / "reward_ablation_actions_smoke.yaml").read_text())
STUDY["study"]["seeds"] = 2
del STUDY["reward_models"]["kinds"]
LEARNED = ("success", "world_model", "progress", "deviation")
STUDY["study"]["rankings"] = {"interventions": {}} | {
    name: {"weights": {name: 1.0}, "margin": 0.0} for name in (*LEARNED, "random")
}
METHODS = tuple(STUDY["study"]["rankings"])
ROUND = {"repeat": 1, "of": ["collect", "rank", "optimise", "evaluate"]}


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
        return load_config(path)

    return load


def rankings(**changes):
    return STUDY["study"] | {"rankings": STUDY["study"]["rankings"] | changes}


def test_methods_share_everything_that_does_not_depend_on_the_reward(load):
    found = nodes(load())
    for name in METHODS:
        training = found[f"given.2.{name}.1.optimise"]
        assert training.inputs["pairs.1"] == "given.2.interventions.1.collect"
        assert training.inputs["policy"] == training.inputs["sft"] == "given.2.sft"
        if name != "interventions":
            assert found[f"given.2.{name}.1.rank"].inputs["candidates"] == "given.2.success.1.candidates"
    assert found["given.1.world_model.1.rank"].inputs["world_model"] == "given.1.reward.world_model"
    assert set(found["given.1.deviation.1.rank"].inputs) == {"candidates"}
    assert "given.1.interventions.1.rank" not in found
    assert "ranked" not in found["given.1.interventions.1.optimise"].inputs


def test_another_ranking_trains_only_its_own_method_anew_and_another_share_makes_no_pairs_anew(load):
    before = hashes(load())
    for change, kinds in (
        ({"margin": 0.3}, ("rank", "optimise", "evaluate")),
        ({"share": 0.25}, ("optimise", "evaluate")),
    ):
        ranking = STUDY["study"]["rankings"]["progress"] | change
        changed = differing(before, hashes(load(study=rankings(progress=ranking))))
        assert changed == {f"given.{seed}.progress.1.{kind}" for seed in (1, 2) for kind in kinds}


def test_a_reward_model_more_leaves_the_others_as_they_are(load):
    few = {name: ranking for name, ranking in STUDY["study"]["rankings"].items() if name != "world_model"}
    models = STUDY["reward_models"] | {"kinds": ["success", "progress"]}
    before = hashes(load(reward_models=models, study=STUDY["study"] | {"rankings": few}))
    after = hashes(load())
    assert before.items() <= after.items()
    assert "given.1.reward.world_model" in after.keys() - before.keys()


def test_ranked_pairs_get_their_part_of_the_share_of_new_pairs(load):
    found = nodes(load())
    assert found["given.1.interventions.1.optimise"].mix == (0.8, 0.2)
    assert found["given.1.progress.1.optimise"].mix == pytest.approx((0.4, 0.2, 0.4))
    assert found["given.1.progress.1.optimise"].params["mix"] == pytest.approx([0.4, 0.2, 0.4])


def test_a_run_without_a_study_ranks_the_chunks_of_each_round(load):
    stages = ["demos", "sft", "reward_models", ROUND | {"repeat": 2}]
    plain = {"study": None, "controls": ["continued_sft", "dagger"], "stages": stages}
    found = nodes(load(**plain, ranking={"weights": {"world_model": 1.0, "deviation": 0.5}}))
    assert found["rpro.2.candidates"].inputs == {"policy": "rpro.1.optimise"}
    assert found["rpro.2.rank"].inputs == {"candidates": "rpro.2.candidates", "world_model": "reward.world_model"}
    assert found["rpro.2.optimise"].inputs["ranked"] == "rpro.2.rank"
    assert len(found["rpro.2.optimise"].mix) == 4
    for control in ("continued_sft", "dagger"):  # neither compares two chunks of a state
        assert "ranked" not in found[f"{control}.1.optimise"].inputs
        assert found[f"{control}.1.optimise"].mix == (0.8, 0.2)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"stages": ["demos", "sft", ROUND]}, "success is a trained model; add reward_models to stages, after sft"),
        (
            {"stages": ["demos", "sft", "reward_models", {"repeat": 1, "of": ["collect", "rank", "optimise"]}]},
            "methods are compared by evaluated rounds",
        ),
        ({"reward_models": {"kinds": ["success", "progress"]}}, "world_model is not among reward_models.kinds"),
        ({"reward_models": {"members": 1}}, "reward_models.members"),
        ({"method": "dagger"}, "dagger does not learn from single states"),
        ({"study": {"control": "a", "rankings": {"a": {"weights": {"succes": 1.0}}, "b": {}}}}, "succes"),
        ({"study": {"control": "a", "rankings": {"a": {}, "b": {"margin": -1.0}}}}, "margin"),
        ({"study": {"control": "a", "rankings": {"a": {}}}}, "there is only the control, a"),
        ({"study": None}, "ranking.weights is empty"),
        (
            {"study": None, "ranking": {"weights": {"random": 1.0}}, "stages": ["demos", "sft", "evaluate"]},
            "nothing is ranked; add rank before optimise",
        ),
        ({"stages": ["demos", "reward_models", "sft", ROUND]}, "reward_models needs sft before it"),
    ],
)
def test_what_cannot_be_ranked_is_said(load, changes, said):
    assert said in refusal(load, **changes)
