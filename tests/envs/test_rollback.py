"""Rollouts as generators, and failures turned into pairs, on an environment simple enough to check by hand."""

from itertools import count

import numpy as np
import pytest

from algos.smooth_interpolation import interpolate_pair
from envs.execution import Execution
from envs.rollback import (
    Corrector,
    RollbackConfig,
    intervened_rollout,
    noisy_expert,
    recorded,
    scripted_expert,
    teacher,
    until_failure,
)
from envs.rollout import Memory, demonstrate, policy_rollout, run_lockstep
from envs.types import NO_FRAMES
from tests.envs.toy import STEP, ToyEnv

CONFIG = RollbackConfig(execute=4, patience=16)
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


def forward_then_stuck(decisions):
    return np.stack(
        [
            move((STEP if decision.observation["endpose"]["left_endpose"][0] < 0.5 else 0.0, 0.0), decision)
            for decision in decisions
        ]
    )


def collect(act, config=CONFIG, corrector=scripted_expert, seed=3):
    env = ToyEnv()
    rollout = intervened_rollout(
        env, seed, corrector=corrector, config=config, generator=np.random.default_rng(0), weight_version=7
    )
    return env, run_lockstep([rollout], act)[0]


def test_a_good_policy_succeeds_and_renders_only_at_decisions():
    env = ToyEnv()
    env.rendered = 0
    (episode,) = run_lockstep([policy_rollout(env, 5, execution=Execution(execute=4), weight_version=2)], forward)
    assert episode.success and episode.failure is None and episode.weight_version == 2
    assert episode.num_steps == len(episode.actions) == len(episode.poses) - 1
    assert env.rendered == len(episode.images) == 13
    assert episode.frame_steps.tolist() == list(range(0, 52, 4))


def shade(step):
    """Brightness of the toy's pictures: its x, which grows by the same amount in every step."""
    return int(200 * np.clip(step * STEP, 0, 1)) if step >= 0 else 0


class Watched:
    """`forward`, with the brightness of the past frames of every decision."""

    def __init__(self, env):
        self.env, self.seen = env, []

    def __call__(self, decisions):
        self.seen.append((self.env.step_count, decisions[0].past[:, 0, 0, 0, 0].tolist()))
        return forward(decisions)


MEMORIES = [(3, 5, 7), (6, 5, 7), (2, 4, 4), (4, 1, 3)]


@pytest.mark.parametrize(("frames", "interval", "execute"), MEMORIES)
def test_a_policy_with_memory_sees_the_frames_of_the_right_steps(frames, interval, execute):
    env = ToyEnv()
    act = Watched(env)
    run_lockstep([policy_rollout(env, 5, execution=Execution(execute=execute), memory=Memory(frames, interval))], act)
    assert [step for step, _ in act.seen] == list(range(0, env.step_count, execute))
    for step, shades in act.seen:
        wanted = [shade(step - interval * back) for back in range(frames - 1, 0, -1)]
        assert np.abs(np.subtract(shades, wanted)).max() <= 1


@pytest.mark.parametrize(("frames", "interval", "execute"), MEMORIES)
def test_a_policy_with_memory_collects_with_the_frames_it_is_evaluated_with(frames, interval, execute):
    memory, asked = Memory(frames, interval), []
    for rollout in (
        lambda env: policy_rollout(env, 3, execution=Execution(execute=execute), memory=memory),
        lambda env: until_failure(env, 3, RollbackConfig(execute=execute), memory),
    ):
        env = ToyEnv()
        act = Watched(env)
        run_lockstep([rollout(env)], act)
        asked.append(act.seen)
    assert asked[0] == asked[1]


@pytest.mark.parametrize(("frames", "interval", "execute"), MEMORIES)
def test_a_pair_holds_the_frames_that_a_memory_reaches_before_its_start(frames, interval, execute):
    memory, env = Memory(frames, interval), ToyEnv()
    config = RollbackConfig(execute=execute, rollback_steps=(6, 6))
    rollout = intervened_rollout(
        env, 3, corrector=scripted_expert, config=config, generator=np.random.default_rng(0), memory=memory
    )
    (pair,) = run_lockstep([rollout], forward_then_stuck)[0].pairs
    first = max(0, pair.start_step - memory.reach)
    assert pair.start_step > 12 and len(pair.before) == pair.start_step - first
    wanted = [shade(step) for step in range(first, pair.start_step)]
    assert np.abs(pair.before[:, 0, 0, 0, 0].astype(int) - wanted).max() <= 1
    assert pair.before[-1, 0, 0, 0, 0] < pair.loser.images[0, 0, 0, 0, 0] == pair.winner.images[0, 0, 0, 0, 0]


