import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import stage_hashes, tree_digest
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import EXPERIMENTS, differing, hashes

VERSIONS = {"code": "1", "torch": "2"}


def config(*overrides: str) -> RunConfig:
    return load_config(EXPERIMENTS / "flowpro_smoke.yaml", overrides)


def changed(*overrides: str) -> set[str]:
    """Names of the stages whose hash another setting changes."""
    return differing(hashes(config()), hashes(config(*overrides)))


def test_a_run_is_demos_sft_and_rounds_of_every_method_then_the_report():
    nodes = expand(config())
    assert [node.name for node in nodes] == [
        *("demos", "sft", "base.evaluate"),
        *("rpro.1.collect", "rpro.1.optimise", "rpro.1.evaluate"),
        *("rpro.2.collect", "rpro.2.optimise", "rpro.2.evaluate"),
        *("continued_sft.1.optimise", "continued_sft.1.evaluate"),
        *("continued_sft.2.optimise", "continued_sft.2.evaluate"),
        "report",
    ]


def test_every_node_comes_after_its_inputs():
    seen: set[str] = set()
    for node in expand(config()):
        assert set(node.inputs.values()) <= seen
        seen.add(node.name)


def test_optimise_gets_all_pairs_so_far_and_the_previous_policy():
    node = {node.name: node for node in expand(config())}["rpro.2.optimise"]
    assert node.inputs == {
        **{"policy": "rpro.1.optimise", "sft": "sft", "demos": "demos"},
        **{"pairs.1": "rpro.1.collect", "pairs.2": "rpro.2.collect"},
    }
    assert node.mix == (0.7, 0.15, 0.15)


def test_another_method_shares_demos_sft_base_evaluation_and_the_first_collection():
    before, after = hashes(config()), hashes(config("method=dagger"))
    for name in ("demos", "sft", "base.evaluate", "continued_sft.2.evaluate"):
        assert before[name] == after[name]
    assert before["rpro.1.collect"] == after["dagger.1.collect"]
    assert before["rpro.1.optimise"] != after["dagger.1.optimise"]
    assert before["rpro.2.collect"] != after["dagger.2.collect"]


def test_evaluation_settings_change_evaluations_only():
    assert changed("eval.episodes=7") == {name for name in hashes(config()) if name.endswith("evaluate")}


def test_an_objective_setting_changes_only_its_method_from_its_first_round():
    names = changed("objectives.rpro.beta=0.5")
    assert names == {name for name in hashes(config()) if name.startswith("rpro.")} - {"rpro.1.collect"}


@pytest.mark.parametrize("override", ["workers.simulation=7", "checkpoint_every=3", "wandb=disabled", "name=other"])
def test_settings_that_change_no_result_change_no_hash(override):
    assert changed(override) == set()


@pytest.mark.parametrize("override", ["seed=1", "demos.episodes=5", "env.variants=[randomized]"])
def test_settings_of_the_demonstrations_change_everything(override):
    assert changed(override) == set(hashes(config()))


def test_rounds_collect_on_different_seeds_even_from_the_same_policy():
    nodes = {node.name: node for node in expand(config())}
    assert nodes["rpro.1.collect"].params != nodes["rpro.2.collect"].params


def test_code_and_package_versions_enter_every_hash():
    nodes = expand(config())
    others = [stage_hashes(nodes, 0, versions) for versions in (VERSIONS, {"code": "2", "torch": "2"}, {"code": "1"})]
    for one, other in itertools.combinations(others, 2):
        assert all(one[name] != other[name] for name in one)


def test_the_content_of_a_checkpoint_enters_the_hash_not_its_path(tmp_path):
    for name, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text(content)
    sft = [hashes(config(f"model.path={tmp_path / name}"))["sft"] for name in "abc"]
    assert sft[0] == sft[1] != sft[2]


@given(rounds=st.integers(1, 5), controls=st.permutations(["continued_sft", "dagger", "flow_dpo"]))
def test_hashes_do_not_depend_on_other_methods_or_their_order(rounds, controls):
    loaded = config(f"controls={list(controls)}", f"stages=[demos, sft, {{repeat: {rounds}, of: [collect, optimise]}}]")
    found = hashes(loaded)
    assert found["rpro.1.optimise"] == hashes(config())["rpro.1.optimise"]
    twins = {found[f"{method}.1.collect"] for method in ("rpro", "dagger", "flow_dpo")}
    assert len(twins) == 1


def test_a_tree_digest_sees_names_and_contents_but_no_caches(tmp_path):
    (tmp_path / "a.py").write_text("1")
    first = tree_digest(tmp_path, (".py",))
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.py").write_text("2")
    (tmp_path / "notes.md").write_text("2")
    assert tree_digest(tmp_path, (".py",)) == first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert tree_digest(tmp_path, (".py",)) != first
