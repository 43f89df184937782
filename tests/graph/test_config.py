import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl_lab.common.errors import UserError
from rl_lab.config.load import dump_config, merge
from rl_lab.graph.record import substitutions
from rl_lab.stages.kinds import load_config
from tests.support.experiments import EXPERIMENTS, RUNS, write_small
from tests.support.refusals import refusal


def complaint(path: Path, *overrides: str) -> str:
    return refusal(load_config, path, overrides)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("sft.stepz=3", ("command line", "sft.stepz is not a known key", "did you mean sft.steps?")),
        ("lr=1", ("did you mean sft.lr or optimise.lr or cold_start.lr or rl.lr?",)),
        ("objectives={rpro: {bta: 1}}", ("objectives.rpro.bta", "did you mean objectives.rpro.beta?")),
        ("tabletop.imagesize=3", ("tabletop section", "did you mean env.image_size or model.image_size or")),
        ("robotwin.sft.stepz=3", ("robotwin section", "did you mean sft.steps?")),
        ("optimise.lora={rnk: 4}", ("optimise.lora.rnk", "did you mean optimise.lora.rank?")),
        ("optimise.lora={targets: []}", ("optimise.lora.targets", "at least 1")),
        ("sft.lora={}", ("sft.lora", "give model.path")),
        ("sft.steps=abc", ("sft.steps", "valid integer", "'abc'")),
        ("sft.steps=1.5", ("sft.steps", "valid integer")),
        ("sft.steps=true", ("sft.steps", "valid integer")),
        ("sft.steps=0", ("sft.steps", "greater than 0", "0")),
        ("sft.lr=.inf", ("sft.lr", "finite")),
        ("sft.lr=.nan", ("sft.lr", "finite")),
        ("sft.schedule=cosin", ("sft.schedule", "did you mean cosine?")),
        ("sft.num_codes=32", ("sft: num_codes is 32", "code_weight is 0", "leave num_codes out")),
        ("sft.decay_fraction=0.5", ("schedule is cosine", "has no decay_fraction")),
        ("sft={schedule: constant, final_lr_fraction: 0.5}", ("schedule is constant", "has no final_lr_fraction")),
        ("reward_models.rows_at_once=4", ("reward_models", "whole batches")),
        ("cold_start={backend: trl, rows_at_once: 4}", ("without rows_at_once",)),
        ("wandb=offlin", ("wandb", "did you mean offline?")),
        ("env.tasks=[handover]", ("handover_block", "'handover'")),
        ("env.tasks=[]", ("at least one",)),
        ("env.tasks=handover_block", ("env.tasks", "array")),
        ("buffers.mix_first=[0.5, 0.6]", ("buffers.mix_first", "sum to 1.1")),
        ("sft.warmup=10", ("warmup is 10", "steps is 10")),
        ("collect.rollback_steps=[9, 8]", ("[9, 8]", "smaller number first")),
        ("collect.pairs=5000", ("5000", "max_episodes is 400")),
        ("controls=[rpro]", ("name each once",)),
        ("method=rpr", ("rpr", "rpro")),
        ("objectives={rpr: {}}", ("rpr", "rpro")),
        ("stages=[sft]", ("sft needs demos before it",)),
        ("stages=[]", ("empty",)),
        ("stages=[demos, demos]", ("demos is there twice",)),
        ("stages=[demos, sftt]", ("stages.1", "did you mean sft?")),
        ("stages=[demos, sft, {repeat: 0, of: [collect, optimise]}]", ("stages.2.repeat", "greater than 0")),
        ("stages=[demos, sft, {repeat: 1, of: [optimise, collect]}]", ("stages.2.of", "[collect, optimise, evaluate]")),
        ("stages=[demos, sft, {repet: 1, of: [collect, optimise]}]", ("did you mean stages.2.repeat?",)),
        ("stages=[demos, {repeat: 1, of: [collect, optimise]}]", ("repeat needs sft before it",)),
        ("stages=[demos, sft, {repeat: 1, of: [collect, optimise]}, evaluate]", ("must come last",)),
        ("env.backend=robotwin", ("ROBOTWIN_ROOT is not set", "env.backend=tabletop")),
        ("workers.rollout=-1", ("workers.rollout", "0")),
        ("grpo.epsilom=0.3", ("grpo: there is no GRPO option 'epsilom'", "did you mean 'epsilon'?")),
        ("grpo.top_p=0.9", ("top_p is not supported", "remove it")),
        ("grpo.loss_type=gspo", ("loss_type 'gspo' is not supported",)),
        ("num_generations=4", ("did you mean grpo.num_generations or distill.num_generations?",)),
        ("curriculum.batch_sizes=3", ("curriculum: batch_sizes is not a known key", "did you mean batch_size?")),
        ("curriculum={batch_size: 8, low: 2}", ("curriculum: the band (2.0, 0.9)",)),
        ("rewards.point.scale=-1", ("rewards: point", "above 0")),
        ("rewards=3", ("rewards: expected keys with values",)),
        ("questions.tasks=[foo]", ("questions.tasks", "'foo' is not one of")),
        ("stages=[questions, grpo]", ("grpo needs cold_start before it", "model.path")),
        ("stages=[cold_start]", ("cold_start needs questions before it",)),
        ("rl={backend: trl, staleness: 1}", ("rl: staleness is 1", "trains in turns; set it to 0")),
        ("cold_start={backend: trl, ema: 0.9}", ("cold_start: backend is trl", "without ema")),
        ("cold_start={backend: trl, code_weight: 1}", ("cold_start: backend is trl", "without code_weight")),
        ("rl={backend: trl, global_weight: 0.5}", ("rl: backend is trl", "without global_weight")),
        ("rl={backend: trl, lora: {rank: 4}}", ("rl: backend is trl", "without lora")),
        ("rl={backend: trl, rows_at_once: 4}", ("rl: backend is trl", "without rows_at_once")),
        ("demos={files: {paths: []}}", ("demos.files.paths", "at least 1")),
        ("demos={files: {paths: [data]}, episodes: 9}", ("demos: episodes and action_noise_m are the expert's",)),
        ("demos={files: {paths: [data]}, modes: {edge_grasp: 0.2}}", ("demos: modes are the expert's",)),
        ("demos.modes={edge_grasp: 0.7, other_face: 0.4}", ("demos: modes", "add up to 1.1")),
        ("demos.modes={late_grasp: 0.2}", ("handover_block has no mode 'late_grasp'", "edge_grasp, edge_release")),
        ("env.success_tolerance=0", ("env.success_tolerance", "greater than 0")),
        ("env={tasks: [grab_roller], success_tolerance: 0.5}", ("no distance decides in grab_roller",)),
        ("env={backend: 'a.py:make', success_tolerance: 0.5}", ("success_tolerance is the tabletop's",)),
        ("collect.corrector={kind: own, code: 'a.py:f', noise_m: 0.01}", ("noise_m is the scripted expert's",)),
        ("collect.swapped_share=1.5", ("collect.swapped_share", "1")),
        ("objectives={rpro: {variant_of: rpro}}", ("objectives.rpro: a variant needs a name of its own",)),
        ("objectives={dagger: {loser_states: 4}}", ("dagger has no loser_states; leave it out",)),
        (
            "objectives={start: {variant_of: rpro_no_interpolation, loser_states: 4}}",
            ("rpro_no_interpolation has no loser_states; leave it out",),
        ),
        (
            "objectives={own: {code: 'examples/ipo.py:IPO', rows: winners, loser_states: 4}}",
            ("loser_states are of tuples, but rows are winners",),
        ),
        ("objectives={other: {variant_of: dagger}}", ("dagger has no settings that a variant could change",)),
        ("model.memory={frames: 1}", ("model.memory.frames", "2")),
        ("name=a/b", ("name", "a/b")),
        ("model=nano", ("model", "object")),
        ("sft.steps", ("not of the form key=value",)),
        ("sft.st-eps=1", ("not of the form key=value",)),
        ("env={a: 1, a: 2}", ("the key 'a' is there twice",)),
        ("sft.steps=[1", ("override 'sft.steps=[1'",)),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key_and_the_fix(tmp_path, override, parts):
    message = complaint(write_small(tmp_path), override)
    assert all(part in message for part in parts), message


