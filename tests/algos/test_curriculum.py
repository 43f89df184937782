"""Selection: frontier, exploration, balance, refill, pins, controls, and that a resumed pool selects the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.curriculum.curriculum import Curriculum, StageProgress
from algos.curriculum.draws import Weights, balanced_places, draw_weighted
from algos.curriculum.items import Items, Seen, observe
from algos.curriculum.options import CurriculumOptions
from tests.algos import simulated_learner


def pool(num_items=400, seed=0, **options):
    curriculum = Curriculum(CurriculumOptions(**({"batch_size": 16} | options)), seed, num_categories=4)
    curriculum.add(np.arange(num_items) % 4)
    return curriculum


def answer(curriculum, selection, rates, group=8):
    """Binary rewards of a policy that passes item i with probability rates[i]."""
    rng = np.random.default_rng((99, selection.step, selection.round))
    numbers = selection.numbers
    rewards = (rng.random((len(numbers), group)) < rates[numbers, None]).astype(float)
    return curriculum.observe(selection.step, numbers, rewards, np.full(len(numbers), selection.step))


def train(curriculum, rates, steps, start=0):
    chosen = []
    for step in range(start, start + steps):
        selection = curriculum.select(step, step)
        answer(curriculum, selection, rates)
        chosen.append(selection)
    return chosen


def copy(curriculum):
    """The curriculum as a resumed run would rebuild it."""
    items = Items(curriculum.items.records(np.arange(len(curriculum.items))))
    progress = StageProgress.from_state(curriculum.progress.state())
    return Curriculum(curriculum.options, curriculum.seed, 4, items, progress)


def mixed_rates(num_items=400):
    """A quarter each of items never solved, sometimes (two quarters) and always, spread over the categories."""
    return np.array([0.0, 0.5, 0.5, 1.0])[np.arange(num_items) // 4 % 4]


def reasons(selections):
    return {
        name: sum(len(d.numbers) for s in selections for d in s.draws if d.reason == name)
        for name in {d.reason for s in selections for d in s.draws}
    }


@given(st.integers(0, 60), st.lists(st.integers(0, 30), min_size=1, max_size=6), st.integers(0, 9))
def test_places_are_balanced_and_never_above_what_is_available(total, available, turn):
    places = balanced_places(total, np.array(available), turn)
    assert places.sum() == min(total, sum(available)) and np.all(places <= available)
    unfilled = places[places < available]
    assert not len(unfilled) or unfilled.max() - unfilled.min() <= 1 and places.max() <= unfilled.min() + 1


def test_uneven_places_go_round_the_categories():
    assert sum(balanced_places(6, np.array([9, 9, 9, 9]), step) for step in range(4)).tolist() == [6, 6, 6, 6]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.integers(0, 40), st.integers(0, 99))
def test_weighted_draws_are_distinct_and_never_of_weight_zero(weights, count, seed):
    weights = np.array(weights)
    before = weights.copy()
    chosen = draw_weighted(np.random.default_rng(seed), Weights.of(weights), count)
    assert np.array_equal(weights, before)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, np.count_nonzero(weights))
    assert np.all(weights[chosen] > 0)


def test_draws_from_many_weights_follow_them_across_blocks():
    weights = np.arange(3000.0) % 7
    rng, counts = np.random.default_rng(1), np.zeros(3000)
    for _ in range(400):
        counts[draw_weighted(rng, Weights.of(weights), 50)] += 1
    assert [counts[np.arange(3000) % 7 == k].sum() / 20_000 for k in range(7)] == pytest.approx(
        [k / 21 for k in range(7)], abs=0.01
    )
    assert abs(counts[1024:2048].sum() - counts[:1024].sum()) < 400


def test_first_draws_follow_the_weights_and_later_ones_those_left():
    rng, weights = np.random.default_rng(0), np.array([1.0, 2.0, 5.0])
    draws = np.array([draw_weighted(rng, Weights.of(weights), 2) for _ in range(20_000)])
    assert np.bincount(draws[:, 0]) / 20_000 == pytest.approx([0.125, 0.25, 0.625], abs=0.015)
    after_last = draws[draws[:, 0] == 2, 1]
    assert np.bincount(after_last, minlength=2)[:2] / len(after_last) == pytest.approx([1 / 3, 2 / 3], abs=0.015)


def test_batches_are_balanced_over_the_categories_from_the_first_step_on():
    curriculum = pool()
    for selection in train(curriculum, mixed_rates(), 30):
        assert np.bincount(curriculum.items.category[selection.numbers]).tolist() == [4, 4, 4, 4]
        assert len(set(selection.numbers.tolist())) == 16


def test_a_category_that_runs_out_lends_its_places():
    curriculum = Curriculum(CurriculumOptions(batch_size=16), 0, num_categories=4)
    curriculum.add(np.array([0] * 2 + [1] * 50 + [2] * 50))
    numbers = curriculum.select(0, 0).numbers
    assert np.bincount(curriculum.items.category[numbers], minlength=4).tolist() == [2, 7, 7, 0]


def test_known_frontier_items_are_preferred_and_solved_or_hopeless_ones_left_alone():
    curriculum, rates = pool(num_items=1600, explore=0.1, reprobe=0.0, cooldown=4), mixed_rates(1600)
    train(curriculum, rates, 60)
    late = np.concatenate(
        [d.numbers for s in train(curriculum, rates, 20, 60) for d in s.draws if d.reason == "frontier"]
    )
    assert (rates[late] == 0.5).mean() > 0.85
    uniform = pool(num_items=1600, scheme="uniform")
    assert 0.4 < (rates[np.concatenate([s.numbers for s in train(uniform, rates, 20)])] == 0.5).mean() < 0.6


def test_selection_goes_by_the_probability_and_not_the_point_estimate():
    curriculum = pool(num_items=8, batch_size=4, explore=0.0, reprobe=0.0)
    first, second = np.arange(4), np.arange(4, 8)
    curriculum.observe(0, first, np.tile([0.0] * 6 + [1.0] * 2, (4, 1)), np.zeros(4))
    curriculum.observe(0, second, np.tile([0.0] * 48 + [1.0] * 16, (4, 1)), np.zeros(4))
    assert np.all(curriculum.items.last_mean == 0.25)
    assert np.all(curriculum.items.band_probability[second] > curriculum.items.band_probability[first] + 0.03)


def test_a_small_frontier_is_not_drilled():
    curriculum, rates = pool(num_items=4000), np.where(np.arange(4000) < 40, 0.5, 0.0)
    train(curriculum, rates, 150)
    before = curriculum.items.selections.copy()
    train(curriculum, rates, 40, 150)
    assert (curriculum.items.selections - before)[:40].max() <= 8


@given(st.integers(20, 120), st.sampled_from([4, 8, 12]), st.integers(0, 9))
@settings(max_examples=8, deadline=None)
def test_a_frontier_is_read_in_passes_no_item_returns_while_it_rests(num_items, batch, seed):
    """All items are in the frontier and known, so the others of a category suffice while one rests."""
    curriculum = pool(seed=seed, num_items=num_items, batch_size=batch, explore=0.0, reprobe=0.0)
    everything = np.arange(num_items)
    curriculum.observe(0, everything, np.tile([0.0, 1.0], (num_items, 32)), np.zeros(num_items))
    taken = {}
    for step in range(1, 40):
        selection = curriculum.select(step, 1)
        for draw in selection.draws:
            for number in draw.numbers.tolist():
                assert step - taken.get(number, -1000) > draw.rest
                taken[number] = step
        curriculum.release(selection.numbers)
    share = num_items // 4 * 4 / batch
    assert {draw.rest for draw in selection.draws} <= set(range(int(0.9 * share) - 5, int(share) + 2))


def test_a_given_cooldown_is_taken_as_it_is():
    curriculum = pool(cooldown=7)
    train(curriculum, np.full(400, 0.5), 30)
    assert {d.rest for d in curriculum.select(30, 30).draws if d.reason == "frontier"} <= {7}


def test_unseen_items_are_drawn_by_what_their_task_and_level_promise():
    curriculum = Curriculum(CurriculumOptions(batch_size=16, explore=1.0, reprobe=0.0), 0, num_categories=4)
    cells = np.arange(1600) // 4 % 10
    curriculum.add(np.arange(1600) % 4, cells * 4 + np.arange(1600) % 4)
    rates = np.where(cells < 5, 0.5, 0.0)
    train(curriculum, rates, 30)
    late = np.concatenate(
        [d.numbers for s in train(curriculum, rates, 10, 30) for d in s.draws if d.reason == "unseen"]
    )
    assert len(late) == 160 and (rates[late] == 0.5).mean() > 0.75
    blind = pool(num_items=1600, explore=1.0, reprobe=0.0)
    train(blind, rates, 15)
    drawn = np.concatenate([s.numbers for s in train(blind, rates, 10, 15)])
    assert 0.35 < (rates[drawn] == 0.5).mean() < 0.65


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=40), st.randoms())
def test_the_promise_of_a_cell_lies_between_what_is_known_of_it_and_of_its_category(cells, random):
    """A cell of which nothing is known promises what its category does, a pool of that kind what the prior does."""
    options = CurriculumOptions(batch_size=4)
    items = Items()
    items.append(np.zeros(len(cells) + 1, np.uint8), np.array([3, *(cell for cell, _ in cells)]), options)
    prior = Seen(items, 1).promised(options)
    assert prior == pytest.approx(float(items.band_probability[0]), abs=1e-6)
    for number, (_, right) in enumerate(cells, start=1):
        observe(items, 1, np.array([number]), np.arange(8)[None] < right, np.zeros(1, int), options)
    found, known = Seen(items, 1).promised(options), items.band_probability[1:]
    category = (known.sum() + 4 * prior[0]) / (len(known) + 4)
    assert found[3] == pytest.approx(category, abs=1e-6)
    for cell in {cell for cell, _ in cells}:
        own = known[[c == cell for c, _ in cells]].mean()
        assert min(own, category) - 1e-6 <= found[cell] <= max(own, category) + 1e-6
    order = list(range(len(items)))
    random.shuffle(order)
    assert Seen(Items(items.records(np.array(order))), 1).promised(options) == pytest.approx(found)


@pytest.mark.parametrize("explore", [0.1, 0.3])
def test_the_exploration_share_is_kept_on_average_once_the_frontier_is_known(explore):
    curriculum = pool(num_items=8000, explore=explore, reprobe=0.0, cooldown=4)
    rates = np.full(8000, 0.5)
    train(curriculum, rates, 30)
    counts = reasons(train(curriculum, rates, 80, 30))
    assert counts["unseen"] / sum(counts.values()) == pytest.approx(explore, abs=0.03)


def test_exploration_fills_what_the_frontier_cannot_at_the_start():
    assert set(reasons([pool().select(0, 0)])) == {"unseen"}


def test_stale_items_are_probed_again():
    curriculum = pool(num_items=64, explore=0.0, reprobe=0.25, stale_after=5)
    rates = np.where(np.arange(64) % 8 < 4, 0.5, 1.0)
    train(curriculum, rates, 40)
    assert reasons(train(curriculum, rates, 20, 40))["stale"] > 40
    observed = curriculum.items.version[curriculum.items.version >= 0]
    assert len(observed) > 16 and observed.min() > 59 - 30


def test_without_unseen_items_the_frontier_takes_all_places_even_if_nothing_is_in_it():
    curriculum = pool(num_items=32, reprobe=0.0)
    curriculum.observe(0, np.arange(32), np.ones((32, 64)), np.zeros(32))
    assert len(curriculum.select(1, 1).numbers) == 16


def test_groups_without_signal_are_refilled_in_their_category_until_the_batch_is_full():
    curriculum, rates = pool(num_items=2000), mixed_rates(2000)
    selection = curriculum.select(0, 0)
    good, seen, round_ = [], set(), 0
    while True:
        observation = answer(curriculum, selection, rates)
        assert seen.isdisjoint(selection.numbers.tolist())
        seen |= set(selection.numbers.tolist())
        good += observation.numbers[observation.signal].tolist()
        places = curriculum.refill_places(observation)
        assert places.sum() == np.count_nonzero(~observation.signal)
        if not places.sum():
            break
        round_ += 1
        selection = curriculum.select(0, 0, places, round_)
        assert np.bincount(curriculum.items.category[selection.numbers], minlength=4).tolist() == places.tolist()
    assert len(good) == 16 and round_ >= 1 and np.all(rates[good] == 0.5)
    assert np.bincount(curriculum.items.category[good]).tolist() == [4, 4, 4, 4]


@pytest.mark.parametrize(("scheme", "refills"), [("uniform", False), ("dynamic", True), ("difficulty_pools", False)])
def test_only_dynamic_sampling_refills_among_the_controls(scheme, refills):
    curriculum = pool(scheme=scheme)
    observation = answer(curriculum, curriculum.select(0, 0), np.zeros(400))
    assert bool(curriculum.refill_places(observation).sum()) == refills


def test_uniform_selection_has_equal_chances():
    curriculum, counts = pool(num_items=40, batch_size=10, scheme="uniform"), np.zeros(40)
    for selection in train(curriculum, np.full(40, 0.5), 400):
        counts[selection.numbers] += 1
    assert counts.sum() == 4000 and counts.min() > 70 and counts.max() < 130


@given(st.integers(1, 60), st.integers(1, 20), st.sampled_from(["uniform", "dynamic"]))
@settings(max_examples=30, deadline=None)
def test_uniform_reads_in_passes(num_items, batch, scheme):
    curriculum = pool(num_items=num_items, batch_size=batch, scheme=scheme)
    for step in range(12):
        numbers = curriculum.select(step, 0).numbers
        assert len(numbers) == len(set(numbers.tolist())) == min(batch, num_items)
        curriculum.release(numbers)
        times = curriculum.items.selections
        assert times.max() - times.min() <= 1


def test_the_passes_of_uniform_have_different_orders():
    curriculum = pool(num_items=32, batch_size=32, scheme="uniform")
    orders = [selection.numbers.tolist() for selection in train(curriculum, np.full(32, 0.5), 3)]
    assert orders[0] != orders[1] != orders[2] and sorted(orders[0]) == sorted(orders[2])


def test_difficulty_pools_keep_their_shares():
    curriculum = pool(num_items=400, batch_size=20, scheme="difficulty_pools", easy_fraction=0.1, hard_fraction=0.2)
    rates = mixed_rates()
    train(curriculum, rates, 60)
    counts = reasons(train(curriculum, rates, 50, 60))
    assert [counts[name] / 1000 for name in ("easy", "normal", "hard")] == pytest.approx([0.1, 0.7, 0.2], abs=0.01)


def test_difficulty_pools_lend_places_to_each_other():
    curriculum = pool(num_items=40, batch_size=20, scheme="difficulty_pools")
    curriculum.observe(0, np.arange(40), np.ones((40, 4)), np.zeros(40))
    assert len(curriculum.select(1, 1).numbers) == 20


def test_pinned_items_come_first_and_retired_ones_never():
    curriculum = pool()
    curriculum.pin(np.array([7, 8]))
    curriculum.retire(np.array([0, 1, 2]))
    for selection in train(curriculum, mixed_rates(), 20):
        assert {7, 8} <= set(selection.numbers.tolist()) and {0, 1, 2}.isdisjoint(selection.numbers.tolist())
        assert np.bincount(curriculum.items.category[selection.numbers]).tolist() == [4, 4, 4, 4]
    curriculum.pin(np.array([7, 8]), False)
    curriculum.retire(np.arange(3), False)
    assert not curriculum.items.retired.any()


def test_too_many_pinned_items_take_turns():
    curriculum = pool()
    curriculum.pin(np.arange(20))
    train(curriculum, mixed_rates(), 5)
    assert curriculum.items.selections[:20].sum() >= 40 and curriculum.items.selections[:20].min() >= 1


def test_items_whose_result_is_out_are_not_selected_again_until_released():
    curriculum = pool(num_items=32)
    first, second = curriculum.select(0, 0), curriculum.select(1, 0)
    assert set(first.numbers.tolist()).isdisjoint(second.numbers.tolist())
    with pytest.raises(ValueError, match="no item is left to select: 32 items, 0 retired, 32 waiting"):
        curriculum.select(2, 0)
    curriculum.release(first.numbers)
    assert set(curriculum.select(2, 0).numbers.tolist()) == set(first.numbers.tolist())


def test_the_chance_of_an_item_is_how_often_it_is_taken():
    curriculum = pool(num_items=80, explore=0.0, reprobe=0.0, cooldown=0)
    curriculum.observe(0, np.arange(80), (np.arange(80)[:, None] // 4 * 0.4 > np.arange(8)).astype(float), np.zeros(80))
    counts, expected = np.zeros(80), np.zeros(80)
    for step in range(1, 1500):
        selection = curriculum.select(step, 1)
        counts[selection.numbers] += 1
        for draw in selection.draws:
            expected[draw.numbers] = draw.chances
        curriculum.release(selection.numbers)
    rare = (expected > 0) & (expected < 0.25)
    assert rare.sum() > 20 and counts[rare] / 1499 == pytest.approx(expected[rare], abs=0.04)


def test_band_counts_follow_every_change():
    curriculum = pool()
    for step, selection in enumerate(train(curriculum, mixed_rates(), 25)):
        if step % 5 == 0:
            curriculum.retire(selection.numbers[:3])
        if step % 7 == 0:
            curriculum.retire(selection.numbers[:1], False)
    assert np.array_equal(curriculum.band_counts, copy(curriculum).band_counts)
    assert curriculum.band_counts.sum() == 400 - curriculum.items.retired.sum()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scheme": "uniform"},
        {"scheme": "dynamic"},
        {"scheme": "difficulty_pools"},
        {"mode": "stage", "stage_candidates": 100, "stage_size": 24, "stage_epochs": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("at", [0, 1, 9, 14])
def test_a_resumed_pool_selects_what_the_unbroken_one_does(options, at):
    rates = mixed_rates()
    unbroken = pool(seed=5, **options)
    expected = train(unbroken, rates, 22)
    broken = pool(seed=5, **options)
    train(broken, rates, at)
    resumed = copy(broken)
    for selection, wanted in zip(train(resumed, rates, 22 - at, at), expected[at:], strict=True):
        assert np.array_equal(selection.numbers, wanted.numbers) and selection.trains == wanted.trains
    everything = np.arange(400)
    assert unbroken.items.records(everything).tobytes() == resumed.items.records(everything).tobytes()


def test_the_seed_decides_the_selection():
    assert not np.array_equal(pool(seed=0).select(0, 0).numbers, pool(seed=1).select(0, 0).numbers)
    assert np.array_equal(pool(seed=1).select(0, 0).numbers, pool(seed=1).select(0, 0).numbers)


def test_items_added_later_are_explored():
    curriculum = pool(num_items=40)
    train(curriculum, np.full(400, 0.5), 20)
    curriculum.add(np.arange(40) % 4)
    counts = reasons(train(curriculum, np.full(400, 0.5), 5, 20))
    assert counts["unseen"] >= 5 and len(curriculum.items) == 80


@pytest.mark.parametrize(
    ("numbers", "rewards", "message"),
    [
        ([0], [[1.5]], "a reward is 1.5"),
        ([0], [[-0.1]], "a reward is -0.1"),
        ([0], [[np.inf]], "a reward is inf"),
        ([0, 0], [[1.0], [1.0]], "distinct"),
        ([400], [[1.0]], "distinct and in"),
        ([0, 1], [[1.0]], "do not fit 2 items"),
    ],
)
def test_impossible_rewards_are_refused_and_change_nothing(numbers, rewards, message):
    curriculum = pool()
    before = curriculum.items.records(np.arange(400)).tobytes(), curriculum.band_counts.copy()
    with pytest.raises(ValueError, match=message):
        curriculum.observe(0, np.array(numbers), np.array(rewards), np.zeros(len(numbers)))
    assert curriculum.items.records(np.arange(400)).tobytes() == before[0]
    assert np.array_equal(curriculum.band_counts, before[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "best"}, "scheme is 'best'; choose one of"),
        ({"mode": "stage", "scheme": "uniform"}, "use mode online"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"low": 0.9, "high": 0.1}, "0 < low < high < 1"),
        ({"explore": 0.7, "reprobe": 0.5}, "exceed 1"),
        ({"explore": -0.1}, "explore is -0.1"),
        ({"prior": (0.0, 1.0)}, "prior is"),
        ({"half_life": 0.0}, "half_life is 0.0"),
        ({"cooldown": -1}, "cooldown is -1"),
        ({"easy_border": 0.2, "hard_border": 0.8}, "must lie below"),
        ({"easy_fraction": 0.7, "hard_fraction": 0.7}, "must be shares"),
        ({"easy_fraction": np.nan}, "must be shares"),
        ({"explore": np.nan}, "explore is nan"),
        ({"min_spread": np.nan}, "min_spread is nan"),
        ({"half_life": np.nan}, "half_life is nan"),
        ({"stage_candidates": 0}, "stage_candidates is 0"),
    ],
)
def test_settings_that_cannot_work_name_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        CurriculumOptions(**({"batch_size": 16} | options))


@pytest.fixture(scope="module")
def learned():
    """100 steps of 16 on 1,000 items, as the learner's own curriculum chooses; by scheme, two seeds each."""
    schemes = {"frontier": {}, "drilled": {"cooldown": 4}, "uniform": {"scheme": "uniform"}}
    return {name: [simulated_learner.train(seed, **options) for seed in (0, 1)] for name, options in schemes.items()}


def test_on_a_learner_the_frontier_reads_widely_and_drills_nothing(learned):
    assert all(one.distinct > 900 and one.most <= 4 for one in learned["frontier"])
    assert all(one.distinct < 500 and one.most > 8 for one in learned["drilled"]), "a cooldown of 4 steps drills"
    assert all((one.distinct, one.most) == (1000, 2) for one in learned["uniform"])


def test_on_a_learner_the_frontier_has_more_signal_than_uniform_and_drilling_less(learned):
    signal = {name: np.mean([one.signal for one in found]) for name, found in learned.items()}
    assert signal["frontier"] > signal["uniform"] > signal["drilled"]


def test_where_most_tasks_and_levels_teach_nothing_the_frontier_finds_those_that_do():
    found, uniform = (
        [simulated_learner.train(s, num_items=4000, useless=0.7, scheme=name).signal for s in (0, 1)]
        for name in ("frontier", "uniform")
    )
    assert np.mean(found) > 1.4 * np.mean(uniform)
