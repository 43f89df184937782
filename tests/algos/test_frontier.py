"""The frontier's draws from sums that are kept up, beside the same law computed in a pass over all items."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.curriculum.curriculum import Curriculum
from algos.curriculum.draws import Weights, draw_weighted
from algos.curriculum.items import Items, band_probabilities
from algos.curriculum.options import CurriculumOptions

CATEGORIES = 3


def plain_draws(curriculum, rng, step, version, places, free):
    """Reason, category, numbers, chances, candidates, total weight and rest of every draw, by the law's own words."""
    items, options = curriculum.items, curriculum.options
    observed, probability = items.groups > 0, items.band_probability.astype(float)
    prior = band_probabilities(np.zeros((3, 1)), options)[1][0]
    filled = len(np.unique(items.category))

    def mean(of, above):
        return (probability[of & observed].sum() + 4 * above) / (np.count_nonzero(of & observed) + 4)

    for category in np.flatnonzero(places):
        mine = items.category == category
        rows, known = np.flatnonzero(mine), mean(mine, prior)
        promise = {cell: mean(items.cell == cell, known) for cell in set(items.cell[rows].tolist())}
        promised = np.array([promise[cell] for cell in items.cell[rows].tolist()])
        lies = np.where(observed, probability, 0.0)[rows] + np.where(observed[rows], 0.0, promised)
        rest = max(int(lies[~items.retired[rows]].sum() * filled / options.batch_size) - 1, 0)
        rest = rest if options.cooldown is None else options.cooldown
        rests = items.selected_step[rows] >= max(step - rest, 0)
        unseen, seen = free[rows] & ~observed[rows], free[rows] & observed[rows]
        worth = np.maximum(promised**options.sharpness, 1e-12) * unseen
        weight = np.maximum(probability[rows] ** options.sharpness, 1e-12) * np.where(rests, 1e-6, 1.0) * seen
        stale = np.flatnonzero(seen & ~rests & (items.version[rows] < version - options.stale_after))
        sizes = np.count_nonzero(unseen), len(stale), np.count_nonzero(seen)
        counts = curriculum._frontier._shares(rng, int(places[category]), sizes, weight.sum())

        def drawn(reason, weights, count, rest=0, category=category, rows=rows):
            chosen, total = draw_weighted(rng, Weights.of(weights), count), weights.sum()
            chances = np.minimum(count * weights[chosen] / max(total, 1e-300), 1)
            return reason, category, rows[chosen], chances, np.count_nonzero(weights), total, rest

        yield drawn("unseen", worth, counts[0])
        probed = stale[rng.choice(len(stale), counts[1], replace=False)] if counts[1] else stale[:0]
        even = np.full(len(probed), counts[1] / max(len(stale), 1))
        yield "stale", category, rows[probed], even, len(stale), float(len(stale)), 0
        weight[probed] = 0.0
        yield drawn("frontier", weight, counts[2], rest)


def check(selection, curriculum, step, version, places):
    """A selection of a curriculum as it stands is the one that the plain law makes with the same random numbers."""
    rng, round_ = np.random.default_rng((curriculum.seed, step, selection.round)), selection.round
    free = ~(curriculum.items.retired | curriculum.items.pending)
    free &= ~((curriculum.items.selected_step == step) & (round_ > 0))
    pinned = np.concatenate([np.empty(0, int), *(d.numbers for d in selection.draws if d.reason == "pinned")])
    free[pinned] = False
    if places is None:
        available = np.bincount(curriculum.items.category[free], minlength=CATEGORIES)
        places = curriculum._places(step, curriculum.options.batch_size, pinned, available)
    wanted = [draw for draw in plain_draws(curriculum, rng, step, version, places, free) if len(draw[2])]
    found = [draw for draw in selection.draws if draw.reason != "pinned"]
    assert [(d.reason, d.category, d.candidates, d.rest) for d in found] == [(*w[:2], w[4], w[6]) for w in wanted]
    for draw, (_, _, numbers, chances, _, total, _) in zip(found, wanted, strict=True):
        assert draw.numbers.tolist() == numbers.tolist()
        assert draw.chances == pytest.approx(chances, rel=1e-8) and draw.total_weight == pytest.approx(total, rel=1e-8)


def rebuilt(curriculum):
    """The curriculum as a resumed run has it."""
    items = Items(curriculum.items.records(np.arange(len(curriculum.items))))
    return Curriculum(curriculum.options, curriculum.seed, CATEGORIES, items)


@given(
    st.integers(0, 10**6),
    st.sampled_from([3, 700]),
    st.sampled_from([None, 0, 3]),
    st.sampled_from([1.0, 4.0]),
    st.sampled_from([1, 4]),
)
@settings(max_examples=8, deadline=None)
def test_draws_are_those_of_a_pass_over_all_items_whatever_happened_before(seed, size, cooldown, sharpness, stale):
    """Observed, released, retired, pinned, refilled, failed; and a rebuilt pool draws the same to the bit."""
    rng = np.random.default_rng((1, seed))
    options = {"cooldown": cooldown, "sharpness": sharpness, "stale_after": stale, "reprobe": 0.2}
    curriculum = Curriculum(CurriculumOptions(batch_size=24, **options), seed, CATEGORIES)
    category = rng.integers(0, CATEGORIES, size)
    curriculum.add(category.astype(np.uint8), (category * 5 + rng.integers(0, 5, size)).astype(np.uint32))
    rates, out, version = rng.beta(0.3, 0.3, size), [], 0

    def answer(step, numbers):
        rewards = (rng.random((len(numbers), 4)) < rates[numbers, None]).astype(float)
        rewards[rng.random(rewards.shape) < 0.1] = np.nan
        return curriculum.observe(step, numbers, rewards, np.full(len(numbers), version))

    answer(0, rng.permutation(size)[: size // 2])
    for step in range(1, 9):
        curriculum.retire(rng.integers(0, size, 3), bool(rng.random() < 0.6))
        curriculum.pin(rng.integers(0, size, 1), bool(rng.random() < 0.6))
        places = None
        for round_ in range(3):
            before, twin = rebuilt(curriculum), rebuilt(curriculum)
            try:
                selection = curriculum.select(step, version, places, round_)
            except ValueError:
                break
            check(selection, before, step, version, places)
            for draw, other in zip(selection.draws, twin.select(step, version, places, round_).draws, strict=True):
                assert draw.total_weight == other.total_weight and draw.numbers.tolist() == other.numbers.tolist()
                assert draw.chances.tolist() == other.chances.tolist()
            late = rng.random(len(selection.numbers)) < 0.1
            out += selection.numbers[late].tolist()
            observation = answer(step, selection.numbers[~late])
            places = curriculum.refill_places(observation)
        if step % 3 == 0:
            curriculum.release(np.unique(np.array(out, int)))
            out = []
        version += int(rng.integers(0, 3))


@given(st.lists(st.sampled_from([0.0, 1e-3, 0.3, 1.0]), min_size=1, max_size=400))
@settings(max_examples=30)
def test_the_line_of_weights_gives_every_place_its_own_length(weights):
    """The middle of each place's piece of [0, total), and both of its ends within rounding, fall on that place."""
    weights = np.array(weights)
    ends = np.array([math.fsum(weights[: place + 1]) for place in range(len(weights))])
    places = np.flatnonzero(weights)
    for share in (1e-9, 0.5, 1 - 1e-9):
        assert Weights.of(weights).places((ends - weights * share)[places]).tolist() == places.tolist()
