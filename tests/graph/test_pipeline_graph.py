"""Pipelines as graphs: names, inputs and conditions of the nodes, what enters which hash, what is refused."""

import pytest

from rl_lab.config.load import dump_config
from rl_lab.graph.plan import plan_table
from rl_lab.graph.store import Store
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import differing, hashes, nodes
from tests.support.pipelines import CYCLE, FRONT, WHOLE, pipeline
from tests.support.refusals import refusal


def test_a_pipeline_is_one_chain_of_models_with_examinations_and_gates(tmp_path):
    assert list(nodes(pipeline(tmp_path, WHOLE))) == [
        *("questions", "development", "cold_start", "base.examine"),
        *("grpo.1", "grpo.1.examine", "grpo.1.gate", "rft.1.traces", "rft.1", "rft.1.examine", "rft.1.gate"),
        *("grpo.2", "grpo.2.examine", "grpo.2.gate", "rft.2.traces", "rft.2", "rft.2.examine", "rft.2.gate"),
        *("teacher", "teacher.examine", "distill", "distill.examine"),
        *("imitate.traces", "imitate", "imitate.examine", "report"),
    ]


def test_every_node_comes_after_its_inputs_and_its_gate(tmp_path):
    stop = "{gate: {otherwise: stop}}"
    branch = "{gate: {otherwise: [rft, examine]}}"
    config = pipeline(tmp_path, f"[{FRONT}, grpo, examine, {branch}, rft, examine, {stop}, teacher, distill]")
    seen: set[str] = set()
    for node in expand(config):
        assert set(node.inputs.values()) <= seen
        assert node.when is None or node.when[0] in seen
        seen.add(node.name)


def test_what_a_gate_lets_through_is_the_next_policy_and_the_next_thing_to_compare_with(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE))
    assert found["grpo.1.gate"].inputs == {
        **{"before": "base.examine", "after": "grpo.1.examine"},
        **{"policy_before": "cold_start", "policy_after": "grpo.1"},
    }
    assert found["rft.1.traces"].inputs == {"questions": "questions", "policy": "grpo.1.gate"}
    assert found["rft.1"].inputs == {"questions": "questions", "traces": "rft.1.traces", "policy": "grpo.1.gate"}
    assert found["rft.1.gate"].inputs == {
        **{"before": "grpo.1.gate", "after": "rft.1.examine"},
        **{"policy_before": "grpo.1.gate", "policy_after": "rft.1"},
    }
    assert found["grpo.2"].inputs == {"questions": "questions", "policy": "rft.1.gate"}


def test_without_a_gate_between_them_a_gate_compares_with_the_model_that_was_examined_before(tmp_path):
    found = nodes(pipeline(tmp_path, f"[{FRONT}, grpo, examine, rft, examine, gate]"))
    assert found["rft.gate"].inputs["before"] == "grpo.examine"
    found = nodes(pipeline(tmp_path, f"[{FRONT}, grpo, rft, examine, gate]"))
    assert found["rft.gate"].inputs == {
        **{"before": "base.examine", "after": "rft.examine", "policy_before": "cold_start", "policy_after": "rft"}
    }


def test_fine_tuning_may_start_from_the_base_with_traces_of_the_newest_model(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE, "rft.start=base"))
    assert found["rft.2.traces"].inputs["policy"] == "grpo.2.gate"
    assert found["rft.2"].inputs["policy"] == "cold_start"
    assert found["rft.2.gate"].inputs["policy_before"] == "grpo.2.gate"


def test_teacher_and_imitation_stand_beside_the_chain(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE))
    assert found["teacher"].kind == "cold_start" and found["teacher"].params["model"]["preset"] == "small"
    assert found["teacher.examine"].inputs["policy"] == "teacher"
    assert found["distill"].inputs == {"questions": "questions", "policy": "rft.2.gate", "teacher": "teacher"}
    assert found["imitate.traces"].inputs == {"questions": "questions", "policy": "teacher"}
    assert found["imitate"].inputs["policy"] == "rft.2.gate"
    before = nodes(pipeline(tmp_path, f"[{FRONT}, grpo, teacher, imitate, distill, examine]"))
    assert before["imitate"].inputs["policy"] == before["distill"].inputs["policy"] == "grpo"
    assert before["distill.examine"].inputs["policy"] == "distill"


def test_a_teacher_that_is_there_is_taken_by_its_content(tmp_path):
    for folder, content in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "config.json").write_text(content)
    stages = f"[{FRONT}, teacher, distill]"
    found = [hashes(pipeline(tmp_path, stages, f"teacher.model.path={tmp_path / folder}")) for folder in "abc"]
    assert found[0] == found[1]
    assert differing(found[0], found[2]) == {"teacher", "distill"}
    assert nodes(pipeline(tmp_path, stages, f"teacher.model.path={tmp_path / 'a'}"))["teacher"].kind == "teacher"


