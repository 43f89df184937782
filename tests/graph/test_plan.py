"""Estimates of time beside what was measured, and how stages wait for each other."""

import math
from itertools import groupby

import pytest
import torch
import yaml
from safetensors.torch import save_file

from algos.policy import PolicySpec
from rl_lab.config.load import dump_changes
from rl_lab.graph.nodes import Node
from rl_lab.graph.plan import (
    CORES,
    PARAMETERS,
    SECONDS_PER_STAGE,
    Forecast,
    by_urgency,
    plan_table,
    seconds,
    waits_for,
    wall_seconds,
)
from rl_lab.graph.store import Store
from rl_lab.model.policies.state import StatePolicy
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.stages.kinds import KINDS, expand, load_config, resolve_config
from tests.support.experiments import EXPERIMENTS, RUNS, write_small

MEASURED = [
    ("flowpro_tabletop", 11, ()),
    ("frontier_rl", 11, ()),
    ("self_evolving", 27, ("teacher",)),
    ("self_evolving_smoke", 2.5, ()),
    ("distillation", 50, ("teacher",)),
    ("joint", 19, ()),
    ("reward_ablation", 36, ()),
    ("reward_ablation_smoke", 96 / 60, ()),
    ("reward_ablation_actions", 34, ()),
    ("reward_ablation_actions_smoke", 115 / 60, ()),
    ("outcome_model", 20, ()),
]
"""Experiment, minutes as experiments/README.md says, and what was there before."""


@pytest.mark.parametrize(("name", "minutes", "there"), MEASURED)
def test_estimates_are_near_what_was_measured(name, minutes, there):
    config = load_config(EXPERIMENTS / f"{name}.yaml")
    nodes = expand(config)
    assert set(there) <= {node.name for node in nodes}
    costs = {node.name: 0.0 if node.name in there else seconds(node, config) for node in nodes}
    order = by_urgency(nodes, costs, is_study=config.study is not None)
    estimate = wall_seconds(order, costs, min(CORES, config.workers.stages)) / 60
    assert 0.6 < estimate / minutes < 1.6


def test_stages_wait_for_inputs_for_slots_and_for_workers_that_they_share():
    def node(name: str, kind: str, *needs: str) -> Node:
        return Node(name, KINDS[kind], inputs={need: need for need in needs})

    first, other = node("a", "sft"), node("b", "optimise", "a")
    costs = dict.fromkeys("abcde", 10.0)
    assert wall_seconds([first, other], costs, 2) == 20
    assert wall_seconds([first, node("b", "sft")], costs, 2) == 10
    assert wall_seconds([first, node("b", "sft")], costs, 1) == 20
    engines = [node("a", "examine"), node("b", "grpo"), node("c", "evaluate"), node("d", "joint")]
    assert wall_seconds(engines[:2], costs, 2) == 20
    assert wall_seconds(engines[1:3], costs, 2) == 10
    assert wall_seconds(engines[2:], costs, 2) == 20
    gated = Node("b", KINDS["sft"], when=("a", True))
    assert wall_seconds([node("a", "gate"), gated], costs, 2) == 20


def test_the_critical_path_starts_first_behind_what_all_methods_share():
    config = load_config(EXPERIMENTS / "flowpro_tabletop.yaml")
    nodes = expand(config)
    order = by_urgency(nodes, {node.name: seconds(node, config) for node in nodes})
    assert [node.name for node in order[:3]] == ["demos", "sft", "base.evaluate"]
    names = [node.name for node in order]
    assert names.index("rpro.1.collect") < names.index("continued_sft.1.optimise") < names.index("rpro.1.evaluate")
    for node in (node for node in nodes if node.kind == "optimise" and node.round == 2):
        assert names.index(node.name) < names.index(f"{node.method}.1.evaluate")

    def chain(*lengths: float) -> tuple[list[Node], dict[str, float]]:
        kind = KINDS["optimise"]
        made = [Node(f"m.{i}", kind, inputs={"a": f"m.{i - 1}"} if i else {}, method="m") for i in range(len(lengths))]
        return [Node("alone", kind, method="n"), *made], {"alone": 10.0} | {
            node.name: length for node, length in zip(made, lengths, strict=True)
        }

    graph, costs = chain(4.0, 4.0, 4.0)
    assert [node.name for node in by_urgency(graph, costs)] == ["m.0", "alone", "m.1", "m.2"]
    assert by_urgency(graph, costs | {"m.2": math.nan})[0].name == "alone", "a time that is not known counts as 0"


