"""GRPO with TRL's `GRPOTrainer` and rollouts from the lab's engines, from checkpoint folder to checkpoint folder.

How TRL 1.16 is made to do this, without a subclass of its trainer:
- `rollout_func` gets the step's prompts, each as often as it has answers, and returns what the engines drew.
- Images do not come back from `rollout_func`. TRL takes them from the rows' field `images`, runs its processor on them
  and passes `pixel_values` and `image_grid_thw` to its own loss: once for every answer, not once for a prompt. The data
  set holds numbers of rows, and the collator, which TRL sets itself and which does nothing, is replaced by `rows`.
- TRL corrects for the engine's probabilities, and asks for new weights to be sent, only where it has started vLLM
  itself (`use_vllm`). The trainer is told so after its construction, with `Publisher` where its own engine would be.
- The engines never draw the tokens that stand for patches. TRL adds the bias of an output embedding to its logits, so
  the model gets one that says the same while it trains; it is in no checkpoint.

Differs from `algos.grpo` in the Learner: an answer whose reward call failed has advantage 0 but stays in the loss's
denominator, and the advantages of a group without signal are rounding errors over 1e-4.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from algos.grpo import GRPOOptions
from envs.spatial_qa.items import Item
from rewards.answers import completion_text
from rewards.rubric import Breakdown, Rewards
from rl_lab.model import register
from rl_lab.model.backbone import sampling_bias
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import CheckpointInfo, LanguageModel, Snapshot, publish
from rl_lab.records.token_batches import item_prompt
from rl_lab.records.types import Completion, Prompt, RolloutGroup, all_completions
from rl_lab.rollouts.answering import reward_columns, rollout_groups
from rl_lab.trl_backend.trainer import Log, Settings, common_arguments, load_vlm, optimizers, own_config, train

NAMES = {
    "entropy": "entropy",
    "kl": "kl",
    "clip/low": "clip_ratio/low_mean",
    "clip/high": "clip_ratio/high_mean",
    "clip/region": "clip_ratio/region_mean",
    "mismatch/mean": "sampling/sampling_logp_difference/mean",
    "mismatch/max": "sampling/sampling_logp_difference/max",
    "importance/mean": "sampling/importance_sampling_ratio/mean",
    "importance/min": "sampling/importance_sampling_ratio/min",
    "importance/max": "sampling/importance_sampling_ratio/max",
    "reward/mean": "reward",
}
"""The lab's name -> TRL's, of metrics that mean the same."""

RollOut = Callable[[list[Prompt], Snapshot], list[list[Completion]]]
"""The answers to each prompt by engines that have these weights."""


@dataclass(frozen=True)
class Generation:
    """What one generation brought, for whoever keeps rollouts."""

    number: int
    """From 1."""
    groups: list[RolloutGroup]
    """As the engines wrote them."""
    breakdown: Breakdown
    """Of all completions, those of an item one after the other."""


def notice(scheme: str) -> str:
    """What a run with `backend: trl` does not do, in one line."""
    return (
        f"backend: trl: TRL cannot refill groups without signal, and the curriculum ({scheme}) is read once, before "
        "the first step, so no result changes the choice of items; it waits for every generation (staleness 0), "
        "answers whose reward failed stay in the loss's denominator, and a stage that was stopped starts again"
    )


def info_after(start: LanguageModel, batches: int, options: GRPOOptions) -> CheckpointInfo:
    """What is recorded beside the weights that learned from this many batches."""
    return start.info.after(batches * options.num_iterations, batches)


class Publisher:
    """Stands where TRL keeps its vLLM: TRL calls `sync_weights` when the engines need newer weights."""

    def __init__(self, trainer: GRPOTrainer, start: LanguageModel, options: GRPOOptions) -> None:
        self.trainer, self.start, self.options = trainer, start, options
        self.snapshot: Snapshot | None = None

    def sync_weights(self) -> None:
        """Publish the weights of the moment; their version counts on by the batches learned."""
        info = info_after(self.start, self.trainer.state.global_step // self.options.num_iterations, self.options)
        with tempfile.TemporaryDirectory() as folder:
            self.start.save(Path(folder), info=info)
            self.snapshot = publish(Path(folder), info.weight_version)


@dataclass
class TRLRollouts:
    """TRL's `rollout_func` and its reward function: items to prompts, answers, rewards and metrics."""

    batches: Sequence[Sequence[Item]]
    options: GRPOOptions
    processor: HunYuanVLMoTProcessor
    roll_out: RollOut
    rewards: Rewards
    record: Callable[[Generation], None]
    groups: list[RolloutGroup] = field(default_factory=list)
    """Of the newest generation."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the newest generation, and of the optimizer steps that learned from it so far."""

    __name__ = "reward"

    def rows(self, numbers: list[dict[str, int]]) -> list[dict[str, Any]]:
        """Items by their place in the whole order, as TRL reads them; images stay the arrays that they are."""
        size = len(self.batches[0])
        items = [self.batches[number["row"] // size][number["row"] % size] for number in numbers]
        return [{"prompt": chat(item), "images": list(item.images)} for item in items]

    def batch(self, state: Any) -> int:
        """Number of the current batch, from 0."""
        return state.global_step // self.options.num_iterations

    def generate(self, prompts: list[Any], trainer: Any) -> dict[str, list[Any]]:
        """`rollout_func`: one answer for each of `prompts`, which TRL has repeated already."""
        items, size = self.batches[self.batch(trainer.state)], self.options.num_generations
        assert len(prompts) == len(items) * size, f"TRL asks for {len(prompts)} answers to {len(items)} items"
        questions = [item_prompt(item, self.processor) for item in items]
        completions = self.roll_out(questions, trainer.vllm_generation.snapshot)
        if [len(row) for row in completions] != [size] * len(items):
            raise ValueError(f"{len(items)} prompts need {size} answers each, not {list(map(len, completions))}")
        self.groups = rollout_groups(items, questions, completions, self.processor)
        answers = all_completions(self.groups)
        return {
            "prompt_ids": [list(answer.prompt_tokens) for answer in answers],
            "completion_ids": [list(answer.tokens) for answer in answers],
            "logprobs": [list(answer.logprobs) for answer in answers],
        }

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], trainer_state: Any, **_: Any
    ) -> list[float | None]:
        """The reward function: TRL's messages become the item's prompt and the answer's text, as in the Learner."""
        number = self.batch(trainer_state)
        items = [item for item in self.batches[number] for _ in range(self.options.num_generations)]
        texts = [completion_text(completion) for completion in completions]
        columns: dict[str, Any] = reward_columns(items)
        breakdown = self.rewards.breakdown([item.prompt for item in items], texts, **columns)
        self.metrics = breakdown.metrics() | self._own_metrics(breakdown) | {"weight_version": self._version()}
        self.record(Generation(number + 1, self.groups, breakdown))
        return breakdown.rewards

    def _version(self) -> float:
        return float(self.groups[0].completions[0].weight_version)

    def _own_metrics(self, breakdown: Breakdown) -> dict[str, float]:
        """What TRL counts otherwise or not at all."""
        size = self.options.num_generations
        groups = [breakdown.rewards[start : start + size] for start in range(0, len(breakdown.rewards), size)]
        signal = [len({reward for reward in group if reward is not None}) > 1 for group in groups]
        learned = [
            len(answer.tokens)
            for answer in all_completions(self.groups)
            if answer.finished or not self.options.mask_truncated_completions
        ]
        return {"groups/with_signal": sum(signal) / len(signal), "text/tokens": float(sum(learned))}


