"""Tokens per second of the rollout engine beside transformers' own `generate()` on the same model, and weight updates.

Every prompt is new, random words and one picture, so nothing comes from an earlier round's cache; both sides write the
same number of tokens, and the engine returns their log-probabilities as well. Kinds take turns, and ratios are medians
over rounds. On CPU the time is that of the process, one thread by default; on CUDA it is wall time. An update is a
published snapshot into the live engine, checksum included; beside it stands a plain copy of the same tensors.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field

from envs.options import AtLeastOne, Pixels, Processes, Rounds, Rows, Tokens
from rl_lab.benchmarks.model import seconds
from rl_lab.benchmarks.options import Device, check_device, check_divides
from rl_lab.config.section import Preset
from rl_lab.model.checkpoint import publish, vlm_config, vlm_processor
from rl_lab.model.presets import preset_config
from rl_lab.model.tokenizer import ROLES, load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.records.types import Prompt, Sampling
from rl_lab.workers.engine import EngineOptions, RolloutEngine, snapshot_tensors

PICTURE = "".join(ROLES[role] for role in ("vision_start", "image", "latent", "vision_end"))
WORD_IDS = (100, 1000)
"""Range of ids that are ordinary words."""


class Contest:
    """One model, served by the engine and generating by itself."""

    def __init__(self, preset: str, dtype: str, device: str, batch: int, length: int) -> None:
        config = preset_config(preset)
        torch.manual_seed(0)
        self.device = device
        self.processor = vlm_processor(config, load_tokenizer())
        self.model = HunYuanVLMoTForConditionalGeneration(vlm_config(config)).eval()
        self.draws = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder)
            self.processor.save_pretrained(folder)
            self.snapshot = publish(Path(folder), version=1)
        self.model.to(device=device, dtype=getattr(torch, dtype))
        options = EngineOptions(dtype=dtype, max_model_len=length, max_num_seqs=batch)
        self.engine = RolloutEngine.from_snapshot(self.snapshot, options)

    def prompts(self, batch: int, words: int, side: int) -> list[Prompt]:
        """New prompts of `words` words and a square picture."""
        picture = self.processor.tokenizer.encode(PICTURE, add_special_tokens=False)
        return [
            Prompt(
                picture + self.draws.integers(*WORD_IDS, words).tolist(),
                [self.draws.integers(0, 256, (side, side, 3), dtype=np.uint8)],
            )
            for _ in range(batch)
        ]

    def inputs(self, prompts: list[Prompt]) -> dict[str, torch.Tensor]:
        """The same prompts as `generate()` takes them."""
        images = [prompt.images[0] for prompt in prompts]
        rows = self.processor(images=images, text=[PICTURE] * len(prompts))
        words = torch.tensor([list(prompt.tokens)[-self.words(prompt) :] for prompt in prompts])
        tokens = torch.cat([rows["input_ids"], words], dim=1)
        visual = {name: rows[name].to(self.device) for name in ("pixel_values", "image_grid_thw")}
        return {
            "input_ids": tokens.to(self.device),
            "attention_mask": torch.ones_like(tokens).to(self.device),
            **visual,
        }

    def words(self, prompt: Prompt) -> int:
        """Number of words of a prompt."""
        return len(prompt.tokens) - len(self.processor.tokenizer.encode(PICTURE, add_special_tokens=False))

    def round(self, batch: int, answers: int, words: int, side: int, new_tokens: int) -> dict[str, float]:
        """Tokens per second of both, for `batch` answers, `answers` of them to the same prompt."""
        prompts = self.prompts(batch // answers, words, side)
        sampling = Sampling(max_tokens=new_tokens, num_generations=answers, ignore_eos=True)
        spent = {"engine": seconds(lambda: self.engine.generate(prompts, sampling), self.device)}
        options: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens}
        options |= {"do_sample": True, "top_k": 0, "pad_token_id": 0, "num_return_sequences": answers}

        @torch.inference_mode()
        def generate() -> None:
            self.model.generate(**self.inputs(prompts), **options)

        spent["generate()"] = seconds(generate, self.device)
        return {kind: batch * new_tokens / value for kind, value in spent.items()}

    def update_seconds(self) -> dict[str, float]:
        """Seconds of an update and of a copy of the same bytes."""
        sources = list(snapshot_tensors(self.snapshot.files).values())
        targets = [torch.empty_like(source, device=self.device) for source in sources]

        def copy() -> None:
            for target, source in zip(targets, sources, strict=True):
                target.copy_(source)

        return {
            "weight update": seconds(lambda: self.engine.update(self.snapshot), self.device),
            "copy of the same bytes": seconds(copy, self.device),
        }


def run(
    preset: Preset = "mini",
    batches: AtLeastOne[Rows] = (1, 16, 64),
    group: Rows = 16,
    new_tokens: Tokens = 64,
    words: Tokens = 32,
    picture_side: Annotated[Pixels, Field(ge=32)] | None = None,
    rounds: Rounds = 5,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: Device = "cpu",
    threads: Processes = 1,
) -> list[dict[str, Any]]:
    """Rows of the table; `ratio` is over `generate()` at the same batch, or over the plain copy.

    Batches are of different prompts; the largest then also of groups of `group` answers to one prompt, as in GRPO.

    A picture has `picture_side` pixels a side, by default those of the preset. UserError where vLLM is not installed.
    """
    check_device(device)
    check_divides("groups", group, "the largest of batches", max(batches))
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    side = picture_side or preset_config(preset).image_size
    length = words + new_tokens + 2 * (side // 16) ** 2
    contest = Contest(preset, dtype, device, max(batches), length)
    rows = []
    for batch, answers in [*((batch, 1) for batch in batches), (max(batches), group)]:
        measured = [contest.round(batch, answers, words, side, new_tokens) for _ in range(rounds + 1)][1:]
        rows += _rows(f"batch {batch}, {answers} of a prompt", measured, "tokens/s", "generate()")
    updates = [contest.update_seconds() for _ in range(rounds + 1)][1:]
    size = sum(len(content) for content in contest.snapshot.files.values()) / 2**20
    return rows + _rows(f"{size:.1f} MiB of weights", updates, "s", "copy of the same bytes")


def _rows(case: str, measured: list[dict[str, float]], unit: str, base: str) -> list[dict[str, Any]]:
    """Medians of every kind, and of its ratio to `base`."""
    return [
        {
            "case": case,
            "what": kind,
            "value": statistics.median(one[kind] for one in measured),
            "unit": unit,
            "ratio": statistics.median(one[kind] / one[base] for one in measured),
        }
        for kind in measured[0]
    ]
