"""Questions to engines, completions back, rewards for them: what examinations and reinforcement learning share.

Engines are the run's pool of vLLM workers, set up for the model that the stage acts with; rewards are those of a
configuration, with the learned models that it names. A reward call that fails is said once by function, answer and
reason; the stage gives up where none works.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch

from algos.alarms import FAILED_CALL
from algos.grpo import GRPOOptions, group_advantages
from envs.spatial_qa.items import Item
from rewards.config import RewardConfig
from rewards.judge import agreement
from rewards.rubric import Breakdown, Rewards
from rl_lab.common.errors import RunError
from rl_lab.common.files import file_digest
from rl_lab.config.language import DistillConfig, EngineConfig
from rl_lab.graph.stage import StageContext
from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.checkpoint import checkpoint_dtype
from rl_lab.records.types import Completion, Prompt, RolloutGroup, Sampling, all_completions, filled, group_rewards
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.engine import EngineOptions, RolloutUnit
from rl_lab.workers.pool import Batch, WorkerPool


def make_rewards(config: RewardConfig | None) -> Rewards:
    """Rewards with their models, which are loaded at the first call.

    ValueError as `Rewards`; UserError for a folder that holds no reward model of answers.
    """
    if config is None or not config.models:
        return Rewards(config)
    from rl_lab.rollouts.reward_model import OutcomeReward  # here, because it imports the model

    return Rewards(config, models={name: OutcomeReward(Path(model.path)) for name, model in config.models.items()})


def training_sampling(options: GRPOOptions | DistillConfig) -> Sampling:
    """How the answers that are learned from are drawn."""
    return Sampling(
        options.max_completion_length, temperature=options.temperature, num_generations=options.num_generations
    )


def reward_columns(items: Sequence[Item]) -> dict[str, list[Any]]:
    """What a reward is told of each answer's question, as columns: all of it, with pictures and a user's own fields.

    None where a question lacks one of these.
    """
    records = [item.record() | {"images": item.images} | item.columns for item in items]
    names = dict.fromkeys(name for record in records for name in record if name not in ("prompt", "columns"))
    return {name: [record.get(name) for record in records] for name in names}


FirstFailures = Mapping[str, str]
"""By `PART/REASON` the first reward call that failed so in words, with the completion on which it failed."""


def ask(
    engines: WorkerPool, prompts: Sequence[Prompt], sampling: Sampling, weights: ray.ObjectRef, per_call: int
) -> Batch:
    """Give prompts to the engines, `per_call` at once; `weights` is a published `Snapshot` in Ray's object store.

    Which prompts are computed together decides the last bits of their log-probabilities, so `per_call` is part of the
    result, unlike the number of engines.
    """
    units = [
        RolloutUnit(tuple(prompts[start : start + per_call]), sampling) for start in range(0, len(prompts), per_call)
    ]
    return engines.submit(lambda actor, unit: actor.generate.remote(unit, weights), units)


def collect(engines: WorkerPool, batch: Batch, check_stop: Callable[[], None]) -> tuple[list[list[Completion]], float]:
    """Wait for the completions of each prompt that was given to the engines; and the seconds that engines were busy.

    Errors as `WorkerPool.results`.
    """
    parts = list(engines.results(batch, check_stop))
    return [row for part in parts for row in part.completions], sum(part.busy_s for part in parts)


def rollout_groups(
    items: Sequence[Item],
    prompts: Sequence[Prompt],
    completions: Sequence[Sequence[Completion]],
    processor: HunYuanVLMoTProcessor,
) -> list[RolloutGroup]:
    """What engines made of each item's prompt, with its text."""
    decode = processor.tokenizer.decode
    return [
        RolloutGroup(
            item, prompt, [replace(one, text=decode(list(one.tokens), skip_special_tokens=True)) for one in row]
        )
        for item, prompt, row in zip(items, prompts, completions, strict=True)
    ]


def score(
    rewards: Rewards, groups: Sequence[RolloutGroup], *, judge_all: bool = False
) -> tuple[list[RolloutGroup], FirstFailures]:
    """The groups with the rewards of their completions; with `judge_all` the judge says what it thinks of every one.

    ValueError as `Rewards.breakdown`.
    """
    items = [group.item for group in groups for _ in group.completions]
    texts = [completion.text for completion in all_completions(groups)]
    columns = reward_columns(items)
    return with_rewards(
        groups, rewards.breakdown([item.prompt for item in items], texts, judge_all=judge_all, **columns)
    )


def with_rewards(groups: Sequence[RolloutGroup], result: Breakdown) -> tuple[list[RolloutGroup], FirstFailures]:
    """The groups with the rewards of all their completions, in order."""
    places = [(group.item.id, number) for group in groups for number in range(len(group.completions))]
    parts = [{name: column[i] for name, column in result.parts.items()} for i in range(len(places))]
    failures: list[tuple[str, ...]] = [()] * len(places)
    first: dict[str, str] = {}
    for failure in result.failures:
        name, (item, number) = f"{failure.part}/{failure.reason}", places[failure.sample]
        failures[failure.sample] += (name,)
        answer = f"answer {number} to {item}"
        first.setdefault(name, f"{failure.part} on {answer} ({failure.reason}: {failure.detail})")
    return filled(groups, rewards=parts, reward=result.rewards, failures=failures), first


