"""Several chunks from one state, on the toy environment."""

import numpy as np

from envs.branching import BranchConfig, branched_rollout
from envs.execution import Execution
from envs.rollout import Memory, policy_rollout, run_lockstep
from envs.types import ExpertUnavailableError
from rewards.actions.ranking import Choice
from rl_lab.rollouts.ranking import ranked_pair
from tests.envs.test_rollback import HORIZON, Watched, forward, move, shade
from tests.envs.toy import STEP, ToyEnv

CONFIG = BranchConfig(execute=4, states=2, samples=3, decisions=1)


def branch(act, config=CONFIG, seed=3):
    env = ToyEnv()
    rollout = branched_rollout(env, seed, config=config, generator=np.random.default_rng(0), weight_version=7)
    return env, run_lockstep([rollout], act)[0]


def noisy(decisions):
    """Speed by the noise that the decision addresses."""
    return np.stack([move((STEP * np.random.default_rng(one.key).uniform(0.2, 1), 0.0), one) for one in decisions])


def test_all_chunks_of_a_state_start_there_and_lead_to_their_own_ends():
    env, found = branch(noisy)
    assert [len(one) for one in found] == [3, 3]
    for one in found:
        assert one.actions.shape == (3, HORIZON, 16) and one.poses.shape == (3, HORIZON + 1, 16)
        assert (one.poses[:, 0] == one.poses[0, 0]).all() and (one.images[:, 0] == one.images[0, 0]).all()
        assert len(set(one.progress)) == 3
        reached = one.poses[:, -1, 0]
        assert (one.progress > reached).all()  # the decision behind the chunk went on
        assert one.weight_version == 7


def test_states_lie_on_the_episode_that_the_policy_runs_anyway():
    _, found = branch(noisy)
    (episode,) = run_lockstep([policy_rollout(ToyEnv(), 3, execution=Execution(execute=4))], noisy)
    for one in found:
        place = episode.frame_steps.tolist().index(one.step)
        assert (episode.poses[one.step] == one.poses[0, 0]).all()
        assert (episode.images[place] == one.images[0, 0]).all()


def test_the_experts_commands_start_in_the_state():
    _, found = branch(forward)
    for one in found:
        assert (np.diff(np.append(one.poses[0, 0, 0], one.expert[:, 0])) > 0).all()
        assert one.expert.shape == (HORIZON, 16)


def test_a_success_on_the_way_is_seen():
    _, found = branch(forward, BranchConfig(execute=4, states=99, samples=1, decisions=0))
    assert [one.success[0] for one in found] == [one.step + HORIZON >= 50 for one in found]
    assert found[-1].progress[0] == 1


def test_states_in_which_the_expert_cannot_go_on_are_left_out(monkeypatch):
    config = BranchConfig(execute=4, states=99, samples=2, decisions=0)
    every, expert = branch(forward, config)[1], ToyEnv.expert_action

    def for_a_while(env):
        if env.step_count >= 30:
            raise ExpertUnavailableError("no way from here")
        return expert(env)

    monkeypatch.setattr(ToyEnv, "expert_action", for_a_while)
    steps = [one.step for one in branch(forward, config)[1]]
    assert steps == [one.step for one in every if one.step + HORIZON <= 30] and 0 < len(steps) < len(every)


def test_chunks_and_the_pairs_of_them_say_rate_and_simulation(monkeypatch):
    told = {"robot": "boxarms", "planner": "ours", "renderer": "none", "command_steps": 20}
    monkeypatch.setattr(ToyEnv, "simulation", told)
    state = branch(noisy)[1][0]
    pair = ranked_pair(state, Choice(0, 1, 1.0, None), "progress")
    assert state.simulation == pair.simulation == "boxarms, ours, none, commands of 20 physics steps"
    assert state.control_hz == pair.control_hz == 12.5 and pair.correction_limit is None


def test_branches_of_a_policy_with_memory_see_what_led_to_their_state():
    """After the ranked chunk of 8 commands, decisions come every 4 steps and look 3, 6 and 9 steps back."""
    memory, env = Memory(4, 3), ToyEnv()
    act = Watched(env)
    config = BranchConfig(execute=4, states=2, samples=2, decisions=2)
    rollout = branched_rollout(env, 3, config=config, generator=np.random.default_rng(0), memory=memory)
    found = run_lockstep([rollout], act)[0]
    branches = [state.step + step for state in found for _ in range(2) for step in (0, 8, 12) if state.step + step < 50]
    assert [step for step, _ in act.seen][-len(branches) :] == branches
    for step, shades in act.seen:
        assert np.abs(np.subtract(shades, [shade(step - 3 * back) for back in (3, 2, 1)])).max() <= 1
    for state in found:
        wanted = [shade(step) for step in range(max(0, state.step - 9), state.step)]
        assert np.abs(state.before[:, 0, 0, 0, 0].astype(int) - wanted).max(initial=0) <= 1
        assert len(state.before) == len(wanted)
    assert all(state.before is None for state in branch(forward)[1])