@pytest.mark.parametrize(
    "name", ["self_evolving", "distillation", "joint", "study_contrast", "study_frontier", "study_joint", "study_draws"]
)
def test_stages_start_in_an_order_in_which_all_can_and_a_study_goes_seed_by_seed(name):
    config = load_config(EXPERIMENTS / f"{name}.yaml")
    nodes = expand(config)
    order = by_urgency(nodes, dict.fromkeys((node.name for node in nodes), 1.0), is_study=config.study is not None)
    seen = set()
    for node in order:
        assert node.kind == "report" or waits_for(node) <= seen
        seen.add(node.name)
    if config.study:
        places = [tuple(name.split(".")[:2]) for name in (node.name for node in order)]
        assert list(dict.fromkeys(places)) == [place for place, _ in groupby(places)]


@pytest.mark.parametrize("name", PARAMETERS)
def test_presets_have_so_many_parameters(name):
    with torch.device("meta"):
        policy = StatePolicy(PolicySpec(truth_size=14)) if name == "state" else HyVLAPolicy(preset_config(name))
    assert sum(one.numel() for one in policy.parameters()) == pytest.approx(PARAMETERS[name], rel=0.02)


def test_a_checkpoint_costs_what_its_own_size_costs(tmp_path):
    path, steps = write_small(tmp_path), "sft.steps=10000"
    save_file({"weight": torch.zeros(1000, 5400)}, tmp_path / "model.safetensors")  # twice nano's parameters
    nano, given = load_config(path, [steps]), load_config(path, [steps, f"model.path={tmp_path}"])
    times = [seconds(Node("sft", KINDS["sft"]), config) - SECONDS_PER_STAGE for config in (nano, given)]
    assert times[1] == pytest.approx(2 * times[0])


def test_a_model_that_no_cpu_trains_is_not_given_a_time(tmp_path):
    config = load_config(write_small(tmp_path), ["model.preset=mot-2b", "env.image_size=224"])
    lines = plan_table(config, expand(config), {}, Store(tmp_path)).splitlines()
    assert lines[-1].startswith("  needs a GPU: ") and "sft" in lines[1] and lines[1].endswith("needs a GPU")
    assert " min" in lines[0], "demonstrations need no model"


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_settings_that_are_no_defaults_say_the_whole(path):
    config = load_config(path)
    text = dump_changes(config)
    assert resolve_config(yaml.safe_load(text), "changes") == config
    assert text.count("\n") < 80


def test_a_run_still_takes_what_was_planned_at_the_pace_that_was_shown(tmp_path):
    config = load_config(write_small(tmp_path))
    chain = {"a": {}, "b": {"a": "a"}, "c": {"b": "b"}}
    nodes = [Node(name, KINDS["sft"], inputs=inputs) for name, inputs in chain.items()]
    forecast = Forecast(config, nodes)
    forecast.costs = dict.fromkeys("abc", 10.0)
    assert forecast.left({}, {}) is None, "nothing has shown a pace"
    assert forecast.left({}, {"a": (5.0, 15.0)}) == pytest.approx(15 + 20 + 20)
    assert forecast.left({"a": 30.0}, {}) == pytest.approx(60)
    assert forecast.left({"a": 30.0}, {"b": (20.0, 4.0)}) == pytest.approx(4 + 30)
    assert forecast.left({"a": None, "b": 5.0}, {}) == pytest.approx(5), "a reused stage shows no pace"
    assert forecast.left({"a": 1.0, "b": 1.0, "c": 1.0}, {}) == 0
    forecast.costs["c"] = math.inf
    assert forecast.left({"a": 30.0}, {}) is None
    there = Forecast(config, nodes, stored={"b"})
    assert there.left({"a": there.costs["a"]}, {}) == pytest.approx(there.costs["c"]), "what is stored takes no time"
    own = {"a": there.costs["a"], "b": there.costs["b"]}
    assert there.left(own, {}) == pytest.approx(there.costs["c"]), "a resumed run's own stages show the pace"
