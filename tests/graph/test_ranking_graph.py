"""Rewards of actions as a graph: what variants of a sweep share, and what cannot be ranked."""

import pytest
import yaml

from rl_lab.stages.kinds import load_config
from tests.support.experiments import EXPERIMENTS, differing, hashes, nodes
from tests.support.refusals import refusal

SWEEP = yaml.safe_load((EXPERIMENTS / "reward_ablation_actions_smoke.yaml").read_text())
SWEEP["replicates"] = 2
del SWEEP["reward_models"]["kinds"]
LEARNED = ("success", "world_model", "progress", "deviation")
SWEEP["sweep"]["rankings"] = {"interventions": {}} | {
    name: {"weights": {name: 1.0}, "margin": 0.0} for name in (*LEARNED, "random")
}
VARIANTS = tuple(SWEEP["sweep"]["rankings"])
ROUND = {"repeat": 1, "of": ["collect", "rank", "optimise", "evaluate"]}


@pytest.fixture
def load(tmp_path):
    def load(**changes):
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(SWEEP | changes, sort_keys=False))
        return load_config(path)

    return load


def rankings(**changes):
    return SWEEP["sweep"] | {"rankings": SWEEP["sweep"]["rankings"] | changes}


def test_variants_share_everything_that_does_not_depend_on_the_reward(load):
    found = nodes(load())
    for name in VARIANTS:
        training = found[f"{name}.2.optimise"]
        assert training.inputs["pairs.1"] == "seed.2.collect"
        assert training.inputs["policy"] == training.inputs["sft"] == "sft"
        if name != "interventions":
            assert found[f"{name}.2.rank"].inputs["candidates"] == "seed.2.candidates"
    assert found["world_model.1.rank"].inputs["world_model"] == "seed.1.world_model"
    assert set(found["deviation.1.rank"].inputs) == {"candidates"}
    assert "interventions.1.rank" not in found and "ranked" not in found["interventions.1.optimise"].inputs


def test_another_ranking_trains_only_its_own_variant_anew(load):
    before, after = hashes(load()), hashes(load(sweep=rankings(progress={"weights": {"progress": 1.0}, "margin": 0.3})))
    changed = differing(before, after)
    assert changed == {f"progress.{seed}.{kind}" for seed in (1, 2) for kind in ("rank", "optimise", "evaluate")}


def test_another_share_makes_no_pairs_anew(load):
    ranking = SWEEP["sweep"]["rankings"]["progress"] | {"share": 0.25}
    before, after = hashes(load()), hashes(load(sweep=rankings(progress=ranking)))
    changed = differing(before, after)
    assert changed == {f"progress.{seed}.{kind}" for seed in (1, 2) for kind in ("optimise", "evaluate")}


def test_a_reward_model_more_leaves_the_others_as_they_are(load):
    few = {name: ranking for name, ranking in SWEEP["sweep"]["rankings"].items() if name != "world_model"}
    models = SWEEP["reward_models"] | {"kinds": ["success", "progress"]}
    before = hashes(load(reward_models=models, sweep=SWEEP["sweep"] | {"rankings": few}))
    after = hashes(load())
    assert before.items() <= after.items()
    assert "seed.1.world_model" in after.keys() - before.keys()


def test_training_seeds_differ_in_everything_behind_the_base(load):
    found = hashes(load())
    for name in [name for name in found if ".1." in name and not name.endswith("evaluate")]:
        assert found[name] != found[name.replace(".1.", ".2.")], name


def test_ranked_pairs_get_their_part_of_the_share_of_new_pairs(load):
    found = nodes(load())
    assert found["interventions.1.optimise"].mix == (0.8, 0.2)
    assert found["progress.1.optimise"].mix == pytest.approx((0.4, 0.2, 0.4))
    assert found["progress.1.optimise"].params["mix"] == pytest.approx([0.4, 0.2, 0.4])


def test_a_run_without_a_sweep_ranks_the_chunks_of_each_round(load):
    stages = ["demos", "sft", "reward_models", ROUND | {"repeat": 2}]
    plain = {"sweep": None, "replicates": 1, "controls": ["continued_sft", "dagger"], "stages": stages}
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
        ({"controls": ["continued_sft"]}, "set controls: []"),
        ({"stages": ["demos", "sft", ROUND]}, "success is a trained model; add reward_models to stages, after sft"),
        ({"stages": ["demos", "sft", "reward_models", ROUND | {"repeat": 2}]}, "after one round, but repeat is 2"),
        (
            {"stages": ["demos", "sft", "reward_models", {"repeat": 1, "of": ["collect", "rank", "optimise"]}]},
            "add evaluate to stages",
        ),
        ({"reward_models": {"kinds": ["success", "progress"]}}, "world_model is not among reward_models.kinds"),
        ({"reward_models": {"members": 1}}, "reward_models.members"),
        ({"method": "dagger"}, "dagger does not learn from single states"),
        ({"sweep": {"baseline": "a", "rankings": {"a": {"weights": {"succes": 1.0}}, "b": {}}}}, "succes"),
        ({"sweep": {"baseline": "a", "rankings": {"a": {}, "b": {"margin": -1.0}}}}, "margin"),
        ({"sweep": {"baseline": "a", "rankings": {"a": {}}}}, "rankings has only the baseline"),
        ({"sweep": {"baseline": "a", "rankings": {"a": {}}, "variants": {"b": {}}}}, "a sweep compares one kind"),
        ({"sweep": None}, "ranking.weights is empty"),
        (
            {"sweep": None, "ranking": {"weights": {"random": 1.0}}, "stages": ["demos", "sft", "evaluate"]},
            "nothing is ranked; add rank before optimise",
        ),
        ({"stages": ["demos", "reward_models", "sft", ROUND]}, "reward_models needs sft before it"),
    ],
)
def test_what_cannot_be_ranked_is_said(load, changes, said):
    assert said in refusal(load, **changes)
