"""A small valid instance of each kind of file that the lab reads, as the lab writes it."""

import contextlib
import io
import json
from pathlib import Path

import yaml

from rl_lab.records.episodes import write_episodes, write_pairs
from rl_lab.records.lerobot_write import write_lerobot
from rl_lab.records.pairs import write_pairs_layout
from rl_lab.teleoperation.session import correction_line
from tests.support.episodes import episode, pair, poses
from tests.support.experiments import SMALL, main
from tests.support.language_run_folders import build_language_run
from tests.support.models import make_policy, save_nano_language_model, save_nano_policy
from tests.support.pools import write_run as write_pool
from tests.support.robotwin_files import write_classic, write_trajectory
from tests.support.run_folders import build_run
from tests.support.stored_runs import write_answered_run, write_ranked_run, write_traces

LANGUAGE = """
name: language
stages: [questions, cold_start, grpo]
grpo: {num_generations: 4, max_completion_length: 16}
curriculum: {batch_size: 4}
rl: {steps: 6, warmup: 0}
wandb: disabled
"""
REWARD = "def reward(prompts, completions, **columns):\n    return [float(len(text) > 9) for text in completions]\n"


def policy(folder: Path) -> None:
    """A policy's checkpoint, and experiments that use it."""
    save_nano_policy(folder / "policy")
    experiments(folder)


def sharded(folder: Path) -> None:
    """The same in several files of weights."""
    policy(folder)
    (folder / "policy" / "model.safetensors").unlink()
    make_policy().save_pretrained(folder / "policy", max_shard_size="4MB")


def language_model(folder: Path) -> None:
    """A vision-language model's checkpoint, and an experiment that starts from it."""
    save_nano_language_model(folder / "vlm")
    experiments(folder)


def experiments(folder: Path) -> None:
    """Files of runs on actions, without SFT, and on language."""
    small = yaml.safe_load(SMALL)
    given = small | {"name": "given", "stages": ["demos", "evaluate", {"repeat": 1, "of": ["collect", "optimise"]}]}
    language = yaml.safe_load(LANGUAGE) | {
        "rewards": {"weights": {"mine": 1.0}, "functions": {"mine": "mine.py:reward"}}
    }
    for name, content in {"small": small, "given": given, "language": language}.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (folder / "mine.py").write_text(REWARD)


def corrections(folder: Path) -> None:
    """Recorded corrections, and pairs of another run."""
    policy(folder)
    lines = [correction_line(("handover_block", "clean", seed, 3), poses(6, seed)[1:]) for seed in range(3)]
    (folder / "corrections.jsonl").write_text("".join(lines))
    write_pairs(folder / "pairs", [pair(1, 9, 8), pair(2, 9, 8)])


def robotwin(folder: Path) -> None:
    """Demonstrations in both of RoboTwin's layouts."""
    experiments(folder)
    for number in range(2):
        write_classic(folder / "classic", number, steps=4)
        write_trajectory(folder / "trajectory", number, steps=4)


def lerobot(folder: Path) -> None:
    """Demonstrations as a LeRobotDataset."""
    experiments(folder)
    write_lerobot(folder / "set", [episode(1, steps=6), episode(2, steps=5)], 12.5)


def lab_data(folder: Path) -> None:
    """The lab's own demonstrations and pairs, and pairs in their exchange layout."""
    write_episodes(folder / "episodes", [episode(1, steps=6), episode(2, steps=5)])
    write_pairs(folder / "pairs", [pair(1, 9, 8), pair(2, 9, 8)])
    write_pairs_layout(folder / "layout", [pair(1, 9, 8), pair(2, 9, 8)], 12.5)


def questions(folder: Path) -> None:
    """A user's questions in each form."""
    import datasets

    experiments(folder)
    rows = [
        {"prompt": f"which of {n} cups? /think", "answer": "AB"[n % 2], "reward_type": "choice", "category": "planning"}
        for n in range(6)
    ]
    rows = [row | {"id": f"mine-{n}", "solution": f"<answer>{row['answer']}</answer>"} for n, row in enumerate(rows)]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "questions.parquet")
    table.save_to_disk(folder / "questions")
    turns = [{"role": "user", "content": "which?"}, {"role": "assistant", "content": "A"}]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"id": str(n), "messages": turns}) + "\n" for n in range(3)))


def resumed(folder: Path) -> None:
    """A finished run of plain functions."""
    experiments(folder)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        assert main("small.yaml", "--run-dir", "run") == 0
    content = json.loads((folder / "run" / "stages.json").read_text())
    hash_ = next(row["hash"] for row in content["nodes"] if row["name"] == "sft")
    (folder / "sft").symlink_to(Path("runs/.stages") / hash_)


def reports(folder: Path) -> None:
    """Two runs on actions."""
    build_run(folder / "run", n=4, pairs=1, pair_steps=20, videos=1, steps=20)
    build_run(folder / "other", n=4, pairs=0, videos=0, steps=20, seed=1)


def language_reports(folder: Path) -> None:
    """A run on language."""
    build_language_run(folder / "run", items=8, steps=6)


def pool(folder: Path) -> None:
    """A run with a pool, and one of traces."""
    write_pool(folder / "run", steps=4, num_items=12)
    write_traces(folder / "traces", steps=2, items=4)


def answers(folder: Path) -> None:
    """Stored answers to questions, to score again."""
    write_answered_run(folder / "run", unscored=False)
    (folder / "mine.py").write_text(REWARD)
    mine = {"rewards": {"weights": {"mine": 1.0}, "functions": {"mine": "mine.py:reward"}}}
    (folder / "mine.yaml").write_text(yaml.safe_dump(mine))


def chunks(folder: Path) -> None:
    """Ranked chunks and recorded episodes, to score again."""
    write_ranked_run(folder / "run")