def test_the_frames_before_a_pair_are_the_same_where_states_are_replayed():
    found = []
    for method in ("simulator", "replay"):
        env = ToyEnv()
        env.restore_method = method
        config, draw = RollbackConfig(execute=4, rollback_steps=(6, 6)), np.random.default_rng(0)
        rollout = intervened_rollout(
            env, 3, corrector=scripted_expert, config=config, generator=draw, memory=Memory(3, 2)
        )
        found += run_lockstep([rollout], forward_then_stuck)[0].pairs
    assert len(found[0].before) == 4
    np.testing.assert_array_equal(found[0].before, found[1].before)
    np.testing.assert_array_equal(found[0].winner.images, found[1].winner.images)


def test_a_policy_without_memory_makes_pairs_without_past_frames():
    assert collect(stuck)[1].pairs[0].before is None


def test_only_frames_that_will_be_seen_are_rendered():
    env = ToyEnv()
    env.rendered = 0
    run_lockstep([policy_rollout(env, 5, execution=Execution(execute=4), memory=Memory(3, 4))], forward)
    assert env.rendered == 13, "frames four steps apart are those of the decisions"


class Remembering(ToyEnv):
    """Knows the command with which each control step was first taken."""

    def __init__(self):
        super().__init__()
        self.commands = {}

    def advance(self, action):
        self.commands.setdefault(self.step_count, np.array(action))
        return super().advance(action)


@pytest.mark.parametrize("join", ["wait", "jump", "ensemble", "stitch", "guide"])
def test_a_collection_under_latency_keeps_the_commands_that_were_run(join):
    config = RollbackConfig(execute=4, patience=16, latency=3, join=join, rollback_steps=(6, 6))
    env, draw = Remembering(), np.random.default_rng(0)
    rollout = intervened_rollout(env, 3, corrector=scripted_expert, config=config, generator=draw)
    (found,) = run_lockstep([rollout], sideways)
    (pair,) = found.pairs
    commands = [env.commands[pair.start_step + step] for step in range(len(pair.loser.actions))]
    assert (pair.loser.actions == np.stack(commands)).all()
    tuples = interpolate_pair(pair, 3)
    lost = tuples.loser[tuples.from_loser]
    assert len(lost) == len(commands) - 2, "a chunk to avoid at every step, whenever the policy had decided"
    assert (lost == np.stack([commands[step : step + 3] for step in range(len(lost))])).all()
    (episode,) = run_lockstep([policy_rollout(ToyEnv(), 5, execution=Execution(latency=3, join=join))], forward)
    assert episode.success and episode.extra["stalled_steps"] == (
        0 if join != "wait" else 3 * (len(episode.images) - 1)
    )


def test_lockstep_results_keep_the_order_of_the_rollouts():
    seeds = [9, 4, 7]
    episodes = run_lockstep([policy_rollout(ToyEnv(), seed, execution=Execution(execute=4)) for seed in seeds], forward)
    assert [episode.seed for episode in episodes] == seeds


def test_an_episode_without_success_ends_at_the_step_limit():
    (episode,) = run_lockstep([policy_rollout(ToyEnv(), 0, execution=Execution(execute=4))], stuck)
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
    assert pair.correction_limit == ToyEnv.correction_limit
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
    frozen = Corrector("frozen", lambda env, seed, before: (env.state() for _ in count()))
    _, result = collect(stuck, corrector=frozen)
    assert result.pairs == []
    assert result.counts["discarded/uncorrectable_no_progress"] == 1


def test_a_policy_that_succeeds_gives_no_pair():
    _, result = collect(forward)
    assert result.pairs == [] and result.counts["successes"] == 1 and result.counts["interventions"] == 0


@pytest.mark.parametrize("low, high", [(1, 1), (12, 24)])
def test_the_shared_start_lies_before_the_last_progress_and_the_loser_ends_soon_after_it(low, high):
    config = RollbackConfig(execute=4, rollback_steps=(low, high), patience=16)
    _, result = collect(forward_then_stuck, config)
    first = result.pairs[0]
    last_progress = first.trigger_step - config.patience
    assert low <= first.rollback_steps <= high
    assert first.start_step == last_progress - first.rollback_steps
    assert len(first.loser.actions) == first.rollback_steps + config.kept_after_event