def test_labels_say_model_and_cycle(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE))
    labels = {name: (node.method, node.round) for name, node in found.items()}
    assert labels["base.examine"] == (None, None)
    assert labels["grpo.2.examine"] == labels["grpo.2.gate"] == ("grpo.2", 2)
    assert labels["teacher.examine"] == ("teacher", None)


def test_cycles_draw_from_streams_of_their_own_and_the_first_from_that_of_a_comparison(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE))
    assert found["grpo.1"].stream == found["rft.1.traces"].stream == (1,)
    assert found["grpo.2"].stream == found["rft.2"].stream == (1, 2)
    comparison = pipeline(tmp_path, f"[{FRONT}, grpo]")
    assert nodes(comparison)["frontier.1.grpo"].stream == (1,)
    assert hashes(comparison)["frontier.1.grpo"] == hashes(pipeline(tmp_path, f"[{FRONT}, grpo, rft]"))["grpo"]


def test_another_branch_draws_from_streams_of_its_own(tmp_path):
    branch = "{repeat: 2, of: [grpo, examine, {gate: {otherwise: [grpo, examine]}}]}"
    found = nodes(pipeline(tmp_path, f"[{FRONT}, {branch}]"))
    streams = [found[name].stream for name in ("grpo.1", "grpo.1.else.grpo", "grpo.2", "grpo.2.else.grpo")]
    assert len(set(streams)) == 4


def test_only_examinations_that_a_gate_compares_answer_the_development_questions(tmp_path):
    found = nodes(pipeline(tmp_path, WHOLE))
    developed = [name for name, node in found.items() if node.kind == "examine" and "development" in node.inputs]
    assert not any("development" in node.inputs for node in nodes(pipeline(tmp_path, f"[{FRONT}, rft]")).values())
    assert developed == ["base.examine", "grpo.1.examine", "rft.1.examine", "grpo.2.examine", "rft.2.examine"]


def test_a_gate_that_may_stop_the_run_is_waited_for_by_all_that_follows(tmp_path):
    stages = f"[{FRONT}, grpo, examine, {{gate: {{otherwise: stop}}}}, rft, examine, teacher, distill]"
    found = nodes(pipeline(tmp_path, stages))
    after = list(found)[list(found).index("grpo.gate") + 1 : -1]
    assert {found[name].when for name in after} == {("grpo.gate", True)}
    assert found["grpo.gate"].when is None and found["report"].when is None


def test_another_branch_starts_from_the_model_before_and_meets_the_first_one_in_a_join(tmp_path):
    found = nodes(
        pipeline(
            tmp_path,
            f"[{FRONT}, grpo, examine, {{gate: {{otherwise: [rft, examine]}}}}, distill]".replace(
                ", distill", ", teacher, distill"
            ),
        )
    )
    branch = ("grpo.else.rft.traces", "grpo.else.rft", "grpo.else.rft.examine")
    assert all(found[name].when == ("grpo.gate", False) for name in branch)
    assert found["grpo.else.rft.traces"].inputs["policy"] == "grpo.gate"
    assert found["grpo.join"].when is None and found["grpo.join"].kind == "join"
    assert found["grpo.join"].inputs == {
        **{"passed": "grpo.gate", "failed": "grpo.else.rft", "failed_examined": "grpo.else.rft.examine"}
    }
    assert found["distill"].inputs["policy"] == "grpo.join"
    assert found["grpo.else.rft.examine"].inputs["development"] == "development"


def test_the_front_of_a_pipeline_has_the_same_hashes_whatever_follows(tmp_path):
    long, short = hashes(pipeline(tmp_path, WHOLE)), hashes(pipeline(tmp_path, f"[{FRONT}, {CYCLE}]"))
    assert short.items() <= long.items()


@pytest.mark.parametrize(
    ("override", "first"),
    [("rft.steps=33", "rft.1"), ("traces.samples=3", "rft.1.traces"), ("distill.steps=77", "distill")],
)
def test_a_setting_changes_the_stage_that_reads_it_and_what_follows(tmp_path, override, first):
    before, after = hashes(pipeline(tmp_path, WHOLE)), hashes(pipeline(tmp_path, WHOLE, override))
    changed = [name for name in before if before[name] != after[name]]
    assert changed[0] == first
    assert "teacher" not in changed and "grpo.1.gate" not in changed


def test_a_gates_settings_change_the_gate_and_what_follows(tmp_path):
    stages = f"[{FRONT}, grpo, examine, {{gate: {{rise: %s}}}}, rft]"
    first, second = (hashes(pipeline(tmp_path, stages % rise)) for rise in (0.0, 0.1))
    assert differing(first, second) == {"grpo.gate", "rft.traces", "rft"}


