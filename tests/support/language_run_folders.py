"""A run folder on questions and answers made of invented numbers, in the formats that real stages write."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import yaml

from algos.curriculum.options import CurriculumOptions
from rl_lab.curriculum.store import POOL_FILE, PoolItem, PoolStore
from rl_lab.records.rollouts import RolloutStore
from tests.support.pools import CATEGORIES, TASKS, png
from tests.support.questions import HOSTILE, rollout
from tests.support.rollouts import groups_of
from tests.support.run_folders import write_jsonl

SCHEMES = {"frontier": 0.30, "uniform": 0.18, "dynamic": 0.24, "difficulty_pools": 0.20}
"""What each scheme of a study adds to the base's reward in the end."""
REWARD_TYPES = ("point", "choice", "count", "ordering")
WORDS = ("<think>", " I", " see", " the", " red", " cup", " left", " of", " it", "</think>", "<answer>", "(512, 300)")


def _sampled(rng, probability, shape, failures):
    """Rewards around a probability, a few of them None."""
    rewards = np.clip(rng.beta(2, 2, shape) * 0.4 + (rng.random(shape) < probability) * 0.6, 0, 1).round(4).tolist()
    return [None if rng.random() < failures else reward for reward in rewards]


def examination(gain, items, samples, seed, failures=0.0):
    """Rows of results.jsonl: hard items are hard for every model, and grey pictures take most of the gain away."""
    hardness, rng = np.random.default_rng(7).random(items), np.random.default_rng(seed)
    rows = []
    for number in range(items):
        chance = float(np.clip(0.5 - 0.5 * hardness[number] + gain, 0, 1))
        rewards = _sampled(rng, chance, samples, failures)
        rows.append(
            {
                "item": f"{TASKS[number % 4]}-{number:04d}",
                "task": TASKS[number % 4],
                "category": CATEGORIES[number % 4],
                "reward_type": REWARD_TYPES[number % 4],
                "rewards": rewards,
                "blank": _sampled(rng, chance * 0.5, 2, failures),
                "constant": round(0.25 + 0.1 * (number % 3), 3),
                "tokens": [60] * samples,
                "finished": [True] * samples,
                "answers": ["<answer>A</answer>"] * samples,
            }
        )
    return rows


def held_out(gain, items, steps, every, tokens_a_step, seed):
    """Rows of held_out.jsonl: the reward rises towards the base plus the gain."""
    hardness, rng, rows = np.random.default_rng(7).random(items), np.random.default_rng(seed + 100), []
    for step in [*range(0, steps, every), steps]:
        share = 1 - np.exp(-3 * step / steps)
        chances = np.clip(0.5 - 0.5 * hardness + gain * share, 0, 1)
        rewards = [_sampled(rng, chance, 1, 0.0)[0] for chance in chances]
        rows.append({"step": step, "tokens": step * tokens_a_step, "rewards": rewards})
    return rows


def metrics(node, scheme, replicate, gain, steps, every, tokens_a_step):
    """A line a step, as a grpo node logs it."""
    rng, rows = np.random.default_rng(replicate * 31 + len(scheme)), []
    head = {"node": node, "method": scheme, "round": None}
    for step in range(steps + 1):
        share = 1 - float(np.exp(-3 * step / steps))
        row = head | {"step": step, "time": 9.0 * step}
        if step == 0 or step % every == 0:
            reward = 0.44 + gain * share + 0.01 * rng.normal()
            row |= {"held_out/reward": reward, "held_out/pass@1": reward}
            row |= {f"held_out_category/{c}": reward + 0.03 * i for i, c in enumerate(CATEGORIES)}
        if step:
            row |= _step_values(rng, share, gain, scheme, step, tokens_a_step)
        rows.append(row)
    return rows


def _step_values(rng, share, gain, scheme, step, tokens_a_step):
    mean = 0.42 + 0.5 * gain * share + 0.04 * rng.normal()
    refilled = int(rng.integers(0, 4)) if scheme in ("frontier", "dynamic") else 0
    hard, easy = int(40 - 20 * share), int(30 * share)
    row = {"loss": 0.01 * rng.normal(), "grad_norm": 0.4, "lr": 8e-7, "entropy": 0.9 - 0.3 * share, "reward/mean": mean}
    row |= {"clip/low": 0.01 + 0.01 * rng.random(), "clip/high": 0.02, "clip/region": 0.03, "mismatch/mean": 2e-4}
    row |= {
        "mismatch/max": 0.01,
        "ratio/mean": 1.0,
        "ratio/max": 1.2,
        "importance/mean": 1.0,
        "groups/with_signal": 0.8,
    }
    row |= {"reward/answer": mean - 0.1, "reward/format": 0.9 + 0.1 * share, "reward_masked": 0.0, "text/tokens": 4000}
    row |= {f"reward_category/{c}": mean + 0.05 * i - 0.1 for i, c in enumerate(CATEGORIES)}
    row |= {f"reward_type/{t}": mean - 0.04 * i for i, t in enumerate(REWARD_TYPES)}
    row |= {"rollouts/groups": 8 + refilled, "rollouts/refilled": refilled, "rollouts/signal": 0.5 + 0.3 * share}
    row |= {"rollouts/tokens": tokens_a_step, "rollouts/tokens_total": step * tokens_a_step, "rollouts/length": 62.0}
    row |= {"rollouts/truncated": 0.05 * (1 - share), "rollouts/staleness": 0.4, "weight_version": step}
    row |= {"pool/unseen": max(200 - 8 * step, 0), "pool/hard": hard, "pool/easy": easy, "pool/flat": 3}
    row |= {"pool/frontier": min(8 * step, 200) - hard if 8 * step > hard else 0, "pool_flow/unseen>frontier": 5}
    row |= {"pool_flow/unseen>hard": 2, "pool_flow/frontier>easy": int(step > 5)}
    row |= {"seconds/generate": 5.0, "seconds/score": 0.3, "seconds/learn": 2.5, "seconds/publish": 0.2}
    row |= {"seconds/step": 6.5, "idle/rollout": 0.2, "idle/learner": 0.6}
    return row | ({"reward_failures/answer/timeout": 1} if step == 4 else {})