def with_advantages(groups: Sequence[RolloutGroup], scale_rewards: str) -> list[RolloutGroup]:
    """The groups with the advantages of their completions; see `algos.grpo.group_advantages`."""
    advantages = group_advantages(torch.from_numpy(group_rewards(groups)), scale_rewards)
    return filled(groups, advantage=advantages.flatten().tolist())


def all_failed(groups: Sequence[RolloutGroup]) -> bool:
    """Whether no completion has a reward, each because a call failed."""
    flat = all_completions(groups)
    return bool(flat) and all(one.reward is None and one.failures for one in flat)


def failure_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`reward_failures/PART/REASON`: counts; `reward_masked`: share of completions without a reward for that reason."""
    flat = all_completions(groups)
    counts = Counter(name for one in flat for name in one.failures)
    masked = [bool(one.failures) and one.reward is None for one in flat]
    failed = {f"reward_failures/{name}": float(count) for name, count in counts.items()}
    return failed | {"reward_masked": sum(masked) / max(len(masked), 1)}


def judge_agreement(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`judge/agreement`, `judge/kappa` and `judge/items` of judge and verifier; empty where no completion has both."""
    parts = [one.rewards for one in all_completions(groups)]
    found = agreement([part["judge"] for part in parts], [part["verifier"] for part in parts])
    values = {"judge/agreement": found.rate, "judge/kappa": found.kappa}
    known = {name: value for name, value in values.items() if value is not None}
    return known | {"judge/items": float(found.n)} if found.n else {}


def reward_means(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """`reward/mean`, `reward/PART`, `reward_category/..`, `reward_type/..`: means over what has a reward."""
    found: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        item = group.item
        for name in ("reward/mean", f"reward_category/{item.category}", f"reward_type/{item.reward_type}"):
            found[name] += group.rewards
        for completion in group.completions:
            for name, value in completion.rewards.items():
                found[f"reward/{name}"].append(math.nan if value is None else value)
    return means(found.items())


def means(columns: Iterable[tuple[str, Sequence[float]]]) -> dict[str, float]:
    """Means of the numbers of each column that are numbers; columns without any are left out."""
    known = {name: [value for value in values if not math.isnan(value)] for name, values in columns}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


def plain(values: Iterable[float]) -> list[float | None]:
    """Numbers for JSON, None for NaN."""
    return [None if math.isnan(value) else value for value in values]


def policy_folder(context: StageContext) -> Path:
    """The checkpoint that a stage starts from: an earlier stage's, or the one that the config names."""
    return context.inputs.get("policy") or Path(context.config.model.path)


def engine_options(settings: EngineConfig, folder: Path, **more: Any) -> EngineOptions:
    """Of engines for the model of a checkpoint folder, by the run's `engine` section and what is set beside it."""
    options = settings.model_dump(exclude={"prompts_per_call"}) | more
    if options["dtype"] == "auto":
        options["dtype"] = checkpoint_dtype(folder)  # vLLM's own "auto" computes float32 in bfloat16
    return EngineOptions(**options)


@contextmanager
def engines(cluster: Cluster, context: StageContext) -> Iterator[WorkerPool]:
    """The run's engines, for one stage at a time; they take the weights with each call."""
    policy = policy_folder(context)
    options = engine_options(context.config.engine, policy, model=file_digest(policy / "config.json"))
    with cluster.rollout_pool(options, context.say) as pool:
        yield pool


FRUITLESS_STEPS = 3
"""Steps in a row without any reward after which a training ends: it would run to its end and learn nothing."""


class RewardFailures:
    """What a stage has said of its failed reward calls so far."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._told: set[str] = set()
        self._fruitless = 0

    def check(self, step: int, groups: Sequence[RolloutGroup], first: FirstFailures) -> None:
        """As `tell`, for a step of a training. RunError if no answer of several steps has a reward."""
        self.tell(step, first)
        self._fruitless = self._fruitless + 1 if all_failed(groups) else 0
        if self._fruitless == FRUITLESS_STEPS:
            raise _nothing(f"no answer of the last {FRUITLESS_STEPS} steps has a reward", first)

    def check_all(self, name: str, groups: Sequence[RolloutGroup], first: FirstFailures) -> None:
        """As `tell`, for an examination. RunError if none of its answers has a reward."""
        self.tell(0, first)
        if all_failed(groups):
            raise _nothing(f"no answer to a question of the set {name} has a reward", first)

    def tell(self, step: int, first: FirstFailures) -> None:
        """Name the first failure of each part and reason."""
        for name, words in first.items():
            if name not in self._told:
                self._told.add(name)
                text = f"{FAILED_CALL}: {words}; such answers are masked, and counted in reward_failures/{name}"
                self._context.say(f"step {step}: {text}")
                self._context.log(step, alarm=text)


def _nothing(what: str, first: FirstFailures) -> RunError:
    why = next(iter(first.values()), "see the failures in its rollouts")
    return RunError(f"{what}; the first failure: {why}; mend the reward, and go on with --resume")
