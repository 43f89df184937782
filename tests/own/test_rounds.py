"""The main pipeline on an environment of one's own: plain numbers, one camera; with snapshots or without."""

from pathlib import Path

import numpy as np
import pytest

from envs.execution import Execution
from envs.rollback import RollbackConfig
from envs.types import Episode, Layout
from rl_lab import check
from rl_lab.common.errors import UserError
from rl_lab.config.actions import ObjectiveConfig, OptimiseConfig, SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.graph.nodes import stage_hashes
from rl_lab.learner.actions import OptimisePlan, SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import load_policy, published
from rl_lab.records.checks import episode_problems, pair_problems
from rl_lab.records.episodes import read_episodes, read_pairs, write_episodes, write_pairs
from rl_lab.stages.kinds import expand, resolve_config
from rl_lab.stages.preflight import check_machine
from rl_lab.workers.policy import CorrectorPlan, read_corrections
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.own import reach

BACKEND = f"{reach.__file__}:make"
STEPS = {"steps": 2, "batch_size": 4, "warmup": 1, "draws_per_sample": 1}
ROLLBACK = RollbackConfig(execute=4, rollback_steps=(8, 8), kept_after_event=8)
STAGES = ["demos", "sft", "evaluate", {"repeat": 1, "of": ["collect", "optimise", "evaluate"]}]


def unit(task: str = "default", variant: str = "default") -> Unit:
    return Unit(EnvSpec(BACKEND, task, variant, image_size=64), seeds=(3, 4, 5), run_seed=0)


def trained(plan: SFTPlan | OptimisePlan, folder: Path) -> None:
    training = Training(plan)
    while training.step < plan.settings.steps:
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder)


@pytest.fixture(scope="module", params=[("default", "default"), ("joints", "replayed")], ids=["raw", "joints"])
def given(tmp_path_factory, request):
    """Demonstrations, a policy after SFT, what it collects, and the unit of all that."""
    folder, work = tmp_path_factory.mktemp("own"), unit(*request.param)
    write_episodes(folder / "demos", [one for one in Simulation().demonstrate(work, 0.0) if isinstance(one, Episode)])
    plan = SFTPlan(ModelConfig(), SFTConfig(**STEPS, probe_weight=0.0), folder / "demos", stride=1, seed=0)
    trained(plan, folder / "sft")
    collection = Simulation().collect(work, published(folder / "sft"), ROLLBACK, CorrectorPlan())
    write_pairs(folder / "pairs", collection.pairs)
    return folder, work


def test_a_policy_of_two_numbers_and_one_camera_is_trained_and_acts(given):
    folder, work = given
    episodes = read_episodes(folder / "demos")
    layout = Layout("joints" if work.env.task == "joints" else "raw", 2, 2, ("top",))
    assert [episode.layout for episode in episodes] == [layout] * 3
    assert not [problem for episode in episodes for problem in episode_problems("demo", episode)]
    policy, processor, _ = load_policy(folder / "sft")
    assert policy.config.layout == layout and processor.stats.action_mean.shape == (8, 2)
    rows = Simulation().evaluate(work, published(folder / "sft"), Execution(execute=4))
    assert len(rows) == 3 and all(
        row["step_limit"] == 24 and row["layout"]["numbers"] == layout.numbers for row in rows
    )


def test_chunks_come_back_from_the_network_as_they_were_commanded(given):
    folder, _ = given
    _, processor, _ = load_policy(folder / "sft")
    states, chunks = np.random.default_rng(0).uniform(size=(3, 2)), np.random.default_rng(1).uniform(size=(3, 8, 2))
    encoded = processor.encode(chunks, states)
    assert encoded.shape == (3, 8, 2)
    np.testing.assert_allclose(processor.decode(encoded.numpy(), states), chunks, atol=1e-6)
    shifted = processor.encode(chunks + 0.1, states + 0.1)
    assert np.allclose(shifted, encoded, atol=1e-5) == (processor.config.layout.numbers == "joints")


def test_a_round_learns_from_its_failures(given, tmp_path):
    folder, _ = given
    pairs = read_pairs(folder / "pairs")
    assert pairs and not [problem for pair in pairs for problem in pair_problems("pair", pair)]
    assert all(pair.restore_error == 0.0 for pair in pairs)
    settings = OptimiseConfig(**STEPS, train=("expert",))
    folders = {"policy": folder / "sft", "sft": folder / "sft", "demos": folder / "demos", "pairs": (folder / "pairs",)}
    plan = OptimisePlan("rpro", 1, settings, ObjectiveConfig(), (0.8, 0.2), **folders, stride=1, seed=0)
    trained(plan, tmp_path / "policy")
    assert load_policy(tmp_path / "policy")[0].config.layout == load_policy(folder / "sft")[0].config.layout


