"""Questions with pictures, their files, and stored answers to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from algos.grpo import group_advantages
from envs.spatial_qa.items import CATEGORIES, Item
from rl_lab.model.checkpoint import load_language_model
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Completion, RolloutGroup
from tests.support.rollouts import groups_of, learned_groups

HOSTILE = '</script><script>document.title="owned"</script>'
"""What breaks out of a page that does not escape it."""


def make_item(number: int, num_images: int = 1, **changes: Any) -> Item:
    """A choice between letters; the pictures are random."""
    draw = np.random.default_rng(number)
    values: dict[str, Any] = {
        "id": f"item-{number}",
        "category": CATEGORIES[number % 4],
        "task": "test",
        "reward_type": "choice",
        "seed": number,
        "scene": f"test:{number}",
        "difficulty": {"margin_m": 0.1, "thinking": True},
        "prompt": f"which of the {number} cups is it? /think",
        "images": tuple(draw.integers(0, 256, (32, 32 + 32 * i, 3), dtype=np.uint8) for i in range(num_images)),
        "answer": "AB"[number % 2],
        "solution": f"<think>it is near</think><answer>{'AB'[number % 2]}</answer>",
    }
    return Item(**(values | changes))


TRAIN, HELD_OUT, DEVELOPMENT = range(24), range(1000, 1005), range(2000, 2040)
"""Numbers of the items in `write_questions`."""


def write_questions(folder: Path) -> Path:
    """The output of a `questions` stage."""
    folder.mkdir()
    for name, numbers in (("train", TRAIN), ("held_out", HELD_OUT), ("development", DEVELOPMENT)):
        write_rows(folder / f"{name}.arrow", map(item_row, map(make_item, numbers)))
    write_rows(folder / "cold_start.arrow", (item_row(make_item(i, i % 3)) for i in range(10)))
    return folder


def rollout(
    item: str, sample: int = 0, text: str = "", texts: Sequence[str] = ("x",), **changes: Any
) -> dict[str, Any]:
    """The row of a stored answer, of tokens with these texts."""
    known = {"item": item, "group": 0, "sample": sample, "prompt": "?", "prompt_tokens": [1], "completion": text}
    known |= {"tokens": list(range(len(texts))), "token_texts": list(texts), "logprobs": [-0.1] * len(texts)}
    known |= {"weight_version": 1, "finished": True, "rewards": {}, "reward": 0.0, "advantage": 0.0}
    return known | changes


def choices(item: str, sample: int, truth: float | None, text: str, paid: float = 0.0) -> dict[str, Any]:
    """An answer that was worth `truth`, whatever it was paid."""
    return rollout(item, sample, text, rewards={"answer": truth, "short": 1.0}, reward=paid)


def write_choices(folder: Path, samples: int = 4) -> Path:
    """Answers A and B to every question of training, in turns; those to even questions are right with A."""
    rows = []
    for number in TRAIN:
        for sample in range(samples):
            letter, right = "AB"[sample % 2], float(number % 2 == sample % 2)
            rows.append(choices(f"item-{number}", sample, right, f"<answer>{letter}</answer>"))
    for step in (1, 2):
        RolloutStore(folder).write(step, groups_of(rows[step - 1 :: 2]))
    return folder


def make_groups(policy: Path, seed: int = 0, failed: tuple[tuple[int, int], ...] = ()) -> list[RolloutGroup]:
    """Two questions with three answers each."""
    draw, found = np.random.default_rng(seed), load_language_model(policy)
    prompts = [item_prompt(make_item(number, num_images=1), found.processor) for number in (seed, seed + 1)]
    eos = found.processor.tokenizer.eos_token_id

    def answer(prompt) -> Completion:
        made = found.processor(text=[found.processor.tokenizer.decode(prompt.tokens)], images=[list(prompt.images)])
        tokens = (*draw.integers(100, 2000, int(draw.integers(2, 6))).tolist(), eos)
        logprobs = tuple((-7 - draw.random(len(tokens))).tolist())
        return Completion(tuple(made["input_ids"][0].tolist()), tokens, logprobs, 1, True)

    rewards = torch.from_numpy(draw.random((2, 3)))
    for place in failed:
        rewards[place] = torch.nan
    completions = [[answer(prompt) for _ in range(3)] for prompt in prompts]
    return learned_groups(prompts, completions, group_advantages(rewards), ~rewards.isnan())
