"""What a placement asks for, beside what machines have; what it changes of a run."""

import pytest

from rl_lab.common.errors import UserError
from rl_lab.config.language import JUDGE_MODEL, JUDGE_URL
from rl_lab.stages.kinds import KINDS, expand, resolve_config
from rl_lab.stages.preflight import check_machine, check_resources
from rl_lab.workers.placement import bundles, lacking, placement_table
from tests.support.refusals import refusal

BASE = {"name": "small", "stages": ["demos", "sft", "evaluate"], "env": {"backend": "tabletop"}}
ANSWERING = ["questions", "cold_start", "examine", "grpo"]


def config(placement=None, **changes):
    block = {} if placement is None else {"placement": placement}
    return resolve_config(BASE | block | changes, "a test")


def test_a_device_alone_reserves_nothing():
    for name in ("auto", "cpu"):
        run = config(name)
        assert run.placement.device == name and not bundles(run.placement, run.workers)
    assert "not reserved: learner, simulators" in placement_table(config())


def test_a_block_becomes_a_table_of_bundles():
    block = {"learner": {"ranks": 2, "gpus": 1, "cpus": 4}, "engines": {"gpus": 0.5}}
    run = config(block, workers={"rollout": 3}, stages=ANSWERING)
    lines = placement_table(run).splitlines()
    assert lines[0] == "placement (PACK)"
    assert lines[1].split()[:8] == ["learner", "2", "x", "(4", "CPU,", "1", "GPU)", "a"]
    assert lines[2].split()[:7] == ["engines", "3", "x", "(0.5", "CPU,", "0.5", "GPU)"]


def test_engines_take_room_only_where_questions_are_answered():
    block, one_machine = {"engines": {"cpus": 8}}, [{"CPU": 2.0, "GPU": 0.0}]
    assert "engines" not in placement_table(config(block))
    check_resources(config(block), one_machine)
    with pytest.raises(UserError, match="for engines"):
        check_resources(config(block, stages=ANSWERING), one_machine)


@pytest.mark.parametrize(
    ("strategy", "nodes", "fits"),
    [
        ("PACK", [(8, 2)], True),
        ("PACK", [(8, 1), (8, 1)], True),
        ("PACK", [(8, 1)], False),
        ("PACK", [(1, 2), (8, 0)], False),  # no machine has both cores and GPU of a rank
        ("STRICT_PACK", [(8, 1), (8, 1)], False),
        ("STRICT_PACK", [(8, 1), (8, 2)], True),
        ("STRICT_SPREAD", [(8, 2)], False),
        ("STRICT_SPREAD", [(8, 1), (8, 1)], True),
    ],
)
def test_bundles_must_fit_on_machines(strategy, nodes, fits):
    run = config({"learner": {"ranks": 2, "gpus": 1, "cpus": 4}, "strategy": strategy})
    there = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in nodes]
    assert (lacking(bundles(run.placement, run.workers), there, strategy) is None) == fits


def test_what_is_asked_and_what_there_is_stand_in_one_line():
    run = config({"learner": {"ranks": 2, "gpus": 1}, "simulators": {"cpus": 4}})
    line = refusal(check_resources, run, [{"CPU": 2.0, "GPU": 0.0}])
    assert "2 x (0.5 CPU, 1 GPU) for learner" in line and "have: 2 CPU, 0 GPU" in line


def test_a_judge_of_the_run_is_placed_and_part_of_what_is_scored(tmp_path):
    asks = {"judge": {"base_url": f"${JUDGE_URL}", "model": JUDGE_MODEL}}
    for content in ("{1}", "{2}"):
        folder = tmp_path / content[1]
        folder.mkdir()
        (folder / "config.json").write_text(content)
    runs = [
        config({"judges": {"gpus": 1}}, stages=ANSWERING, rewards=asks, judge={"path": str(tmp_path / name)})
        for name in ("1", "2")
    ]
    assert "judges" in placement_table(runs[0]) and "1 x (0.5 CPU, 1 GPU)" in placement_table(runs[0])
    first, second = ({node.name: node.params for node in expand(run)} for run in runs)
    assert {name for name in first if first[name] != second[name]} == {"base.examine", "frontier.1.grpo"} | {
        "frontier.1.examine"
    }


def test_a_judge_that_is_not_there_or_not_asked_is_refused(tmp_path):
    with pytest.raises(UserError, match="placement.judges has no judge to place"):
        config({"judges": {"gpus": 1}}, stages=ANSWERING)
    pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
    with pytest.raises(UserError, match="judge.path: .* is no model's folder"):
        check_machine(config(stages=ANSWERING, judge={"path": str(tmp_path)}))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"nobody asks it; give rewards.judge: {base_url: \$RL_LAB_JUDGE_URL"):
        check_machine(config(stages=ANSWERING, judge={"path": str(tmp_path)}))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": "[]"}, "config.json: expected a JSON object, found list"),
        ({"config.json": "{}"}, "no weights in .*: model.safetensors is missing"),
        ({"config.json": "{}", "model.safetensors": "no weights at all"}, "model.safetensors is damaged"),
        ({"config.json": "{}", "tokenizer.json": "{"}, "tokenizer.json: not JSON"),
        ({"config.json": '{"model_type": "hunyuan_vl_mot"}', "model.safetensors": ""}, "model.safetensors is damaged"),
    ],
)
def test_a_damaged_judge_is_refused_before_it_is_served(tmp_path, files, said):
    pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    asks = {"judge": {"base_url": f"${JUDGE_URL}", "model": JUDGE_MODEL}}
    with pytest.raises(UserError, match=f"judge.path: .*{said}"):
        check_machine(config(stages=ANSWERING, rewards=asks, judge={"path": str(tmp_path)}))


def test_trl_trains_in_one_process():
    run = config({"learner": {"ranks": 2}}, rl={"backend": "trl"})
    with pytest.raises(UserError, match="ranks is 2 but rl.backend is trl"):
        check_machine(run)


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"learner": {"ranks": 2, "gpus": 0.5}}, "two ranks cannot share one"),
        ({"device": "cpu", "engines": {"gpus": 1}}, "device is cpu"),
        ({"lerner": {"ranks": 2}}, "lerner"),
        ("tpu", "placement"),
        ({"learner": {"ranks": 0}}, "ranks"),
    ],
)
def test_impossible_blocks_are_refused(block, said):
    with pytest.raises(UserError, match=said):
        config(block)


def test_ranks_are_part_of_what_is_learned_and_of_nothing_else():
    params = {}
    for ranks in (1, 2):
        nodes = expand(config({"learner": {"ranks": ranks}, "simulators": {"cpus": 0.1 * ranks}}))
        params[ranks] = {node.name: node.params for node in nodes}
    changed = {name for name in params[1] if params[1][name] != params[2][name]}
    assert changed == {"sft"} and params[2]["sft"]["ranks"] == 2
    assert all(kind.reads for kind in KINDS.values() if kind.learns)