def test_a_teacher_or_recordings_correct_where_there_is_no_expert(given):
    folder, work = given
    alone, weights = Unit(EnvSpec(BACKEND, work.env.task, "alone", 64), work.seeds, 0), published(folder / "sft")
    assert Simulation().collect(alone, weights, ROLLBACK, CorrectorPlan()).pairs == []
    teacher = Simulation().collect(alone, weights, ROLLBACK, CorrectorPlan("policy x", weights, execute=4))
    assert teacher.counts["corrector_steps"] > 0
    found = read_corrections(folder / "pairs", read_pairs(folder / "pairs")[0].layout)
    recorded = Simulation().collect(work, weights, ROLLBACK, CorrectorPlan("recorded", corrections=found))
    assert len(recorded.pairs) == len(found)


def configured(tmp_path: Path, **sections):
    content = {"name": "own", "env": {"backend": BACKEND}, "stages": STAGES, "collect": {"rollback_steps": [8, 8]}}
    return resolve_config(content | sections, "own.yaml")


def test_a_run_is_checked_before_it_begins(tmp_path):
    config = configured(tmp_path)
    assert config.env.tasks == ("default",) and config.sft.probe_weight == 0.0
    check_machine(config)


@pytest.mark.parametrize(
    ("sections", "line"),
    [
        (
            {"env": {"backend": "nothing.py:make"}},
            "env.backend: .*there is no file nothing.py",
        ),
        (
            {"env": {"backend": f"{reach.__file__}:progress"}},
            "env.backend: .*cannot make default .*reach.py:\\d+: TypeError: progress|cannot make.*TypeError",
        ),
        (
            {"env": {"backend": BACKEND, "variants": ["alone"]}},
            "demos: the environment declares no expert; give demos.f",
        ),
        ({"sft": {"probe_weight": 1.0}}, "sft.probe_weight needs ground truth of the simulator, which is not declared"),
        ({"demos": {"action_noise_m": 0.1}}, "demos.action_noise_m is in metres, but commands are no poses"),
        ({"collect": {"corrector": {"noise_m": 0.1}}}, "corrector.noise_m is in metres, but commands are no poses"),
        ({"model": {"first_slot": "current"}}, "model.first_slot is current, but the state holds no command"),
        (
            {"env": {"backend": BACKEND, "tasks": ["default", "joints"]}},
            "default has commands of 2 numbers .raw.*but joints",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, sections, line):
    with pytest.raises(UserError, match=line):
        check_machine(configured(tmp_path, **sections))


def test_a_name_that_is_none_is_refused_by_the_file():
    with pytest.raises(
        UserError, match=r"env.backend: 'robotwn' is not one of auto, tabletop, robotwin, nor FILE.py:FUNC"
    ):
        resolve_config({"name": "own", "env": {"backend": "robotwn"}, "stages": ["demos"]}, "own.yaml")


def test_the_command_that_checks_says_what_holds_and_what_does_not(capsys):
    assert check.main(["environment", BACKEND]) == 0
    assert "ok: the expert solves 5 of 5 seeds" in capsys.readouterr().out
    with pytest.raises(UserError, match="reach.py:make is no environment: there are 2 numbers .*ee has 8"):
        check.main(["environment", BACKEND, "task=ee"])
    with pytest.raises(UserError, match="colour is no setting of an environment"):
        check.main(["environment", BACKEND, "colour=red"])


def test_another_environment_in_the_same_file_is_another_stage(tmp_path):
    files = [tmp_path / name / "mine.py" for name in "ab"]
    for number, file in enumerate(files):
        file.parent.mkdir()
        file.write_text(Path(reach.__file__).read_text() + f"\n# {number}\n")
    hashes = []
    for file in files:
        nodes = expand(configured(tmp_path, env={"backend": f"{file}:make"}))
        hashes.append(stage_hashes(list(nodes), 0, {}))
    assert hashes[0].keys() == hashes[1].keys() and not set(hashes[0].values()) & set(hashes[1].values())
