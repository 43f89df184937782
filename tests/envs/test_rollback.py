"""Rollouts as generators, and failures turned into pairs, on an environment simple enough to check by hand."""

import numpy as np
import pytest

from envs.rollback import Corrector, RollbackConfig, intervened_rollout, scripted_expert
from envs.rollout import Memory, demonstrate, policy_rollout, run_lockstep
from tests.envs.toy import STEP, ToyEnv

CONFIG = RollbackConfig(execute=4)
HORIZON = 8


def move(direction, decision):
    """A chunk that keeps moving the left arm in a direction (x, y), in metres a step."""
    pose = np.concatenate(
        [np.append(decision.observation["endpose"][f"{arm}_endpose"], 1.0) for arm in ("left", "right")]
    )
    chunk = np.repeat(pose[None], HORIZON, axis=0)
    chunk[:, :2] += np.arange(1, HORIZON + 1)[:, None] * np.asarray(direction)
    return chunk


def forward(decisions):
    return np.stack([move((STEP, 0.0), decision) for decision in decisions])


def sideways(decisions):
    return np.stack([move((STEP / 2, STEP), decision) for decision in decisions])


def stuck(decisions):
    return np.stack([move((0.0, 0.0), decision) for decision in decisions])


def collect(act, config=CONFIG, corrector=scripted_expert, seed=3):
    env = ToyEnv()
    rollout = intervened_rollout(
        env, seed, corrector=corrector, config=config, generator=np.random.default_rng(0), weight_version=7
    )
    return env, run_lockstep([rollout], act)[0]


def test_a_good_policy_succeeds_and_renders_only_at_decisions():
    env = ToyEnv()
    env.rendered = 0
    (episode,) = run_lockstep([policy_rollout(env, 5, execute=4, weight_version=2)], forward)
    assert episode.success and episode.failure is None and episode.weight_version == 2
    assert episode.num_steps == len(episode.actions) == len(episode.poses) - 1
    assert env.rendered == len(episode.images) == 13
    assert episode.frame_steps.tolist() == list(range(0, 52, 4))


@pytest.mark.parametrize(("frames", "interval", "execute"), [(3, 5, 7), (6, 5, 7), (2, 4, 4), (4, 1, 3)])
def test_a_policy_with_memory_sees_the_frames_of_the_right_steps(frames, interval, execute):
    """The brightness of the toy's pictures is its x, which grows by the same amount in every step."""
    env, seen = ToyEnv(), []

    def shade(step):
        return int(200 * np.clip(step * STEP, 0, 1)) if step >= 0 else 0

    def act(decisions):
        seen.append((env.step_count, decisions[0].past[:, 0, 0, 0, 0].tolist()))
        return forward(decisions)

    run_lockstep([policy_rollout(env, 5, execute=execute, memory=Memory(frames, interval))], act)
    assert [step for step, _ in seen] == list(range(0, env.step_count, execute))
    for step, shades in seen:
        wanted = [shade(step - interval * back) for back in range(frames - 1, 0, -1)]
        assert np.abs(np.subtract(shades, wanted)).max() <= 1


def test_only_frames_that_will_be_seen_are_rendered():
    env = ToyEnv()
    env.rendered = 0
    run_lockstep([policy_rollout(env, 5, execute=4, memory=Memory(3, 4))], forward)
    assert env.rendered == 13, "frames four steps apart are those of the decisions"


def test_lockstep_results_keep_the_order_of_the_rollouts():
    seeds = [9, 4, 7]
    episodes = run_lockstep([policy_rollout(ToyEnv(), seed, execute=4) for seed in seeds], forward)
    assert [episode.seed for episode in episodes] == seeds


def test_an_episode_without_success_ends_at_the_step_limit():
    (episode,) = run_lockstep([policy_rollout(ToyEnv(), 0, execute=4)], stuck)
    assert not episode.success and episode.failure == "timeout" and episode.num_steps == ToyEnv.step_limit


def test_demonstrations_keep_clean_labels_beside_noisy_execution():
    env = ToyEnv()
    episode = demonstrate(env, 0, noise_m=0.004, generator=np.random.default_rng(0))
    assert episode.success and len(episode.images) == len(episode.actions)
    replay = ToyEnv()
    replay.pose = episode.poses[3].copy()
    np.testing.assert_array_equal(replay.expert_action(), episode.actions[3])


def test_an_irreversible_failure_becomes_a_pair_from_one_state():
    env, result = collect(sideways)
    pair = result.pairs[0]
    assert pair.trigger == "fell" and pair.weight_version == 7 and pair.corrector == "scripted_expert"
    np.testing.assert_array_equal(pair.winner.poses[0], pair.loser.poses[0])
    assert pair.loser.poses[-1][1] > 0.1 >= pair.loser.poses[-2][1]
    assert np.all(pair.winner.poses[:, 1] <= 0.1)
    for segment in (pair.winner, pair.loser):
        assert len(segment.actions) == len(segment.images) == len(segment.poses) - 1
    assert 0 <= pair.start_step == pair.trigger_step - pair.rollback_steps
    assert len(pair.loser.actions) == pair.rollback_steps


def test_segments_replay_from_their_first_pose():
    _, result = collect(sideways)
    for pair in result.pairs:
        for segment in (pair.winner, pair.loser):
            env = ToyEnv()
            env.pose = segment.poses[0].copy()
            for action, pose in zip(segment.actions, segment.poses[1:], strict=True):
                env.advance(action)
                np.testing.assert_array_equal(env.pose, pose)


def test_a_stuck_policy_is_stopped_after_the_patience():
    _, result = collect(stuck)
    assert [pair.trigger for pair in result.pairs] == ["no_progress"]
    assert result.pairs[0].trigger_step == CONFIG.patience
    assert result.counts["interventions"] == 1


def test_an_uncorrectable_failure_is_dropped_and_counted():
    frozen = Corrector("frozen", lambda env: env.ee_pose())
    _, result = collect(stuck, corrector=frozen)
    assert result.pairs == []
    assert result.counts["discarded/uncorrectable_no_progress"] == 1


def test_a_policy_that_succeeds_gives_no_pair():
    _, result = collect(forward)
    assert result.pairs == [] and result.counts["successes"] == 1 and result.counts["interventions"] == 0


def forward_then_stuck(decisions):
    return np.stack(
        [
            move((STEP if decision.observation["endpose"]["left_endpose"][0] < 0.5 else 0.0, 0.0), decision)
            for decision in decisions
        ]
    )


@pytest.mark.parametrize("low, high", [(1, 1), (12, 24)])
def test_the_shared_start_lies_before_the_last_progress_and_the_loser_ends_soon_after_it(low, high):
    config = RollbackConfig(execute=4, min_rollback=low, max_rollback=high)
    _, result = collect(forward_then_stuck, config)
    first = result.pairs[0]
    last_progress = first.trigger_step - config.patience
    assert low <= first.rollback_steps <= high
    assert first.start_step == last_progress - first.rollback_steps
    assert len(first.loser.actions) == first.rollback_steps + config.kept_after_event