def test_mistakes_in_the_file_name_the_file(tmp_path):
    path = write_small(tmp_path, "sft2: {steps: 3}\n")
    assert complaint(path).startswith(f"{path}: sft2 is not a known key; did you mean sft?")


def test_duplicate_keys_are_errors_with_their_line(tmp_path):
    assert "line 7: the key 'name' is there twice" in complaint(write_small(tmp_path, "name: again\n"))


@pytest.mark.parametrize(
    "content", ["", "- a\n", "just text\n", "a: [1\n", "a: !!python/object:os.system {}\n", "\x00"]
)
def test_files_that_are_no_configuration_are_refused(tmp_path, content):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    assert str(path) in complaint(path)


def test_a_missing_file_suggests_its_neighbour(tmp_path):
    write_small(tmp_path)
    assert "did you mean" in complaint(tmp_path / "smal.yaml")
    assert "no such file" in complaint(tmp_path / "nowhere" / "x.yaml")
    assert "cannot be read" in complaint(tmp_path)


def test_a_missing_key_is_named(tmp_path):
    path = tmp_path / "nameless.yaml"
    path.write_text("stages: [demos]\n")
    assert "name is missing" in complaint(path)


def test_numbers_without_a_point_and_exponents_are_numbers(tmp_path):
    config = load_config(write_small(tmp_path), ["sft.lr=1e-4", "optimise.lr=2"])
    assert (config.sft.lr, config.optimise.lr) == (1e-4, 2.0)


