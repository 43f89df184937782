"""Runs on language as graphs: nodes, what enters which hash, what is checked and planned before anything starts."""

import json

import pytest

from rl_lab import doctor, run
from rl_lab.common.errors import UserError, run_command
from rl_lab.graph.plan import plan_table
from rl_lab.graph.store import Store
from rl_lab.stages import preflight
from rl_lab.stages.kinds import expand, load_config
from rl_lab.stages.preflight import check_machine
from tests.support.experiments import differing, hashes
from tests.support.refusals import refusal

TEXT = """
name: words
stages: [questions, cold_start, examine, grpo]
cold_start: {steps: 20, warmup: 2}
rl: {steps: 10}
wandb: disabled
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text(TEXT)
    return lambda *overrides: load_config(path, overrides)


@pytest.fixture
def changed(config):
    """Names of the stages whose hash another setting changes."""
    return lambda *overrides: differing(hashes(config()), hashes(config(*overrides)))


ALL = {"questions", "cold_start", "base.examine"}
TRAINED = {"frontier.1.grpo", "frontier.1.examine"}
EXAMINED = {name for name in TRAINED if name.endswith("examine")} | {"base.examine"}


def test_a_run_is_questions_cold_start_examinations_and_training_by_its_scheme(config):
    nodes = expand(config())
    assert [node.name for node in nodes] == [
        *("questions", "cold_start", "base.examine", "frontier.1.grpo", "frontier.1.examine", "report")
    ]
    found = {node.name: node for node in nodes}
    assert found["frontier.1.grpo"].inputs == {"questions": "questions", "policy": "cold_start"}
    assert found["frontier.1.examine"].inputs == {"questions": "questions", "policy": "frontier.1.grpo"}
    assert found["frontier.1.grpo"].method == found["frontier.1.grpo"].params["curriculum"]["scheme"] == "frontier"
    for place, node in enumerate(nodes):
        assert set(node.inputs.values()) <= {earlier.name for earlier in nodes[:place]}


@pytest.mark.parametrize(
    ("override", "name"),
    [("grpo.epsilon=0.1", "epsilon"), ("grpo.epsilon_high=0.35", "epsilon_high"), ("grpo.delta=2.0", "delta")],
)
def test_a_clip_that_cannot_act_is_named_and_one_that_can_is_not(config, override, name):
    (text,) = preflight.warnings(config(override))
    assert text.startswith(f"grpo.{name} is ") and "cannot act" in text
    assert preflight.warnings(config(override, "grpo.num_iterations=2")) == [] == preflight.warnings(config())
    assert preflight.warnings(config(override, "stages=[questions, cold_start, examine]")) == []


@pytest.mark.parametrize(
    "override",
    ["rl.lr=0.5", "curriculum.explore=0.4", "grpo.epsilon=0.1", "rl.staleness=1", "rl.max_refills=1"],
)
def test_settings_of_the_learning_change_grpo_and_what_follows(changed, override):
    assert changed(override) == TRAINED


@pytest.mark.parametrize("override", ["examine.samples=7", "rewards.point.scale=9.0", "engine.max_num_seqs=3"])
def test_settings_of_answers_and_rewards_change_every_examination_and_grpo(changed, override):
    assert changed(override) == TRAINED | {"base.examine"}


@pytest.mark.parametrize(
    "override",
    ["workers.rollout=3", "workers.rollout_threads=1", "workers.rollout_timeout_s=9", "checkpoint_every=3"],
)
def test_the_number_of_engines_and_other_things_of_speed_change_no_hash(changed, override):
    assert changed(override) == set()


def test_questions_change_everything_and_a_cold_start_all_but_them(changed):
    assert changed("questions.levels=[0.5]") == ALL | TRAINED
    assert changed("cold_start.lr=0.5") == (ALL | TRAINED) - {"questions"}


@pytest.mark.parametrize("name", ["train", "cold_start", "held_out"])
def test_the_content_of_a_users_file_enters_and_its_path_does_not(config, tmp_path, name):
    for file, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / f"{file}.jsonl").write_text(content)
    found = [hashes(config(f"questions.{name}_file={tmp_path / file}.jsonl"))["questions"] for file in "abc"]
    assert found[0] == found[1] != found[2]
    assert found[0] != hashes(config())["questions"]


def test_without_a_cold_start_the_checkpoint_of_the_config_is_what_is_trained(config, tmp_path):
    for folder, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(content)
    stages = "stages=[questions, examine, grpo]"
    found = [hashes(config(stages, f"model.path={tmp_path / folder}")) for folder in "abc"]
    assert found[0] == found[1]
    assert differing(found[0], found[2]) == TRAINED | {"base.examine"}
    nodes = {node.name: node for node in expand(config(stages, f"model.path={tmp_path / 'a'}"))}
    assert nodes["base.examine"].inputs == nodes["frontier.1.grpo"].inputs == {"questions": "questions"}


def test_a_run_without_vllm_ends_with_exit_code_2_and_the_command_that_installs_it(config, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "has_vllm", lambda: False)
    with pytest.raises(SystemExit) as exit_:
        run_command(lambda: check_machine(config()))
    error = capsys.readouterr().err
    assert exit_.value.code == 2 and error.count("\n") == 1
    assert "examine and grpo need vLLM; install it with ./setup.sh cpu" in error
    check_machine(config("stages=[questions, cold_start]"))


def test_without_vllm_a_plan_is_complete_and_ends_with_one_error(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "has_vllm", lambda: False)
    monkeypatch.chdir(tmp_path)
    assert run.main(["words.yaml", "--plan"]) == 2
    told = capsys.readouterr()
    assert "frontier.1.grpo" in told.out and "min on two CPU cores" in told.out
    assert [line for line in told.err.splitlines() if line.startswith("error")] == [
        "error: examine and grpo need vLLM; install it with ./setup.sh cpu, or ./setup.sh gpu for CUDA"
    ]
    assert run.main(["words.yaml", "--plan", "--cluster", "1x8"]) == 0  # its machines may have it
    assert "warning: here, maybe not there: examine and grpo need vLLM" in capsys.readouterr().err
    with pytest.raises(UserError, match="engine.max_model_len is 256"):
        run.main(["words.yaml", "--plan", "engine.max_model_len=256"])


def test_without_vllm_doctor_checks_the_rest_of_the_file_and_fails_in_one_line(config, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(preflight, "has_vllm", lambda: False)
    monkeypatch.setattr(doctor, "CHECKS", ())
    assert doctor.main([str(tmp_path / "words.yaml")]) == 1
    bad, ok = capsys.readouterr().out.splitlines()
    assert bad == "bad   examine and grpo need vLLM -> install it with ./setup.sh cpu, or ./setup.sh gpu for CUDA"
    assert ok.startswith("ok ")


@pytest.fixture
def vllm(monkeypatch):
    """Found, but never imported."""
    monkeypatch.setattr(preflight, "has_vllm", lambda: True)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("questions.train_file=nowhere.jsonl", ("questions.train_file", "nowhere.jsonl")),
        ("questions.held_out_file=nowhere.jsonl", ("questions.held_out_file", "nowhere.jsonl")),
        ("model.path=nowhere", ("model.path: nowhere is no checkpoint folder", "config.json is missing")),
        ("engine.max_model_len=256", ("engine.max_model_len is 256", "512 tokens", "max_completion_length of grpo")),
        ("grpo.max_completion_length=2000", ("engine.max_model_len is 1024", "2000 tokens")),
        ("examine.max_tokens=1024", ("engine.max_model_len is 1024", "examine.max_tokens")),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(config, vllm, override, parts):
    message = refusal(check_machine, config(override))
    assert all(part in message for part in parts), message


def test_the_plan_lists_every_stage_with_its_work_and_what_is_reused(config, tmp_path):
    loaded = config()
    nodes, found, store = expand(loaded), hashes(loaded), Store(tmp_path / "store")
    work = tmp_path / "work"
    work.mkdir()
    store.publish(found["questions"], work, {})
    lines = plan_table(loaded, nodes, found, store).splitlines()
    rows = {line.split()[0]: line for line in lines[:-1]}
    assert list(rows) == [node.name for node in nodes]
    assert "5200 questions" in rows["questions"] and rows["questions"].endswith("reused")
    assert "20 steps" in rows["cold_start"] and "10 steps" in rows["frontier.1.grpo"]
    assert "1200 answers" in rows["base.examine"] and "1 page" in rows["report"]
    assert found["frontier.1.grpo"][:12] in rows["frontier.1.grpo"]
    assert "min on two CPU cores" in lines[-1]


def test_a_curriculum_of_which_the_file_sets_a_part_keeps_the_other_defaults(config):
    assert config("curriculum.explore=0.4").curriculum.batch_size == config().curriculum.batch_size == 8


def test_every_stage_reads_only_sections_that_enter_its_hash(config):
    found = {node.kind: node.params for node in expand(config())}
    assert set(found["grpo"]) >= {"engine", "grpo", "rl", "curriculum", "rewards", "examine"}
    assert found["questions"].keys() == {"questions"}


def test_what_engines_take_decides_on_files_of_ones_own_and_not_on_generated_questions(changed, config, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text("{}\n")
    assert "questions" not in changed("engine.max_model_len=300") | changed("model.preset=small")
    own = f"questions.held_out_file={path}"
    sets = [
        hashes(config(own, *more))["questions"]
        for more in ((), ("engine.max_model_len=300",), ("engine.max_num_seqs=7",))
    ]
    assert sets[0] != sets[1] and sets[0] == sets[2]


def test_files_are_read_to_their_first_bad_row_before_anything_is_written(config, vllm, tmp_path):
    good = {"prompt": "is it red?", "answer": "yes", "reward_type": "yes_no", "category": "perception"}
    path = tmp_path / "mine.jsonl"
    for bad, reason in (
        (good | {"prompt": "no " * 2000}, "line 2: its prompt is .* engine.max_model_len is 1024"),
        (good | {"category": "x"}, "line 2: category is 'x'"),
    ):
        path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
        with pytest.raises(UserError, match=f"questions.held_out_file: mine.jsonl, {reason}"):
            check_machine(config(f"questions.held_out_file={path}"))
    path.write_text(json.dumps(good) + "\n")
    check_machine(config(f"questions.held_out_file={path}"))
    with pytest.raises(UserError, match="train and held_out share 1 questions .*: mine-1; keep each in one set"):
        check_machine(config(f"questions.held_out_file={path}", f"questions.train_file={path}"))
