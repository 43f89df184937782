"""Stored answers, chunks and episodes, to be chosen from or scored again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rewards.actions.ensemble import Ensemble, ModelInfo
from rl_lab.records.episodes import write_candidates, write_episodes
from rl_lab.records.item_files import item_row, write_rows
from rl_lab.records.rollouts import RolloutStore
from rl_lab.rollouts.ranking import rank_folder
from tests.support.episodes import sampled_chunks, walk
from tests.support.questions import make_item, rollout
from tests.support.rollouts import groups_of

STATES = [sampled_chunks(seed) for seed in range(4)]
RANKINGS = {"interventions": {}, "deviation": {"weights": {"deviation": 1.0}}, "random": {"weights": {"random": 1.0}}}
RANKINGS |= {"success": {"weights": {"success": 1.0}, "margin": 0.0}}
WORDS = np.array([*"abcdefghijklmnopqrst"])


def write_ranked_run(run: Path) -> Path:
    """A run that ranked chunks by their deviation, with a reward model of random weights."""
    run.mkdir(exist_ok=True)
    config = {"seed": 0, "study": {"control": "interventions", "rankings": RANKINGS}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    row = {"name": "given.1.deviation.1.rank", "method": "deviation"}
    row |= {"inputs": {"candidates": "given.1.deviation.1.candidates"}}
    (run / "stages.json").write_text(json.dumps({"store": "", "nodes": [row]}))
    candidates = run / "candidates" / "given.1.deviation.1.candidates"
    write_candidates(candidates, STATES)
    rank_folder(candidates, {}, {"deviation": 1.0}, 1.0, 0, run / "pairs" / "given.1.deviation.1.rank")
    write_episodes(
        run / "episodes" / "given.1.reward.episodes", [walk(seed, success=seed % 2 == 0) for seed in range(4)]
    )
    Ensemble(ModelInfo("success", 2, 8, 8), [1, 2]).save(run / "reward_models" / "given.1.reward.success")
    return run


def write_answered_run(run: Path, unscored: bool = True) -> Path:
    """Two groups of two answers: by the stored reward the first is right; by length the second."""
    items = [make_item(0), make_item(1)]
    (run / "questions" / "given.1.questions").mkdir(parents=True)
    write_rows(run / "questions" / "given.1.questions" / "train.arrow", map(item_row, items))
    study = {"rewards": {"short": {"weights": {"short": 1.0}, "functions": {"short": "rewards.proxies:short"}}}}
    (run / "config.yaml").write_text(yaml.safe_dump({"study": study, "examine": {"pass_threshold": 0.6}}))
    answers = [("word " * 40, 1.0), ("word", 0.0), ("", None)][: 2 + unscored]
    for step, item in enumerate(items, 1):
        rows = [
            rollout(item.id, number, text, prompt=item.prompt, rewards={"answer": reward}, reward=reward)
            for number, (text, reward) in enumerate(answers)
        ]
        RolloutStore(run / "grpo" / "given.1.verifier.1.grpo").write(step, groups_of(rows))
    return run


def write_traces(folder: Path, steps: int = 5, items: int = 12, samples: int = 8, seed: int = 0) -> Path:
    """Each step asks `items` questions; the next step asks some of them again."""
    rng, store = np.random.default_rng(seed), RolloutStore(folder)
    for step in range(steps):
        names = [str(step * items * 3 // 4 + i) for i in range(items)]
        rows = [trace(name, g, k, rng) for g, name in enumerate(names) for k in range(samples)]
        store.write(step, groups_of(rows))
    return folder


def trace(item: str, group: int, sample: int, rng: np.random.Generator) -> dict[str, Any]:
    """A candidate of random words, reward and length."""
    words = list(rng.choice(WORDS, rng.integers(4, 12))) if rng.random() > 0.2 else ["the", "red", "cup"]
    reward = None if rng.random() < 0.05 else float(rng.random() < int(item) % 10 / 9)
    if reward is not None and int(item) % 3 == 0:  # graded ones
        reward = 0.1 * int(rng.integers(0, 11))
    ids = [7] * 20 if rng.random() < 0.05 else rng.integers(0, 500, 30 if rng.random() < 0.05 else len(words)).tolist()
    told = {"group": group, "tokens": ids, "finished": bool(rng.random() > 0.05), "reward": reward}
    return rollout(item, sample, " ".join(words), ["x"] * len(ids), **told)