def test_a_gate_makes_no_other_set_of_questions_and_no_training_anew(tmp_path):
    without = hashes(pipeline(tmp_path, f"[{FRONT}, grpo, rft, examine]", "questions.development=0"))
    gated = hashes(pipeline(tmp_path, f"[{FRONT}, grpo, rft, examine, gate]"))
    assert differing(without, gated) == {"base.examine", "rft.examine"}
    more = hashes(pipeline(tmp_path, f"[{FRONT}, grpo, rft, examine, gate]", "questions.development=30"))
    changed = differing(more, gated)
    assert changed == {"development", "base.examine", "rft.examine", "rft.gate"}
    assert gated["development"] == hashes(pipeline(tmp_path, WHOLE, "questions.train=99"))["development"]


def test_a_checkpoint_of_ones_own_can_be_the_base(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("1")
    stages = "[questions, examine, grpo, examine, gate, rft]"
    found = nodes(pipeline(tmp_path, stages, f"model.path={tmp_path / 'mine'}", "rft.start=base"))
    assert "policy_before" not in found["grpo.gate"].inputs and found["grpo.gate"].params["model"]["path"]
    assert "policy" not in found["rft"].inputs


def test_every_stage_reads_only_sections_that_enter_its_hash(tmp_path):
    for node in expand(pipeline(tmp_path, WHOLE)):
        if node.kind not in ("report", "gate", "join"):
            assert set(node.stage.reads) <= set(node.params)


def test_the_plan_shows_gates_and_branches(tmp_path):
    stages = f"[{FRONT}, grpo, examine, {{gate: {{rise: 0.02, otherwise: [rft, examine]}}}}, teacher, distill]"
    config = pipeline(tmp_path, stages)
    lines = plan_table(config, expand(config), hashes(config), Store(tmp_path / "store")).splitlines()
    rows = {line.split()[0]: line for line in lines[:-1]}
    assert rows["grpo.gate"].endswith("passes on a rise above 0.02 (95 % interval), else [rft, examine]")
    assert rows["grpo.else.rft"].endswith("if grpo.gate does not pass")
    assert "20 steps" in rows["cold_start"] and "600 steps" in rows["teacher"]
    assert "24000 answers" in rows["grpo.else.rft.traces"]
    assert "1280 answers" in rows["grpo.examine"] and "min on two CPU cores" in lines[-1]


@pytest.mark.parametrize(
    ("stages", "parts"),
    [
        ("[cold_start, rft]", ("cold_start needs questions before it",)),
        ("[questions, rft]", ("rft needs cold_start before it", "model.path")),
        (f"[{FRONT}, distill]", ("distill needs teacher before it",)),
        (f"[{FRONT}, imitate]", ("imitate needs teacher before it",)),
        (f"[{FRONT}, grpo, rft, grpo]", ("grpo is there twice", "{repeat: 2, of: [grpo, ...]}")),
        (f"[{FRONT}, {{repeat: 2, of: [rft]}}, {{repeat: 1, of: [rft]}}]", ("rft is there twice",)),
        (f"[{FRONT}, rft, gate]", ("gate needs examine right before it",)),
        ("[questions, cold_start, rft, examine, gate]", ("earlier examination",)),
        (f"[{FRONT}, gate]", ("comes before any training",)),
        (f"[{FRONT}, grpo, teacher, examine, gate]", ("would decide about teacher",)),
        (f"[{FRONT}, examine, rft]", ("examine comes twice for the model base",)),
        (f"[{FRONT}, rft, examine, {{gate: {{otherwise: [rft]}}}}]", ("otherwise", "ends with examine", "not [rft]")),
        (f"[{FRONT}, rft, examine, {{gate: {{otherwise: back}}}}]", ("otherwise", "'previous' or 'stop'")),
        (f"[{FRONT}, rft, examine, {{gate: {{risee: 1}}}}]", ("risee", "did you mean stages.5.gate.rise?")),
        (f"[{FRONT}, rft, examine, {{gate: {{confidence: 95}}}}]", ("confidence", "0.99")),
        (f"[{FRONT}, {{repeat: 2, of: [examine]}}]", ("cycles that train", "[grpo, examine, gate]")),
        (f"[{FRONT}, {{repeat: 2, of: [grpo, collect]}}]", ("cycles that train",)),
        (f"[demos, sft, {FRONT}, rft]", ("demos is of the action side",)),
    ],
)
def test_a_chain_that_cannot_be_is_one_line(tmp_path, stages, parts):
    line = refusal(pipeline, tmp_path, stages)
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("questions.development=0", ("questions.development is 0", "held-out ones stay clean")),
        ("workers.rollout=0", ("workers.rollout is 0", "needs an engine")),
    ],
)
def test_settings_that_do_not_fit_a_pipeline_are_one_line(tmp_path, override, parts):
    line = refusal(pipeline, tmp_path, WHOLE, override)
    assert all(part in line for part in parts), line


def test_the_resolved_config_reads_back_to_itself(tmp_path):
    branch = "{gate: {rise: 0.01, otherwise: [rft, examine]}}"
    config = pipeline(tmp_path, f"[{FRONT}, {{repeat: 2, of: [grpo, examine, {branch}]}}]")
    resolved = tmp_path / "config.yaml"
    resolved.write_text(dump_config(config))
    assert load_config(resolved) == config
