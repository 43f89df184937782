"""A reward sweep as a graph: what variants share, and that they do not need each other."""

from contextlib import contextmanager

import pytest
import yaml

from rl_lab import run
from rl_lab.errors import UserError
from rl_lab.graph.executor import StageError
from rl_lab.graph.run_folder import RunFolder
from rl_lab.reports.pages.sweep import power_text
from rl_lab.reports.sweep import expected_power
from rl_lab.stages import preflight
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import EXPERIMENTS, FakeStages, differing, executor, hashes, statuses

SWEEP = {
    "baseline": "verifier",
    "variants": {
        "verifier": {},
        "form": {"weights": {"answer": 1.0, "format": 1.0}},
        "none": {"weights": {"format": 1}},
    },
}


@pytest.fixture
def write(tmp_path):
    def write(**changes):
        tree = yaml.safe_load((EXPERIMENTS / "frontier_smoke.yaml").read_text()) | {"sweep": SWEEP, "replicates": 2}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(tree | changes, sort_keys=False))
        return path

    return write


class FakeSweep(FakeStages):
    kinds = ("questions", "cold_start", "examine", "grpo")


def test_every_variant_is_trained_with_every_seed_from_one_base(write):
    nodes = {node.name: node for node in expand(load_config(write()))}
    trained = [name for name in nodes if name.endswith(".grpo")]
    assert trained == [f"{name}.{seed}.grpo" for name in ("verifier", "form", "none") for seed in (1, 2)]
    assert {nodes[name].inputs["policy"] for name in trained} == {"cold_start"}


def test_variants_train_on_their_own_reward_and_are_examined_by_one(write):
    config = load_config(write())
    nodes = {node.name: node for node in expand(config)}
    assert nodes["form.1.grpo"].params["rewards"]["weights"] == {"answer": 1.0, "format": 1.0}
    assert nodes["form.1.grpo"].params["truth"]["weights"] == config.rewards.weights
    assert nodes["form.1.examine"].params == nodes["verifier.1.examine"].params


def test_another_variant_changes_the_hash_of_no_other_stage(write):
    variants = SWEEP["variants"] | {"form": {"weights": {"answer": 2.0, "format": 1.0}}}
    before, after = (hashes(load_config(write(sweep=sweep))) for sweep in (SWEEP, SWEEP | {"variants": variants}))
    assert differing(before, after) == {f"form.{seed}.{kind}" for seed in (1, 2) for kind in ("grpo", "examine")}


def test_a_variant_that_fails_stops_no_other_and_runs_again_alone(tmp_path, write):
    config, stages = load_config(write()), FakeSweep()
    stages.fail_at = "form.1.grpo"
    folder = RunFolder.create(tmp_path / "run", config.name)
    with pytest.raises(StageError, match=r"form.1.grpo failed: no luck"):
        executor(config, stages, folder, tmp_path / "store").run()
    left = {name: status for name, status in statuses(folder).items() if status != "done"}
    assert left == {"form.1.grpo": "failed", "form.1.examine": "skipped"}
    assert (folder.path / "report.html").exists()

    again = FakeSweep()
    continued = executor(config, again, folder, tmp_path / "store")
    continued.continue_from(folder.read_stages()[1])
    continued.run()
    assert again.ran == ["form.1.grpo", "form.1.examine"]
    assert set(statuses(folder).values()) == {"done"}


def test_a_function_that_changes_changes_the_hash(tmp_path, write):
    mine = tmp_path / "mine.py"
    sweep = SWEEP | {"variants": {"verifier": {}, "mine": {"weights": {"mine": 1}, "functions": {"mine": f"{mine}:f"}}}}

    def found(value):
        mine.write_text(f"def f(prompts, completions, **columns):\n    return [{value}] * len(completions)\n")
        return hashes(load_config(write(sweep=sweep)))

    changed = {f"mine.{seed}.{kind}" for seed in (1, 2) for kind in ("grpo", "examine")}
    assert differing(found(0.1), found(0.2)) == changed


def test_a_variant_whose_function_is_not_there_is_named_before_the_start(write, monkeypatch):
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    variants = {"verifier": {}, "mine": {"weights": {"mine": 1}, "functions": {"mine": "nowhere.py:f"}}}
    with pytest.raises(UserError, match=r"sweep.variants.mine.functions.mine: 'nowhere.py:f': there is no file"):
        preflight.check_machine(load_config(write(sweep=SWEEP | {"variants": variants})))


SPREAD = {"items": 0.01, "seeds": 0.02, "rest": 0.02, "n": 300, "replicates": 3, "source": "three earlier seeds"}


@pytest.mark.parametrize(
    "spread, said",
    [
        (SPREAD, "is found in 4 of 5 sweeps; 0.05 needs"),
        (None, "name an earlier sweep.json in sweep.spread"),
    ],
)
def test_what_a_sweep_can_find_is_said_before_it_starts(tmp_path, write, monkeypatch, capsys, spread, said):
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def stages(config):
        before = capsys.readouterr().err
        assert "sweep: " in before and said in before
        yield FakeSweep().functions()

    assert run.main([str(write(sweep=SWEEP | {"spread": spread})), "--run-dir", "out", "wandb=disabled"], stages) == 0
    assert run.main([str(write(sweep=SWEEP | {"spread": spread})), "--dry-run"]) == 0
    assert said in capsys.readouterr().err


def test_more_seeds_find_smaller_differences_and_the_line_says_how_many_five_points_need(write):
    def expected(replicates):
        config = load_config(write(sweep=SWEEP | {"spread": SPREAD}, replicates=replicates))
        return expected_power(config.model_dump(mode="json"))

    few, many = expected(3), expected(30)
    assert many["detectable"] < few["detectable"] / 3
    text = power_text(few)
    assert f"{few['seeds_needed']} training seeds" in text and "differ by 0.020" in text


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"sweep": SWEEP | {"spread": "nowhere.json"}}, "sweep.spread: nowhere.json is no sweep.json"),
        ({"sweep": SWEEP | {"baseline": "verify"}}, "baseline is 'verify', which is not one of verifier, form, none"),
        ({"sweep": SWEEP | {"variants": {"verifier": {}}}}, "variants has only the baseline"),
        ({"sweep": SWEEP | {"variants": {"verifier": {}, "a": {"wieghts": {}}}}}, "did you mean weights?"),
        ({"other_schemes": ["uniform"]}, "leave out other_schemes"),
        ({"stages": ["questions", "cold_start", "grpo"]}, "add examine to stages"),
    ],
)
def test_what_cannot_be_compared_is_said(write, changes, said):
    with pytest.raises(UserError, match="sweep") as error:
        load_config(write(**changes))
    assert said in str(error.value)
