"""The cost model of docs/scaling.md beside measurements: parameters from small calls, predictions for larger ones.

Every parameter is measured at one size and used at another (twice the answers, the rows, the episodes), so a ratio of
predicted to measured tells how far the model's straight lines hold. Calibration and step take turns, and numbers are
medians over rounds; on CPU time is that of the process, with one thread, so other load does not enter.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from algos.flowpro import RPRO
from algos.grpo import GRPOOptions
from envs.options import AtLeastOne, Rounds, Rows, Tokens
from envs.rollback import RollbackConfig
from envs.spatial_qa.items import Item
from envs.types import Episode
from rl_lab.benchmarks.model import seconds
from rl_lab.benchmarks.options import check_divides
from rl_lab.benchmarks.rollout import PICTURE, WORD_IDS
from rl_lab.benchmarks.rpro import random_batch
from rl_lab.config.language import RLConfig
from rl_lab.config.section import Preset
from rl_lab.learner.language import GRPOPlan, GRPOTraining
from rl_lab.learner.learner import Learner
from rl_lab.learner.optim import Optimiser
from rl_lab.model.checkpoint import CheckpointInfo, publish, save_policy, vlm_config, vlm_processor
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.records.types import Prompt, RolloutGroup, Sampling, filled
from rl_lab.workers.engine import EngineOptions, RolloutEngine
from rl_lab.workers.policy import CorrectorPlan
from rl_lab.workers.simulation import EnvSpec, Simulation, Unit

TASK = "handover_block"
ROLLBACK = RollbackConfig(execute=8)


def rollout_seconds(tokens: float, engines: float, tokens_per_s: float) -> float:
    """Tokens / (engines x tokens/s of one)."""
    return tokens / (engines * tokens_per_s)


def update_seconds(rows: float, ranks: float, seconds_per_row: float) -> float:
    """Rows / ranks x s/row."""
    return rows / ranks * seconds_per_row


def sync_seconds(size: float, bytes_per_s: float, load_s: float) -> float:
    """Bytes / bandwidth of publishing them, and what an engine takes to load them."""
    return size / bytes_per_s + load_s


def collection_seconds(episodes: float, steps: float, workers: float, steps_per_s: float) -> float:
    """Episodes x steps / (workers x steps/s of one)."""
    return episodes * steps / (workers * steps_per_s)


GROUP = 4
"""Answers to a prompt."""
ITEM = Item("item", "perception", "none", "text", 0, "none:0", {}, "", (), "", "")
"""Nobody reads the questions."""


@dataclass
class Sizes:
    """What is measured: calls of the calibration; the steps are `factor` times as large."""

    answers: int = 16
    new_tokens: int = 32
    words: int = 32
    rows: int = 16
    episodes: int = 2
    factor: int = 2


class GRPOStep:
    """A small model in an engine and a learner, in this process."""

    def __init__(self, preset: str, sizes: Sizes, folder: Path) -> None:
        config = preset_config(preset)
        self.sizes, self.side = sizes, config.image_size
        self.draws = np.random.default_rng(0)
        torch.manual_seed(0)
        self.processor = vlm_processor(config, load_tokenizer())
        HunYuanVLMoTForConditionalGeneration(vlm_config(config)).save_pretrained(folder)
        self.processor.save_pretrained(folder)
        settings = RLConfig(steps=100, warmup=0, lr=1e-6)
        options = GRPOOptions(num_generations=GROUP, max_completion_length=sizes.new_tokens)
        self.training = GRPOTraining(GRPOPlan(folder, options, settings, seed=0))
        length = sizes.words + sizes.new_tokens + 2 * (self.side // 16) ** 2
        engine_options = EngineOptions(dtype="float32", max_model_len=length, max_num_seqs=sizes.answers)
        self.engine = RolloutEngine.from_snapshot(publish(folder, version=1), engine_options)

    def generate(self, answers: int) -> list[RolloutGroup]:
        """Answers to new prompts, in groups of GROUP, with random advantages."""
        picture = self.processor.tokenizer.encode(PICTURE, add_special_tokens=False)
        shape = (self.side, self.side, 3)
        prompts = [
            Prompt(
                picture + self.draws.integers(*WORD_IDS, self.sizes.words).tolist(),
                [self.draws.integers(0, 256, shape, dtype=np.uint8)],
            )
            for _ in range(answers // GROUP)
        ]
        sampling = Sampling(max_tokens=self.sizes.new_tokens, num_generations=GROUP, ignore_eos=True)
        found = self.engine.generate(prompts, sampling)
        groups = [RolloutGroup(ITEM, *one) for one in zip(prompts, found, strict=True)]
        advantages = self.draws.standard_normal(len(prompts) * GROUP).tolist()
        return filled(groups, advantage=advantages, reward=advantages)

    def round(self) -> dict[str, float]:
        """Seconds of the calibration's calls, then of a step that is `factor` times as large, and its prediction."""
        sizes, spent = self.sizes, dict[str, float]()
        kept: dict[str, Any] = {}

        def timed(name: str, call: Callable[[], Any]) -> None:
            spent[name] = seconds(lambda: kept.__setitem__(name, call()), "cpu")

        timed("generate", lambda: self.generate(sizes.answers))
        timed("learn", lambda: self.training.learn(kept["generate"]))
        timed("publish", self.training.publish)
        timed("load", lambda: self.engine.update(kept["publish"]))
        size = sum(len(content) for content in kept["publish"].files.values())
        tokens = sizes.answers * sizes.new_tokens
        rates = {
            "engine, tokens/s": tokens / spent["generate"],
            "GRPO update, s/row": spent["learn"] / sizes.answers,
            "publish, MB/s": size / spent["publish"] / 1e6,
            "load into an engine, s": spent["load"],
        }
        answers = sizes.factor * sizes.answers
        predicted = {
            "GRPO rollouts": rollout_seconds(answers * sizes.new_tokens, 1, rates["engine, tokens/s"]),
            "GRPO update": update_seconds(answers, 1, rates["GRPO update, s/row"]),
            "GRPO sync": sync_seconds(size, 1e6 * rates["publish, MB/s"], spent["load"]),
        }
        timed("GRPO rollouts", lambda: self.generate(answers))
        timed("GRPO update", lambda: self.training.learn(kept["GRPO rollouts"]))
        timed("GRPO sync", lambda: self.engine.update(self.training.publish()))
        return _round(rates, predicted, spent, "GRPO step")