def test_a_teacher_policy_corrects_chunk_by_chunk():
    keys = []

    def act(decisions):
        keys.append(decisions[0].key)
        return forward(decisions)

    _, result = collect(stuck, corrector=teacher("policy x", act, 4))
    (pair,) = result.pairs
    assert pair.corrector == "policy x" and len(keys) == len(set(keys)) == -(-len(pair.winner.actions) // 4)


@pytest.mark.parametrize(("frames", "interval", "execute"), MEMORIES)
def test_a_teacher_with_memory_looks_back_to_what_the_policy_did(frames, interval, execute):
    memory, env = Memory(frames, interval), ToyEnv()
    act, config = Watched(env), RollbackConfig(execute=4, rollback_steps=(6, 6))
    corrector = teacher("policy x", act, execute, memory)
    rollout = intervened_rollout(env, 3, corrector=corrector, config=config, generator=np.random.default_rng(0))
    (pair,) = run_lockstep([rollout], forward_then_stuck)[0].pairs
    assert pair.before is None and act.seen[0][0] == pair.start_step > 12
    for step, shades in act.seen:
        wanted = [shade(step - interval * back) for back in range(frames - 1, 0, -1)]
        assert np.abs(np.subtract(shades, wanted)).max() <= 1


def test_recorded_corrections_are_used_from_the_steps_where_they_were_recorded():
    _, first = collect(sideways, RollbackConfig(execute=4, rollback_steps=(2, 2)))
    (pair,) = first.pairs
    place = ("toy", "clean", 3, pair.start_step)
    corrector = recorded("recorded x", {place: pair.winner.actions, ("toy", "clean", 4, 0): pair.winner.actions[:1]})
    _, again = collect(sideways, RollbackConfig(execute=4, rollback_steps=(3, 3)), corrector)
    (same,) = again.pairs
    assert (same.start_step, same.corrector) == (pair.start_step, "recorded x")
    np.testing.assert_array_equal(same.winner.actions, pair.winner.actions)
    _, none = collect(sideways, corrector=corrector, seed=4)
    assert none.pairs == [] and none.counts["discarded/uncorrectable_fell"] == 1
    _, none = collect(sideways, corrector=corrector, seed=5)
    assert none.pairs == [] and none.counts["corrector_steps"] == 0


class DriftingEnv(ToyEnv):
    """Restored states are off by some amount more each time."""

    exact_restore = False
    drift = 0.0
    num_loads = 0

    def load(self, snapshot):
        super().load(snapshot)
        self.num_loads += 1
        self.pose[8] += self.num_loads * self.drift


def collect_drifting(drift, method="simulator"):
    env = DriftingEnv()
    env.drift, env.restore_method = drift, method
    rollout = intervened_rollout(env, 3, corrector=scripted_expert, config=CONFIG, generator=np.random.default_rng(0))
    return run_lockstep([rollout], stuck)[0]


def test_the_restore_error_is_measured_and_stands_on_the_pair():
    (pair,) = collect_drifting(1e-4).pairs
    assert (pair.restore_method, pair.exact_restore) == ("simulator", False)
    assert pair.restore_error == pytest.approx(1e-4)
    (exact,) = collect(stuck)[1].pairs
    assert (exact.exact_restore, exact.restore_error) == (True, 0.0)


def test_a_pair_that_does_not_share_its_start_is_dropped_and_counted():
    for drift in (0.01, np.nan):
        result = collect_drifting(drift)
        assert result.pairs == [] and result.counts["discarded/restore_error"] == 1


def test_where_restoring_repeats_the_episode_images_are_taken_on_the_way():
    (replayed,), (restored,) = collect_drifting(0.0, "replay").pairs, collect_drifting(0.0).pairs
    assert replayed.restore_method == "replay"
    for side in ("winner", "loser"):
        np.testing.assert_array_equal(getattr(replayed, side).images, getattr(restored, side).images)


def test_an_episode_that_begins_solved_is_one_step_long():
    class Solved(ToyEnv):
        success = True

    (episode,) = run_lockstep([policy_rollout(Solved(), 0, execution=Execution())], stuck)
    assert episode.success and episode.num_steps == 1 and len(episode.images) == 1


def test_a_noisy_expert_records_its_noise_and_a_demonstration_ends_where_a_failure_shows():
    env = ToyEnv()
    env.reset(seed=4)
    clean = env.expert_action()
    first, again = (next(noisy_expert(0.01).commands(env, 4, NO_FRAMES)) for _ in range(2))
    moved = first != clean
    assert (first == again).all() and moved[[0, 1, 2, 8, 9, 10]].all() and moved.sum() == 6
    assert noisy_expert(0.01).name == "scripted_expert, noise of 10 mm"

    def detect(diagnosis, step):
        return "lost" if step == 3 else None

    episode = demonstrate(ToyEnv(), 4, noise_m=0.0, generator=np.random.default_rng(0), detect=detect)
    assert (episode.num_steps, episode.success, episode.failure) == (3, False, "lost")