def test_dates_and_words_stay_text(tmp_path):
    assert load_config(write_small(tmp_path), ["name=2026-01-01"]).name == "2026-01-01"


def test_overrides_beat_the_backend_section_which_beats_the_file(tmp_path):
    path = write_small(tmp_path, "demos: {episodes: 3}\ntabletop: {demos: {episodes: 4}, image_size: 32}\n")
    assert load_config(path).demos.episodes == 4
    assert load_config(path).env.image_size == 32
    assert load_config(path, ["demos.episodes=5"]).demos.episodes == 5


def test_the_other_backends_section_changes_nothing(tmp_path):
    path = write_small(tmp_path, "robotwin: {model: {path: somewhere}, image_size: 224}\n")
    assert load_config(path).model.path is None
    assert load_config(path).env.image_size == 64


def test_the_main_job_can_be_told_its_backend():
    config = load_config(EXPERIMENTS / "flowpro_robotwin.yaml", ["env.backend=tabletop"])
    assert (config.env.backend, config.env.variants) == ("tabletop", ("clean",))


def test_backend_auto_is_tabletop_unless_robotwin_is_there(tmp_path, monkeypatch):
    assert load_config(write_small(tmp_path)).env.backend == "tabletop"
    monkeypatch.setenv("ROBOTWIN_ROOT", "somewhere")
    path = write_small(tmp_path, "tabletop: {variants: [randomized]}\n")
    config = load_config(path, ["env.tasks=[adjust_bottle]"])
    assert (config.env.backend, config.env.variants) == ("robotwin", ("demo_clean",))
    config = load_config(path, ["env.backend=tabletop"])
    assert (config.env.backend, config.env.variants) == ("tabletop", ("randomized",))
    assert "adjust_bottle" in complaint(path, "env.backend=tabletop", "env.tasks=[adjust_bottle]")


def test_what_stands_for_a_teacher_is_recorded():
    config = load_config(EXPERIMENTS / "flowpro_smoke.yaml", ["sft.probe_weight=0", "sft.code_weight=1"])
    wanted = [row["wanted"] for row in substitutions(config, []) if "an auxiliary loss" in row["why"]]
    assert wanted == ["a teacher's codebook of visual codes"]


def test_a_model_path_replaces_the_preset_and_the_other_way_round():
    assert merge({"model": {"preset": "nano"}}, {"model": {"path": "x"}}) == {"model": {"path": "x"}}
    assert merge({"model": {"path": "x"}}, {"model": {"preset": "nano"}}) == {"model": {"preset": "nano"}}


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_the_resolved_config_of_every_experiment_reads_back_to_itself(path, tmp_path):
    config = load_config(path)
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config


@given(text=st.text(max_size=60))
def test_no_override_breaks_the_loader_with_anything_but_one_line(text):
    try:
        load_config(EXPERIMENTS / "flowpro_smoke.yaml", [text])
    except UserError as error:
        assert not re.search(r"\n", str(error).strip())