def write_rollouts(folder, steps, groups=8, answers=4):
    """A pool with pictures and the rollouts of some steps; the first item's answers try to break out of the page."""
    items = [
        PoolItem(f"{TASKS[i % 4]}-{i:04d}", CATEGORIES[i % 4], TASKS[i % 4], "point", {"answer": [512, 300]})
        for i in range(40)
    ]
    with closing(PoolStore.create(folder / POOL_FILE, CurriculumOptions(batch_size=8), 0, CATEGORIES, items)) as store:
        for number in range(40):
            store.keep_images(number, [png(number)])
    rollouts, names = RolloutStore(folder), [item.id for item in items]
    for step in steps:
        rng, rows = np.random.default_rng(step), []
        for group, number in enumerate(rng.choice(40, groups, replace=False)):
            for sample in range(answers):
                texts = [*WORDS, *(" word" for _ in range(int(rng.integers(5, 60)))), "</answer>"]
                reward = float(rng.random() < 0.1 * group + 0.1)
                rows.append(
                    rollout(
                        names[number],
                        sample,
                        "".join(texts),
                        texts,
                        group=group,
                        prompt=f"Where is the red cup in scene {number}? /think" + HOSTILE * int(number == 0),
                        prompt_tokens=[1, 2, 3],
                        logprobs=(-rng.exponential(0.5, len(texts))).tolist(),
                        weight_version=step - 1,
                        finished=bool(rng.random() < 0.9),
                        rewards={"answer": reward, "format": 1.0},
                        reward=0.1 + 0.9 * reward if sample or group else None,
                        advantage=reward - 0.5,
                    )
                )
        rollouts.write(step, groups_of(rows))


def build_language_run(
    path: Path,
    *,
    schemes: dict[str, float] | None = None,
    seeds: int = 1,
    items: int = 80,
    steps: int = 40,
    every: int = 5,
    failures: float = 0.01,
    seed: int = 0,
) -> Path:
    """Write a complete run folder and return its path; one of several schemes or seeds is to be made `as_study`."""
    schemes = schemes or {"frontier": SCHEMES["frontier"]}
    path.mkdir(parents=True)
    config = {"name": "frontier_rl", "seed": seed, "curriculum": {"scheme": next(iter(schemes))}}
    config |= {"questions": {"held_out": items}, "examine": {"pass_threshold": 0.5, "samples": 4}}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    stood_in = [{"wanted": "MoT-2B", "used": "nano", "why": "random weights before the cold start"}]
    (path / "environment.json").write_text(json.dumps({"commit": "0123abc", "substitutions": stood_in}))
    nodes = [("questions", "questions", None, 12.0), ("cold_start", "cold_start", None, 90.0)]
    nodes += [("base.examine", "examine", "base", 20.0)]
    lines = [
        {"node": "cold_start", "method": None, "round": None, "step": step, "time": float(step)}
        | {"loss": 3 * float(np.exp(-step / 30)), "grad_norm": 1.0, "lr": 1e-3, "text/cross_entropy": 1.0}
        for step in range(1, 101)
    ]
    write_jsonl(path / "examinations" / "base.examine" / "results.jsonl", examination(0.0, items, 4, seed, failures))
    for scheme, gain in schemes.items():
        for replicate in range(1, seeds + 1):
            node, here = f"{scheme}.{replicate}.grpo", seed * 100 + replicate * 7 + len(scheme)
            got, spent = gain + 0.02 * (replicate - 2), 3000 if scheme == "frontier" else 2800
            nodes += [(node, "grpo", scheme, 300.0), (f"{scheme}.{replicate}.examine", "examine", scheme, 25.0)]
            rows = examination(got, items, 4, here, failures)
            write_jsonl(path / "examinations" / f"{scheme}.{replicate}.examine" / "results.jsonl", rows)
            write_jsonl(path / "grpo" / node / "held_out.jsonl", held_out(got, items, steps, every, spent, here))
            lines += metrics(node, scheme, replicate, gain, steps, every, spent)
            if replicate == 1:
                write_rollouts(path / "grpo" / node, range(1, steps + 1, 4))
    write_jsonl(path / "metrics.jsonl", lines)
    stages = [
        {"name": name, "kind": kind, "method": method, "round": None, "hash": f"{i:032x}", "status": "done"}
        | {"seconds": seconds, "reused": False}
        for i, (name, kind, method, seconds) in enumerate(nodes)
    ]
    (path / "stages.json").write_text(json.dumps({"store": "stages", "nodes": stages}))
    return path
