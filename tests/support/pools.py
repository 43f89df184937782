"""A small run with a curriculum pool: items, a policy that learns, pictures and rollouts."""

import io
import json
import sqlite3
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from algos.curriculum.options import CurriculumOptions
from rl_lab.curriculum.store import POOL_FILE, PoolItem, PoolStore
from rl_lab.pool import main
from rl_lab.records.rollouts import RolloutStore
from tests.support.questions import HOSTILE, rollout
from tests.support.rollouts import groups_of

CATEGORIES = ("perception", "prediction", "interaction", "planning")
TASKS = ("pointing", "counting", "reach", "next_step")
GROUP = 4


def make_items(count):
    return [
        PoolItem(
            f"{TASKS[i % 4]}-{i:03d}",
            CATEGORIES[i % 4],
            TASKS[i % 4],
            "choice",
            {
                "prompt": f"Question {i}: which one is nearer? /think",
                "answer": "AB"[i % 2],
                "difficulty": {"objects": i % 5},
            },
        )
        for i in range(count)
    ]


def pass_rate(number, step):
    """Items get harder with their number; the policy improves with the steps."""
    return float(np.clip(1.2 - number / 25 + step / 20, 0, 1))


def png_bytes(pixels):
    """A picture as a file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def png(number):
    pixels = np.full((48, 64, 3), (number * 37 % 256, number * 91 % 256, 120), np.uint8)
    pixels[10:30, 10 + number % 30 : 25 + number % 30] = 255
    return png_bytes(pixels)


def roll_out(store, batch, step, version=None):
    """Observe a batch; the same step gives the same rewards whatever happened before."""
    rewards = np.array([np.random.default_rng((7, step, n)).random(GROUP) < pass_rate(n, step) for n in batch.numbers])
    versions = np.full(len(batch.numbers), step if version is None else version)
    return store.observe(step, batch.numbers, rewards.astype(float).reshape(-1, GROUP), versions), rewards


def create(folder, num_items=40, seed=3, **options):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "frontier", "seed": seed}))
    chosen = CurriculumOptions(**({"batch_size": 8} | options))
    return PoolStore.create(folder / POOL_FILE, chosen, seed, CATEGORIES, make_items(num_items))


def train(store, steps, start=0, checkpoint_every=None, record=None):
    """Selected ids of each step; refills once where the scheme does."""
    chosen = []
    for step in range(start, start + steps):
        batch = store.select(step, step)
        observation, rewards = roll_out(store, batch, step)
        ids = list(batch.ids)
        if record is not None:
            record(step, batch, rewards)
        places = store.curriculum.refill_places(observation)
        if places.sum():
            more = store.select(step, step, places, 1)
            roll_out(store, more, step)
            ids += more.ids
        chosen.append(ids)
        if checkpoint_every and (step + 1) % checkpoint_every == 0:
            store.checkpoint(store.path.parent / "checkpoints" / f"step-{step + 1}")
    return chosen


def make_rollouts(step, batch, rewards):
    """What each answer to a batch was; the first item's answers try to break out of a page."""
    words = ["<think>", " the", " red", " one", "</think>", "<answer>", "A", "</answer>"]
    rows = [
        rollout(
            item,
            i,
            "".join(words) + HOSTILE * int(number == 0),
            words,
            **{"group": group, "prompt": f"Question about {item}", "prompt_tokens": [1, 2], "weight_version": step},
            logprobs=(-np.random.default_rng((step, number, i)).exponential(0.7, len(words))).tolist(),
            rewards={"choice": float(reward), "judge": None if i == 0 else 0.5},
            reward=float(reward),
            advantage=float(reward - values.mean()),
        )
        for group, (number, item, values) in enumerate(zip(batch.numbers, batch.ids, rewards, strict=True))
        for i, reward in enumerate(values)
    ]
    return groups_of(rows)


def write_run(folder, steps=12, num_items=40, **options):
    """A finished run with checkpoints at steps 4, 8, 12, pictures in the pool and rollouts in Parquet."""
    store, rollouts = create(folder, num_items, **options), RolloutStore(folder)

    def record(step, batch, rewards):
        rollouts.write(step, make_rollouts(step, batch, rewards))

    train(store, steps, checkpoint_every=4, record=record)
    for number in range(num_items):
        store.keep_images(number, [png(number)])
    store.close()
    return folder


def write_nodes(run, nodes, steps=4):
    """A finished run whose pools are those of nodes: sealed, and done as stages.json says."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"name": "frontier"}))
    for node in nodes:
        folder = write_run(run / "grpo" / node, steps=steps)
        seal(folder)
    rows = [{"name": node, "kind": "grpo", "status": "done"} for node in nodes]
    (run / "stages.json").write_text(json.dumps({"store": "stages", "nodes": rows}))
    return run


def seal(folder):
    """Read-only files, as in a stored stage."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(0o444)


def output(capsys, *arguments):
    """What a command on a pool prints."""
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def read_lines(path: Path):
    return [json.loads(line) for line in path.read_text().splitlines()]


VOLATILE = {"steps": ("time",), "edits": ("time",)}
"""Columns with wall times."""


def content(path):
    """Everything in a pool but wall times, table by table."""
    db = sqlite3.connect(path)
    tables = [
        row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'")
    ]
    found = {}
    for table in tables:
        names = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        kept = [name for name in names if name not in VOLATILE.get(table, ())]
        found[table] = db.execute(f"SELECT {', '.join(kept)} FROM {table}").fetchall()
    db.close()
    return found