def metric_names(options: GRPOOptions) -> dict[str, str]:
    """`NAMES` without what TRL means otherwise: importance weights that count masked answers, and a KL term that the
    ratio weighs, which is 1 in the first step on a batch."""
    left_out = ("importance/",) * options.mask_truncated_completions
    left_out += ("kl",) * (options.use_bias_correction_kl and options.num_iterations > 1)
    return {ours: theirs for ours, theirs in NAMES.items() if not ours.startswith(left_out)}


def chat(item: Item) -> list[dict[str, Any]]:
    """An item as messages; TRL puts the images into their places."""
    content = [*({"type": "image"} for _ in item.images), {"type": "text", "text": item.prompt}]
    return [{"role": "user", "content": content}]


@contextmanager
def never_drawn(models: Sequence[Any]) -> Iterator[None]:
    """Meanwhile TRL's scores leave out what the engines never draw, see `rl_lab.model.backbone`."""
    heads = [model.get_output_embeddings() for model in models]
    for model, head in zip(models, heads, strict=True):
        del head.bias
        head.register_buffer("bias", sampling_bias(model.model), persistent=False)
    try:
        yield
    finally:
        for head in heads:
            del head.bias
            head.register_parameter("bias", None)


def train_grpo(
    folder: Path,
    batches: Sequence[Sequence[Item]],
    options: GRPOOptions,
    settings: Settings,
    roll_out: RollOut,
    rewards: Rewards,
    output: Path,
    log: Log,
    record: Callable[[Generation], None] = lambda step: None,
) -> None:
    """Train the VLM in `folder` on a batch of items a step, in the given order, and write it to `output`.

    In each step `roll_out` gets the prompts, without seeds, and the trainer's weights as a snapshot, whose version is
    that of `folder` and one more a step, and answers every item `num_generations` times. `record` gets what came of
    it; `log` gets the metrics after the step's `num_iterations` optimizer steps: of the last, and what only the first
    tells. With `beta` the reference is the model in `folder`.

    ValueError for batches of different size, or answers of another number; UserError for a folder without a VLM;
    RuntimeError for a loss that is not finite, and then nothing is written.
    """
    sizes = {len(batch) for batch in batches}
    if len(sizes) != 1:
        raise ValueError(f"batches have {sorted(sizes)} items; TRL needs at least one and equally many items in each")
    size, steps = sizes.pop(), len(batches) * options.num_iterations
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # rollout_func may change; the version of TRL is pinned
    register()  # TRL loads the reference by its Auto class
    start = load_vlm(folder)
    rollouts = TRLRollouts(batches, options, start.processor, roll_out, rewards, record)
    model: Any = start.model
    with tempfile.TemporaryDirectory() as scratch, own_config(model):
        trainer = GRPOTrainer(
            model,
            reward_funcs=rollouts,
            args=GRPOConfig(
                scratch,
                shuffle_dataset=False,
                log_multimodal=False,
                **options.model_dump(),
                **common_arguments(settings, steps, size * options.num_generations),
            ),
            train_dataset=Dataset.from_dict({"row": list(range(len(batches) * size))}),
            processing_class=start.processor,
            optimizers=optimizers(model, model.parameter_groups(), settings),
            rollout_func=rollouts.generate,
        )
        trainer.use_vllm, trainer._last_loaded_step = True, -1
        trainer.vllm_generation = Publisher(trainer, start, options)  # type: ignore[assignment]
        trainer.data_collator = rollouts.rows  # type: ignore[assignment]

        def log_batch(step: int, metrics: dict[str, float]) -> None:
            rollouts.metrics |= metrics
            if step % options.num_iterations == 0:
                log(step // options.num_iterations, rollouts.metrics)

        with never_drawn([made for made in (trainer.model, trainer.ref_model) if made is not None]):
            train(trainer, log_batch, metric_names(options))
    start.save(output, info=info_after(start, len(batches), options))