class FlowPROStep:
    """A policy with random weights in one simulation worker and a learner, in this process: all episodes fail."""

    def __init__(self, preset: str, sizes: Sizes, folder: Path) -> None:
        self.sizes = sizes
        torch.manual_seed(0)
        policy = HyVLAPolicy(preset_config(preset))
        self.image_size, self.seed = policy.config.image_size, 0
        self.simulation = Simulation()
        self.folder = folder
        save_policy(folder, policy, self._processor(policy), CheckpointInfo(1, 0))
        self.snapshot = publish(folder, 1)
        reference = copy.deepcopy(policy).eval().requires_grad_(False)
        self.learner = Learner(policy, seed=0)
        self.learner.add("rpro", RPRO(reference, groups=("vision", "vlm", "expert")), Optimiser(lr=1e-6, steps=1000))
        self.policy = policy

    def _processor(self, policy: HyVLAPolicy) -> PolicyProcessor:
        from algos.chunks import Timing
        from rl_lab.records.action_batches import fit_processor

        demo = [one for one in self.simulation.demonstrate(self._unit(1), 0.0) if isinstance(one, Episode)]
        return fit_processor(policy.config, demo, Timing(policy.chunk_size))

    def _unit(self, episodes: int) -> Unit:
        """Episodes of seeds that were not used before."""
        self.seed += episodes
        seeds = tuple(range(self.seed, self.seed + episodes))
        return Unit(EnvSpec("tabletop", TASK, "clean", self.image_size), seeds, 0)

    def collect(self, episodes: int) -> int:
        """Collect from so many episodes; control steps of policy and corrector."""
        found = self.simulation.collect(self._unit(episodes), self.snapshot, ROLLBACK, CorrectorPlan())
        return found.counts["policy_steps"] + found.counts["corrector_steps"]

    def optimise(self, rows: int) -> None:
        """One step on a batch of random preference tuples, a quarter of them real pairs."""
        self.learner.step("rpro", random_batch(self.policy, rows, rows // 4))

    def round(self) -> dict[str, float]:
        """As `GRPOStep.round`."""
        sizes, spent, steps = self.sizes, dict[str, float](), dict[str, int]()
        kinds = {"collect": sizes.episodes, "FlowPRO collection": sizes.factor * sizes.episodes}
        for name, episodes in kinds.items():
            spent[name] = seconds(lambda name=name, n=episodes: steps.__setitem__(name, self.collect(n)), "cpu")  # type: ignore[misc]
        kinds = {"optimise": sizes.rows, "FlowPRO update": sizes.factor * sizes.rows}
        for name, rows in kinds.items():
            spent[name] = seconds(lambda n=rows: self.optimise(n), "cpu")  # type: ignore[misc]
        rates = {
            "simulation worker, steps/s": steps["collect"] / spent["collect"],
            "RPRO update, s/row": spent["optimise"] / sizes.rows,
        }
        episodes, each = sizes.factor * sizes.episodes, steps["collect"] / sizes.episodes
        predicted = {
            "FlowPRO collection": collection_seconds(episodes, each, 1, rates["simulation worker, steps/s"]),
            "FlowPRO update": update_seconds(sizes.factor * sizes.rows, 1, rates["RPRO update, s/row"]),
        }
        return _round(rates, predicted, spent, "FlowPRO step")


def _round(
    rates: dict[str, float], predicted: dict[str, float], spent: dict[str, float], whole: str
) -> dict[str, float]:
    """Rates, and predicted and measured seconds of each part and of the whole, whose parts take turns."""
    found = dict(rates)
    for name, value in predicted.items():
        found |= {f"predicted {name}": value, f"measured {name}": spent[name]}
    found[f"predicted {whole}"] = sum(predicted.values())
    found[f"measured {whole}"] = sum(spent[name] for name in predicted)
    return found


def run(
    preset: Preset = "nano",
    answers: Rows = 16,
    new_tokens: Tokens = 32,
    rows: Rows = 16,
    episodes: Rounds = 2,
    factor: Rounds = 2,
    rounds: Rounds = 3,
    parts: AtLeastOne[Literal["grpo", "flowpro"]] = ("grpo", "flowpro"),
) -> list[dict[str, Any]]:
    """Rows of the table: every parameter of the model, then predicted and measured seconds with their ratio."""
    check_divides("groups", GROUP, "answers", answers)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    sizes = Sizes(answers=answers, new_tokens=new_tokens, rows=rows, episodes=episodes, factor=factor)
    kinds: dict[str, Any] = {"grpo": GRPOStep, "flowpro": FlowPROStep}
    table: list[dict[str, Any]] = []
    for part in parts:
        with tempfile.TemporaryDirectory() as folder:
            step = kinds[part](preset, sizes, Path(folder))
            measured = [step.round() for _ in range(rounds + 1)][1:]  # the first one warms up
        table += _rows({name: statistics.median(one[name] for one in measured) for name in measured[0]})
    return table


def _rows(medians: dict[str, float]) -> list[dict[str, Any]]:
    parameters = [
        {"what": name, "value": value, "predicted s": "", "measured s": "", "ratio": ""}
        for name, value in medians.items()
        if not name.startswith(("predicted ", "measured "))
    ]
    compared = []
    for name, predicted in medians.items():
        if name.startswith("predicted "):
            what = name.removeprefix("predicted ")
            measured = medians[f"measured {what}"]
            row = {"what": what, "value": "", "predicted s": predicted, "measured s": measured}
            compared.append(row | {"ratio": predicted / measured})
    return parameters + compared
