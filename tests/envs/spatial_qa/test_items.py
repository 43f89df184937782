"""What every item promises: a format that the rewards read, ids, splits, determinism, difficulty, controls."""

import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from envs.spatial_qa import items as splits
from envs.spatial_qa.items import (
    CATEGORIES,
    SEEDS_PER_BLOCK,
    SPLITS,
    Knobs,
    best_constant_answers,
    blank,
    constant_reward,
    item_id,
    knobs_at,
    split_of,
)
from envs.spatial_qa.questions import BY_CATEGORY, CATEGORY_OF, GENERATORS, make_item, make_items
from rewards.answers import REWARD_TYPES
from rewards.config import RewardConfig
from rewards.verifiers import format_reward, verifier_reward
from rl_lab.model.tokenizer import load_tokenizer

CONFIG = RewardConfig()
MAX_PROMPT, MAX_SOLUTION = 110, 260


def score(text, item):
    return verifier_reward(text, item.answer, item.reward_type, CONFIG)


def test_every_category_has_several_generators():
    assert tuple(BY_CATEGORY) == CATEGORIES
    assert all(len(group) >= 5 for group in BY_CATEGORY.values())


def test_every_solution_earns_the_full_reward_and_has_the_format(one_of_each):
    for item in one_of_each.values():
        assert item.reward_type in REWARD_TYPES and item.category == CATEGORY_OF[item.task]
        assert score(item.solution, item) == pytest.approx(1.0)
        assert format_reward(item.solution) == 1.0


def test_every_answer_and_image_is_plain_data(one_of_each):
    for item in one_of_each.values():
        record = item.record()
        assert json.loads(json.dumps(record)) == record
        assert "images" not in record
        assert [(image.shape, image.dtype) for image in item.images] == [((64, 64, 3), np.uint8)]
        assert item.images[0].std() > 5


def test_prompts_end_with_the_thinking_suffix_and_solutions_follow_it():
    for thinking in (True, False):
        item = make_item("relation", 3, Knobs(thinking=thinking))
        assert item.prompt.endswith(" /think" if thinking else " /no_think")
        assert (item.solution.startswith("<think>\n\n</think>\n<answer>")) == (not thinking)


def test_thinking_changes_neither_the_question_nor_the_answer():
    first, second = (make_item("count", 3, Knobs(thinking=thinking)) for thinking in (True, False))
    assert first.answer == second.answer and (first.images[0] == second.images[0]).all()
    assert first.prompt.removesuffix(" /think") == second.prompt.removesuffix(" /no_think")


def test_words_are_short_in_our_tokenizer(one_of_each):
    tokenizer = load_tokenizer()
    for item in one_of_each.values():
        assert len(tokenizer.encode(item.prompt)) <= MAX_PROMPT, item.prompt
        assert len(tokenizer.encode(item.solution)) <= MAX_SOLUTION, item.solution


def test_coordinates_are_integers_from_0_to_1000(one_of_each):
    for item in one_of_each.values():
        if item.reward_type in ("point", "points", "box", "boxes", "trajectory"):
            answer = item.solution.split("<answer>")[1]
            numbers = re.findall(r"[\d.]+", answer)
            assert numbers and all(n.isdigit() and 0 <= int(n) <= 1000 for n in numbers)


def test_trajectories_have_at_most_15_waypoints():
    item = make_item("object_path", 0, Knobs(waypoints=15))
    assert len(item.answer) == 15
    with pytest.raises(ValueError, match="waypoints is 16; use 2 to 15"):
        Knobs(waypoints=16)


def test_the_same_id_gives_the_same_bits_whatever_came_before(one_of_each):
    for task in ("point_object", "task_done", "gripper_path", "blocks_above"):
        make_item(task, 999_936, Knobs(num_objects=3))
        again = make_item(task, 12_800, Knobs())
        first = one_of_each[task, 12_800]
        assert again.record() == first.record()
        assert (again.images[0] == first.images[0]).all()


def test_another_process_makes_the_same_items(one_of_each):
    code = (
        "import hashlib\n"
        "from envs.spatial_qa.questions import make_item\n"
        "for task in ('next_step', 'ground_box', 'free_place'):\n"
        "    item = make_item(task, 12800)\n"
        "    print(item.id, hashlib.sha256(item.images[0].tobytes() + repr(item.record()).encode()).hexdigest())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    expected = []
    for task in ("next_step", "ground_box", "free_place"):
        item = one_of_each[task, 12_800]
        digest = hashlib.sha256(item.images[0].tobytes() + repr(item.record()).encode()).hexdigest()
        expected.append(f"{item.id} {digest}")
    assert done.stdout.split("\n")[:-1] == expected


def test_ids_depend_on_generator_seed_and_every_knob():
    names = {
        item_id("count", 1, Knobs()),
        item_id("count", 2, Knobs()),
        item_id("relation", 1, Knobs()),
        item_id("count", 1, Knobs(margin_m=0.04)),
        item_id("count", 1, Knobs(thinking=False)),
    }
    assert len(names) == 5
    assert item_id("count", 1, Knobs()) in names


def test_larger_images_show_the_same_scene():
    small, large = make_item("ground_box", 5, Knobs()), make_item("ground_box", 5, Knobs(image_size=128))
    assert large.images[0].shape == (128, 128, 3)
    assert small.answer == large.answer
    shrunk = large.images[0].reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.images[0]).mean() < 6


