"""An environment of one's own by declaration: its contract, its snapshots, and what is wrong with a declaration."""

import json
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from envs.commands import CommandError
from envs.contract import check_environment
from envs.declared import DeclarationError, DeclaredEnv
from envs.rollback import RollbackConfig, intervened_rollout, scripted_expert
from envs.rollout import demonstrate, run_lockstep
from envs.types import ExpertUnavailableError, Layout, camera_images, measured_state
from tests.own import reach


def made(variant: str = "default", **changes: object) -> DeclaredEnv:
    return DeclaredEnv(replace(reach.make("default", variant), **changes), "default", variant, 32)


def test_it_keeps_the_contract():
    findings = list(check_environment(made()))
    assert [finding.level for finding in findings] == ["ok"] * len(findings)
    said = "\n".join(finding.text for finding in findings)
    assert "commands of 2, states of 2 numbers (raw), 10 Hz" in said and "cameras top" in said
    assert "states restored by save and load go on bit for bit" in said and "the expert solves 5 of 5 seeds" in said


def test_what_is_not_declared_is_said():
    said = {finding.text: finding.level for finding in check_environment(made("alone"))}
    assert said["states restored by repeating from the seed go on bit for bit (8 steps)"] == "ok"
    assert [text for text, level in said.items() if level == "warning"] == [
        "no expert: demonstrations and corrections come from files or a teacher policy"
    ]
    with pytest.raises(ExpertUnavailableError, match="has no command at step 0"):
        made("alone").expert_action()


def test_observations_say_their_layout_and_pictures_are_scaled():
    env = made()
    observation, _ = env.reset(seed=3)
    assert camera_images(observation).shape == (1, 32, 32, 3) and camera_images(observation).dtype == np.uint8
    assert measured_state(observation).shape == (2,) and observation["instruction"] == "Go to the green mark."
    assert env.layout == Layout("raw", 2, 2, ("top",))


@pytest.mark.parametrize("variant", ["default", "replayed"])
def test_a_snapshot_goes_on_as_the_episode_did(variant):
    env, commands = made(variant), np.random.default_rng(0).uniform(0.1, 0.9, size=(6, 2))
    env.reset(seed=5)
    for command in commands[:3]:
        env.advance(command)
    snapshot, ahead = env.save(), []
    for _ in range(2):
        for command in commands[3:]:
            env.advance(command)
        ahead.append((env.state(), env.step_count, camera_images(env.observe())))
        env.load(snapshot)
    for one, other in zip(*ahead, strict=True):
        np.testing.assert_array_equal(one, other)
    assert env.restore_method == ("simulator" if variant == "default" else "replay")


def test_commands_beyond_the_box_run_at_its_edge_and_wrong_ones_are_refused():
    env = made()
    env.reset(seed=1)
    snapshot, states = env.save(), []
    for command in ([3.0, 0.5], [1.0, 0.5]):
        env.load(snapshot)
        env.advance(np.array(command))
        states.append(env.state())
    np.testing.assert_array_equal(*states)
    with pytest.raises(CommandError, match="not finite"):
        env.advance(np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match=r"shape \(3,\); the environment takes \(2,\)"):
        env.advance(np.zeros(3))


def test_an_end_without_success_is_a_failure_and_stands_still():
    env = made()
    env.reset(seed=1)
    while env.diagnose().failure is None:
        env.advance(np.array([0.0, 0.5]))
    assert env.diagnose().failure == "terminated" and not env.success
    before = env.state()
    env.advance(np.array([1.0, 1.0]))
    np.testing.assert_array_equal(env.state(), before)


def test_demonstrations_and_pairs_carry_the_layout():
    generator = np.random.default_rng(0)
    episode = demonstrate(made(), 4, noise_m=0.0, generator=generator)
    assert episode.success and episode.layout == Layout("raw", 2, 2, ("top",)) and episode.actions.shape[1] == 2
    config = RollbackConfig(execute=2, rollback_steps=(4, 6), kept_after_event=4)

    def off_the_edge(decisions):
        return np.tile([0.0, 0.5], (len(decisions), 4, 1))

    for variant in ("default", "replayed"):
        rollout = intervened_rollout(made(variant), 4, corrector=scripted_expert, config=config, generator=generator)
        (pair,) = run_lockstep([rollout], off_the_edge)[0].pairs
        assert pair.layout.numbers == "raw" and pair.winner.images.shape[1:] == (1, 32, 32, 3)
        assert pair.restore_error == 0.0
        assert pair.restore_method == ("simulator" if variant == "default" else "replay")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"save": None}, "save and load belong together"),
        ({"cameras": {}}, "cameras are \\[\\]; name at least one"),
        ({"instructions": ("",)}, "at least one text, none of them empty"),
        ({"control_hz": 0.0}, "control_hz is 0.0; expected control steps a second"),
        ({"step_limit": 0}, "step_limit is 0; expected 1 or more"),
        ({"step_limit": 2.5}, "step_limit is 2.5; expected 1 or more control steps"),
        ({"cameras": ["top"]}, r"cameras are \['top'\]; write {name: key of the observation}"),
        ({"progress": lambda env: -3}, "progress is -3; expected 0 to 1"),
        ({"state": "where"}, "state is 'where', which the observation has not; it has at, images"),
        ({"success": "won"}, "success is 'won', which the info has not; it has solved"),
        ({"cameras": {"top": "at"}}, r"camera top gives float32 \[2\]; expected uint8 \[h, w, 3\]"),
        ({"cameras": {"top": lambda env: np.zeros((4, 4, 3), np.uint8)}}, "camera top shows one colour only"),
        ({"numbers": "ee"}, "ee has 8 of both for one arm"),
        ({"numbers": "torque"}, "numbers is 'torque'; use one of ee, joints, raw"),
    ],
)
def test_a_wrong_declaration_is_one_line(changes, line):
    with pytest.raises(DeclarationError, match=line):
        for finding in check_environment(made(**changes)):
            if finding.level == "error":
                raise DeclarationError(finding.text)


def test_only_a_box_of_few_numbers_can_be_commanded():
    class Buttons(gymnasium.Env):
        action_space = spaces.Discrete(3)

    with pytest.raises(DeclarationError, match=r"action space is Discrete\(3\); expected a Box of 1 to 32 numbers"):
        made(env=Buttons())


def test_a_snapshot_of_another_task_is_refused():
    snapshot = json.dumps({"task": "other", "variant": "default"}).encode()
    with pytest.raises(ValueError, match="snapshot is of other"):
        made().load(snapshot)
