"""A nano checkpoint, items with pictures, and fixed answers to them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.spatial_qa.items import Item
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.records.types import Completion, Prompt
from rl_lab.trl_backend.trainer import load_vlm
from tests.support.models import make_vlm, save_vlm

REPLIES = (
    "<think>left of the cup</think><answer>A</answer>",
    "<answer>B</answer>",
    "nothing",
    "<answer>(a)</answer> it is",
)


def make_folder(folder: Path) -> Path:
    return save_vlm(make_vlm().requires_grad_(True), folder)


def make_item(number: int, num_images: int = 1) -> Item:
    """A choice between letters; the images are random."""
    draw = np.random.default_rng(number)
    sizes = [(64, 64), (32, 96)]
    images = tuple(draw.integers(0, 256, (*sizes[index], 3), dtype=np.uint8) for index in range(num_images))
    return Item(
        id=f"item-{number}",
        category="perception",
        task="test",
        reward_type="choice",
        seed=number,
        scene=f"test:{number}",
        difficulty={},
        prompt=f"which of the {number} cups is it? /think",
        images=images,
        answer="AB"[number % 2],
        solution=REPLIES[number % 2],
    )


class FixedAnswers:
    """`roll_out` without an engine: answers from `REPLIES`, near the first model's probabilities.

    An item's answers depend on the item alone, so both backends can be given the same.
    """

    def __init__(self, folder: Path, size: int, *, noise: float = 0.05) -> None:
        self.size, self.noise = size, noise
        start = load_vlm(folder)
        self.model: Any = start.model
        self.processor = start.processor
        self.versions: list[int] = []

    def __call__(self, prompts: list[Prompt], snapshot: Any) -> list[list[Completion]]:
        self.versions.append(snapshot.version)
        return [self.answers(prompt, snapshot.version) for prompt in prompts]

    def answers(self, prompt: Prompt, version: int) -> list[Completion]:
        """`size` answers; the last is cut off."""
        draw = np.random.default_rng(sum(prompt.tokens))
        replies = [str(draw.choice(REPLIES)) for _ in range(self.size - 2)] + ["<answer>A</answer>", "so maybe it is"]
        rows = [self.processor.tokenizer(reply, add_special_tokens=False).input_ids for reply in replies]
        rows = [[*row, self.processor.tokenizer.eos_token_id] for row in rows[:-1]] + [rows[-1]]
        seen = expanded(self.processor, prompt)
        return [
            Completion(
                prompt_tokens=tuple(seen),
                tokens=tuple(row),
                logprobs=tuple(
                    (self.logprobs(seen, prompt.images, row) + self.noise * draw.standard_normal(len(row))).tolist()
                ),
                weight_version=version,
                finished=row is not rows[-1],
                num_cached_tokens=0,
            )
            for row in rows
        ]

    @torch.no_grad()
    def logprobs(self, seen: list[int], images: Sequence[np.ndarray], row: list[int]) -> np.ndarray:
        """Of the tokens of an answer."""
        visual: dict[str, Any] = {}
        if images:
            patches, grids = zip(*(self.processor.image_processor(image) for image in images), strict=True)
            visual = {"pixel_values": torch.from_numpy(np.concatenate(patches)), "image_grid_thw": torch.tensor(grids)}
        tokens = torch.tensor([seen + row])
        logits = self.model(tokens, **visual).logits[0, len(seen) - 1 : -1]
        return logits.log_softmax(-1).gather(1, tokens[0, len(seen) :, None])[:, 0].double().numpy()


def expanded(processor: HunYuanVLMoTProcessor, prompt: Prompt) -> list[int]:
    """The prompt as an engine reports it, images as rows of patches."""
    text = processor.tokenizer.decode(prompt.tokens)
    made: Any = processor(text=[text], images=[list(prompt.images)] if prompt.images else None)
    return made["input_ids"][0].tolist()
