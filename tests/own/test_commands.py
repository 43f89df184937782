"""What is not a run, in environments of other layouts: one arm as poses, or two plain numbers, with one camera."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from envs.branching import BranchConfig
from envs.execution import Execution
from envs.robotwin.deploy_policy import PolicyClient, PolicyError
from envs.rollback import RollbackConfig
from envs.rollout import Decision
from envs.types import Layout, PreferencePair, Segment
from rewards.actions.ensemble import Ensemble, ModelInfo
from rl_lab.common.errors import UserError
from rl_lab.config.actions import SFTConfig
from rl_lab.config.section import ModelConfig
from rl_lab.correct import failed_episodes
from rl_lab.correct import main as correct
from rl_lab.data import main as data
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.plans import Training
from rl_lab.model.checkpoint import load_policy, published
from rl_lab.records.checks import Doubts, episode_problems, pair_problems
from rl_lab.records.episodes import read_episodes, read_pairs, write_candidates, write_episodes, write_pairs
from rl_lab.records.lerobot_tables import Asked
from rl_lab.records.pairs import pair_reads, write_pairs_layout
from rl_lab.records.sources import open_source
from rl_lab.rollouts.ranking import rank_folder
from rl_lab.stages.kinds import resolve_config
from rl_lab.stages.preflight import check_machine
from rl_lab.teleoperation.keys import KeyboardArms, KeyboardNumbers
from rl_lab.teleoperation.session import CorrectionSession
from rl_lab.workers.policy import CorrectorPlan, LocalPolicy, read_corrections
from rl_lab.workers.serving import PolicyServer, PolicyService
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit
from tests.own import one_arm, reach

BACKENDS = {"one arm": f"{one_arm.__file__}:make", "raw": f"{reach.__file__}:make"}
LAYOUTS = {"one arm": Layout("ee", 8, 8, ("top",)), "raw": Layout("raw", 2, 2, ("top",))}
ROLLBACK = RollbackConfig(execute=4, rollback_steps=(8, 8), kept_after_event=8, correction_limit=100)
STAGES = ["demos", "sft", "evaluate", {"repeat": 1, "of": ["collect", "optimise", "evaluate"]}]


def unit(name: str) -> Unit:
    return Unit(EnvSpec(BACKENDS[name], "default", "default", image_size=64), seeds=(3, 4, 5), run_seed=0)


@pytest.fixture(scope="module", params=LAYOUTS)
def given(tmp_path_factory, request):
    """Demonstrations, a policy after two steps of SFT, the pairs of its failures, and which layout that is."""
    folder = tmp_path_factory.mktemp("commands")
    write_episodes(folder / "demos", Simulation().demonstrate(unit(request.param), 0.0))
    settings = SFTConfig(steps=2, batch_size=4, warmup=1, draws_per_sample=1, probe_weight=0.0)
    training = Training(SFTPlan(ModelConfig(), settings, folder / "demos", stride=1, seed=0))
    while training.step < 2:
        assert np.isfinite(training.run_step()["loss"])
    training.finish(folder / "sft")
    found = Simulation().collect(unit(request.param), published(folder / "sft"), ROLLBACK, CorrectorPlan())
    write_pairs(folder / "pairs", found.pairs)
    return folder, request.param


def test_one_layout_from_demonstrations_to_pairs(given):
    folder, name = given
    episodes, pairs = read_episodes(folder / "demos"), read_pairs(folder / "pairs")
    assert len(pairs) >= 2 and all(one.layout == LAYOUTS[name] for one in [*episodes, *pairs])
    assert not [problem for one in episodes for problem in episode_problems("demo", one)]
    assert not [problem for one in pairs for problem in pair_problems("pair", one)]
    assert load_policy(folder / "sft")[0].config.layout == LAYOUTS[name]
    rows = Simulation().evaluate(unit(name), published(folder / "sft"), Execution(execute=4))
    assert [row["layout"]["action_dim"] for row in rows] == [LAYOUTS[name].action_dim] * 3


def test_its_policy_is_served(given):
    folder, name = given
    layout = LAYOUTS[name]
    episode = read_episodes(folder / "demos")[0]
    asked = {"images": episode.images[0], "pose": episode.poses[0], "instruction": "Go.", "key": [3, 1]}
    with PolicyServer(PolicyService(folder / "sft", seed=0, device="cpu"), 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = PolicyClient(server.port, 60)
        chunk = client.ask("act", **asked)["chunk"]
        with pytest.raises(PolicyError, match=f"pose must be an array of {layout.state_dim} numbers: the measured"):
            client.ask("act", **asked | {"pose": np.zeros(16)})
        with pytest.raises(PolicyError, match=r"images have shape \[3, 64, 64, 3\]; expected \[1, 1, H, W, 3\] or \[1"):
            client.ask("act", **asked | {"images": np.zeros((3, 64, 64, 3), np.uint8)})
        client.close()
        server.shutdown()
    assert client.hello["action"] == layout.numbers and client.hello["layout"]["cameras"] == ["top"]
    seen = {"top": {"rgb": episode.images[0, 0]}}
    told = {"observation": seen, "cameras": ("top",), "state": episode.poses[0], "instruction": "Go."}
    np.testing.assert_array_equal(chunk, LocalPolicy(folder / "sft", seed=0).act([Decision(told, (3, 1), None)])[0])


def test_its_sets_are_looked_at_and_converted(given, tmp_path, capsys):
    folder, name = given
    layout, pairs = LAYOUTS[name], read_pairs(folder / "pairs")
    data(["convert", str(folder / "pairs"), str(tmp_path / "set"), "--to", "pairs", "--lossless"])
    data(["convert", str(tmp_path / "set"), str(tmp_path / "back"), "--to", "lab"])
    for back, first in zip(read_pairs(tmp_path / "back"), pairs, strict=True):
        assert back.layout == layout and back.start_digest == first.start_digest
        for mine, theirs in ((back.winner, first.winner), (back.loser, first.loser)):
            np.testing.assert_array_equal(mine.actions, theirs.actions)
            np.testing.assert_array_equal(mine.images, theirs.images)
    data(["convert", str(folder / "demos"), str(tmp_path / "lerobot")])
    declared = ["--numbers", layout.numbers, "--cameras", "top"]
    for source, more in ((folder / "demos", []), (tmp_path / "set", []), (tmp_path / "lerobot", declared)):
        capsys.readouterr()
        data(["validate", str(source), *more])
        data(["inspect", str(source), *more])
        data(["stats", str(source), "--horizon", "4", *more])
        assert f"layout             {layout}: top" in capsys.readouterr().out
    with pytest.raises(UserError, match="set says itself what its numbers and cameras are; leave --numbers"):
        data(["inspect", str(tmp_path / "set"), "--numbers", "joints"])
    reading = {"image_size": 64, "save_freq": 15, "split": "seen"}
    assert open_source(tmp_path / "lerobot", asked=Asked(layout.numbers, ("top",)), **reading).reads
    if name == "raw":
        with pytest.raises(UserError, match=r"observation.state has shape \[2\], expected \[16\].*--numbers"):
            data(["inspect", str(tmp_path / "lerobot")])
        with pytest.raises(UserError, match="--first-slot current: where numbers are raw the state holds no command"):
            data(["stats", str(folder / "demos"), "--first-slot", "current"])


def of_seven(layout: Layout) -> PreferencePair:
    sides = {}
    for number, side in enumerate(("winner", "loser")):
        draw = np.random.default_rng(number)
        poses = draw.normal(size=(4, layout.state_dim))
        poses[0] = 0.5
        images = draw.integers(0, 255, (3, len(layout.cameras), 32, 32, 3), dtype=np.uint8)
        sides[side] = Segment(poses, draw.normal(size=(3, layout.action_dim)), images)
    labels = {"task": "pick", "variant": "", "seed": 1, "instruction": "Pick.", "start_step": 4, "trigger_step": 9}
    more = {"trigger": "timeout", "rollback_steps": 5, "corrector": "x", "start_digest": "0", "weight_version": 1}
    return PreferencePair(**labels, **more, **sides, layout=layout)


def test_a_set_of_pairs_has_one_layout(tmp_path):
    joints = Layout("joints", 6, 7, ("front", "wrist"))
    write_pairs_layout(tmp_path / "set", [of_seven(joints)], 30.0)
    (read,) = pair_reads(tmp_path / "set")
    assert read().layout == joints and read().winner.actions.shape == (3, 6)
    with pytest.raises(UserError, match=r"pair 1 has commands of 6 numbers \(raw\).*all must be of one layout"):
        write_pairs_layout(tmp_path / "mixed", [of_seven(joints), of_seven(replace(joints, numbers="raw"))], 30.0)
    info = tmp_path / "set" / "pairs_info.json"
    info.write_text(info.read_text().replace('"front"', '"../front"'))
    with pytest.raises(UserError, match="pairs_info.json: cameras are .*each once, without slashes"):
        pair_reads(tmp_path / "set")


def configured(name: str, **sections):
    env = {"backend": BACKENDS[name], "image_size": 64}
    collect = {"rollback_steps": [8, 8], "execute": 4, "pairs": 3, "max_episodes": 3, "correction_limit": 100}
    content = {"name": "own", "env": env, "stages": STAGES, "collect": collect}
    return resolve_config(content | sections, "own.yaml")


def operator(env, command: np.ndarray) -> str:
    """The key of a person who sees where the goal is."""
    way = env.env.unwrapped.goal - command[:2]
    axis = int(np.abs(way).argmax())
    return ("ad", "sw")[axis][int(way[axis] > 0)]


def test_a_person_corrects_its_failures(given, tmp_path):
    folder, name = given
    config = configured(name)
    out, kept = tmp_path / "corrections.jsonl", []
    failures = itertools.islice(failed_episodes(folder / "sft", config, set()), 1)
    session = CorrectionSession(failures, lambda place, actions: kept.append((place, actions)), config.collect)
    status, env = session.status(), session._failed.env
    assert status["moves"] == ("only arm" if name == "one arm" else "numbers 1 to 2") and status["keys"][0][0] == "a d"
    assert len(session.picture()) > 0
    session.press("a")
    session.press("Backspace")
    while session.status()["ended"] is None:
        session.press(operator(env, session._keyboard._command.reshape(-1)))
    ((place, actions),) = kept
    assert session.status()["ended"] == "success" and actions.shape[1] == LAYOUTS[name].action_dim
    from rl_lab.teleoperation.session import correction_line

    out.write_text(correction_line(place, actions))
    plan = CorrectorPlan("recorded", corrections=read_corrections(out, LAYOUTS[name]))
    one = replace(unit(name), seeds=(place[2],))
    spec = replace(one, run_seed=config.seed)
    assert Simulation().collect(spec, published(folder / "sft"), config.collect, plan).counts["episodes"] == 1


def test_keys_move_numbers_within_their_range():
    low, high = -np.ones(8), np.ones(8)
    keys = KeyboardNumbers(np.zeros(8), low, high)
    assert keys.press("d")[0] == pytest.approx(0.04) and keys.press("a")[0] == pytest.approx(0.0)
    assert keys.press("s")[1] == pytest.approx(-0.04) and keys.press(" ") is None and keys.press("d k") is None
    keys.switch()
    assert keys.moves == "numbers 7 to 8" and keys.press("d")[6] == pytest.approx(0.04) and keys.press("r") is None
    for _ in range(60):
        last = keys.press("w")
    assert last[7] == 1.0
    keys.switch()
    assert keys.moves == "numbers 1 to 6" and ("tab", "the next numbers") in keys.help
    arm = KeyboardArms(one_arm.pose(np.zeros(2)))
    arm.switch()
    assert arm.moves == "only arm" and arm.press("d")[0] == pytest.approx(0.02)


def test_what_a_keyboard_cannot_command_is_one_line(given, tmp_path):
    folder, name = given
    file = tmp_path / "open.py"
    text = Path(reach.__file__).read_text().replace("spaces.Box(0.0, 1.0, (2,)", "spaces.Box(-np.inf, np.inf, (2,)")
    file.write_text(text)
    experiment = tmp_path / "open.yaml"
    experiment.write_text(f"name: open\nenv: {{backend: '{file}:make'}}\nstages: {STAGES}\n".replace("'", '"'))
    wanted = "has no edges; bound it"
    with pytest.raises(UserError, match=wanted):
        correct([str(folder / "sft"), str(experiment), "--out", str(tmp_path / "c.jsonl")])


def test_its_chunks_are_ranked(given, tmp_path):
    folder, name = given
    config = BranchConfig(execute=4, states=1, samples=3, decisions=1)
    states = Simulation().candidates(unit(name), published(folder / "sft"), config)
    write_candidates(tmp_path / "candidates", states)
    model = Ensemble(ModelInfo("success", 2, 8, 8, views=1), [1, 2])
    model.save(tmp_path / "success")
    told = rank_folder(
        tmp_path / "candidates",
        {"success": tmp_path / "success"},
        {"deviation": 1.0, "success": 0.5},
        0.0,
        0,
        tmp_path / "out",
    )
    pairs = read_pairs(tmp_path / "out")
    assert told["states"] == 3 and pairs and all(pair.layout == LAYOUTS[name] for pair in pairs)
    assert not [problem for pair in pairs for problem in pair_problems("pair", pair)]


RANKED = {
    "stages": ["demos", "sft", "reward_models", {"repeat": 1, "of": ["collect", "rank", "optimise", "evaluate"]}],
    "ranking": {"weights": {"success": 1.0}},
}


def test_what_ranks_chunks_is_checked_before_a_run_begins():
    kinds = {"reward_models": {"kinds": ["success"]}}
    check_machine(configured("raw", **RANKED, **kinds))
    with pytest.raises(UserError, match="world_model knows two arms as poses only; use .success, progress"):
        check_machine(configured("raw", **RANKED))


def test_units_of_one_arm_are_doubted_too():
    doubts, poses = Doubts(), np.tile(one_arm.pose(np.array([400.0, 0.0])), (4, 1))
    poses[:, 7] = 0.1
    pair = of_seven(LAYOUTS["one arm"])
    pair.winner.poses = pair.loser.poses = poses
    doubts.add(pair)
    first, second = doubts.lines()
    assert first.startswith("positions reach 400") and second.startswith("the only gripper never opens")
    doubts = Doubts()
    doubts.add(of_seven(LAYOUTS["raw"]))
    assert doubts.lines() == []