def test_splits_share_no_seed_and_blocks_do_not_cross_them():
    seen = [seeds for seeds in SPLITS.values()]
    for first, second in zip(seen, seen[1:], strict=False):
        assert first.stop == second.start and second.start % SEEDS_PER_BLOCK == 0
    assert [split_of(seeds[-1]) for seeds in seen] == list(SPLITS)
    with pytest.raises(ValueError, match="belongs to no split"):
        split_of(-1)


def test_splits_share_no_scene_and_heldout_scenes_share_no_family():
    families, scenes = {}, {}
    for split in SPLITS:
        items = list(make_items(24, split, levels=(0.5,)))
        scenes[split] = {item.scene for item in items}
        families[split] = {item.scene.split(":")[0].split(".")[0] for item in items}
    assert not scenes["train"] & scenes["heldout_seeds"]
    assert families["heldout_scenes"] <= {*splits.HELDOUT_LAYOUTS, *splits.HELDOUT_TASKS, *splits.HELDOUT_TOWERS}
    trained = {*splits.TRAIN_LAYOUTS, *splits.TRAIN_TASKS, *splits.TRAIN_TOWERS}
    assert families["train"] | families["heldout_seeds"] <= trained
    assert not families["heldout_scenes"] & trained


def test_a_stream_of_items_is_balanced_over_categories_and_does_not_depend_on_its_start():
    items = list(make_items(8))
    assert [item.category for item in items[:4]] == list(CATEGORIES)
    assert [item.id for item in make_items(3, start=5)] == [item.id for item in items[5:]]
    assert len({item.task for item in items}) == 8


def test_a_stream_can_be_restricted_to_tasks():
    assert {item.task for item in make_items(4, tasks=["count", "relation"])} == {"count", "relation"}


def test_yes_and_no_are_about_equally_frequent():
    answers = [make_item(task, seed).answer for task in ("relation", "fits_gripper") for seed in range(0, 1600, 64)]
    assert 0.3 < np.mean([answer == "yes" for answer in answers]) < 0.7


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_item("jump", 0), "task is 'jump'; use one of point_object"),
        (lambda: make_item("count", 10**10), "belongs to no split"),
        (lambda: list(make_items(1, "test")), "split is 'test'; use one of train"),
        (lambda: list(make_items(1, tasks=["jump"])), "unknown tasks jump"),
        (lambda: Knobs(num_objects=9), "num_objects is 9; use 2 to 8"),
        (lambda: Knobs(image_size=8), "image_size is 8; use 16 to 480"),
        (lambda: knobs_at(2.0), "level is 2.0; use 0.0 to 1.0"),
    ],
)
def test_wrong_requests_are_one_line(call, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        call()
    assert "\n" not in str(error.value)


def test_blank_items_keep_everything_but_the_picture(one_of_each):
    item = one_of_each["count", 12_800]
    empty = blank(item)
    assert empty.id == f"{item.id}-blank"
    assert empty.images[0].shape == item.images[0].shape and empty.images[0].std() == 0
    assert replace(empty, id=item.id).record() == item.record()


def test_best_constant_answer_is_the_majority_of_each_generator(one_of_each):
    item = one_of_each["relation", 12_800]

    def answered(word):
        return replace(item, answer=word, solution=f"<think>\n\n</think>\n<answer>\n{word}\n</answer>")

    items = [answered("yes"), answered("yes"), answered("no")]
    best, mean = best_constant_answers(items, score)
    assert mean == pytest.approx(2 / 3) and best["relation"].reply == "<answer>\nyes\n</answer>"
    assert constant_reward([answered("no")], best, score) == 0.0
    broken, _ = best_constant_answers(items, lambda text, item: np.nan if "no" in text else 0.1)
    assert broken["relation"].reply == "<answer>\nyes\n</answer>", "a reward that failed never wins"
    with pytest.raises(ValueError, match="no items"):
        best_constant_answers([], score)


def test_all_generators_are_named_once():
    assert len(GENERATORS) == sum(len(group) for group in BY_CATEGORY.values())


@pytest.mark.parametrize("per_scene", [1, 4, 64])
def test_so_many_successive_items_share_the_seeds_of_a_block(per_scene: int) -> None:
    items = list(make_items(12, tasks=["point_object", "count"], levels=(0.0,), per_scene=per_scene))
    blocks = [item.seed // SEEDS_PER_BLOCK for item in items]
    assert blocks == [number // per_scene for number in range(12)]
    assert len({item.seed for item in items}) == 12
    alone = next(make_items(1, start=7, tasks=["point_object", "count"], levels=(0.0,), per_scene=per_scene))
    assert alone.id == items[7].id


def test_no_item_or_more_than_a_block_for_a_scene_is_refused() -> None:
    for wrong in (0, SEEDS_PER_BLOCK + 1):
        with pytest.raises(ValueError, match="per_scene"):
            next(make_items(1, per_scene=wrong))
