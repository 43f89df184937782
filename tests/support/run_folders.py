"""A run folder made of invented numbers, in the formats that real stages write."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rl_lab.reports.numbers import Row
from rl_lab.reports.run import LoadedRun
from rl_lab.reports.summary import measure, written
from rl_lab.workers.films import webm

STEP_LIMIT = 180
METHODS = {"base": [0.4], "continued_sft": [0.45, 0.47], "rpro": [0.68, 0.8]}
"""Success rate of each method after each round."""
FAILURES = ["dropped", "tipped", "timeout", "off_table"]


def write_jsonl(path: Path, records: list[dict]) -> None:
    """One object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def episodes(rate: float, n: int, tasks: list[str], variants: list[str], seed: int = 0) -> list[dict]:
    """n episodes of each task and variant on seeds 2,000,000 and up; hard scenes are hard for every policy."""
    rng = np.random.default_rng(7)
    policy = np.random.default_rng(round(1000 * rate) + 31 * seed)
    rows = []
    for task in tasks:
        for variant in variants:
            for number in range(n):
                hard = rng.uniform()
                success = bool(0.6 * hard + 0.4 * policy.uniform() < rate)
                rows.append(
                    {
                        "task": task,
                        "variant": variant,
                        "seed": 2_000_000 + number,
                        "success": success,
                        "num_steps": int(policy.integers(92, 140)) if success else STEP_LIMIT,
                        "step_limit": STEP_LIMIT,
                        "stage": 3 if success else int(policy.integers(0, 3)),
                        "failure": None if success else FAILURES[int(policy.integers(0, 4) * policy.uniform())],
                        "instruction": "hand the block over",
                        "weight_version": 1,
                    }
                )
    return rows


def segment(rng: np.random.Generator, steps: int, start: np.ndarray, goal: np.ndarray, size: int) -> tuple:
    """Poses, actions and images of a smooth reach of both arms from `start` towards `goal`."""
    fraction = np.linspace(0, 1, steps + 1)[:, None]
    poses = start + (goal - start) * (3 * fraction**2 - 2 * fraction**3)
    poses[:, [2, 10]] += 0.06 * np.sin(np.pi * fraction) + rng.normal(0, 0.001, (steps + 1, 2))
    images = np.zeros((steps, 3, size, size, 3), np.uint8)
    images[:] = np.array([188, 178, 160], np.uint8)
    for step in range(steps):
        for camera in range(3):
            x = int((poses[step, 0] + 0.4) / 0.8 * size * 0.8 + 4 * camera)
            y = int((0.4 - poses[step, 1]) / 0.8 * size * 0.8)
            images[step, camera, y : y + size // 6, x : x + size // 6] = (200, 60, 50)
            images[step, camera, size // 2 :, size // 3 : size // 3 + 6] = (70, 80, 90)
    return poses, poses[1:] + 0.001, images


def write_pairs(folder: Path, n: int, size: int, steps: int) -> None:
    """n preference pairs whose winner reaches the middle and whose loser strays."""
    index = []
    for number in range(n):
        rng = np.random.default_rng(number)
        start = np.zeros(16)
        start[[3, 11]] = 1.0
        start[[0, 1, 2]] = [-0.25, -0.12 + 0.05 * rng.normal(), 0.82]
        start[[8, 9, 10]] = [0.27, -0.1, 0.84]
        goal, astray = start.copy(), start.copy()
        goal[[0, 1, 2, 8, 9, 10]] = [-0.02, 0.02, 0.93, 0.05, 0.02, 0.93]
        astray[[0, 1, 2, 8]] = [-0.1, 0.15 + 0.05 * rng.normal(), 0.78, 0.2]
        winner, loser = segment(rng, steps + 24, start, goal, size), segment(rng, steps, start, astray, size)
        arrays = {
            f"{side}_{kind}": value
            for side, parts in (("winner", winner), ("loser", loser))
            for kind, value in zip(("poses", "actions", "images"), parts, strict=True)
        }
        name = f"pair-{number:04d}"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", **arrays)
        index.append(
            {
                "id": name,
                "task": "handover_block",
                "variant": "clean",
                "seed": 1000 + number,
                "instruction": "hand the block over to the <other> arm",
                "start_step": 20 + number,
                "trigger_step": 52 + number,
                "trigger": FAILURES[number % 3],
                "rollback_steps": 18,
                "corrector": "scripted expert",
                "start_digest": f"{number:064x}",
                "weight_version": 1,
                "winner_steps": steps + 24,
                "loser_steps": steps,
            }
        )
    write_jsonl(folder / "index.jsonl", index)
    counts = {
        "episodes": 3 * n,
        "successes": n,
        "interventions": n + 3,
        "pairs": n,
        "discarded/uncorrectable_dropped": 2,
        "corrector_steps": 84 * n,
        "policy_steps": 300 * n,
    }
    (folder / "collection.json").write_text(json.dumps(counts))


def metrics(methods: dict[str, list[float]], steps: int, every: int) -> list[dict]:
    """SFT and preference curves that look like the prototype's."""
    rng = np.random.default_rng(3)
    rows = []
    for step in range(every, steps + 1, every):
        decay = float(np.exp(-4 * step / steps))
        noisy = {"loss": 0.09 + 1.1 * decay + 0.02 * rng.normal(), "flow/probe": 0.03 + 0.8 * decay}
        rows.append({"node": "sft", "method": None, "round": 0, "step": step, "time": step / 9, **noisy})
        rows[-1] |= {"grad_norm": 0.4 + decay, "lr": 1e-3 * (1 - step / (steps + 1))}
    for method in (m for m in methods if m != "base"):
        for round_ in range(1, len(methods[method]) + 1):
            for step in range(every, steps + 1, every):
                rows.append(preference_row(method, round_, step, step / steps, rng))
    rows.append({"node": "rpro.1.optimise", "method": "rpro", "round": 1, "step": steps // 2, "time": 99.0})
    rows[-1]["alarm"] = "identical-pair loss 0.081 is above the reference 0.060: collapse"
    return rows


def preference_row(method: str, round_: int, step: int, progress: float, rng: np.random.Generator) -> dict:
    """One logged step of preference optimisation; plain methods log no rewards."""
    row = {
        "node": f"{method}.{round_}.optimise",
        "method": method,
        "round": round_,
        "step": step,
        "time": 60.0 + step / 5,
    }
    winner, loser = 0.5 - 0.35 * progress + 0.02 * rng.normal(), 0.5 + 0.3 * progress + 0.02 * rng.normal()
    row |= {"loss": winner, "grad_norm": 0.9, "lr": 3e-4 * (1 - progress)}
    if method == "rpro":
        row |= {"loss": 2.6 - progress + 0.05 * rng.normal(), "loss/sft": winner}
        row |= {"flow/winner": winner, "flow/loser": loser, "flow/identical": 0.06 - 0.02 * progress}
        row |= {f"flow/{k}_reference": v for k, v in (("winner", 0.5), ("loser", 0.5), ("identical", 0.06))}
        row |= {"reward/winner": 0.5 * (0.5 - winner), "reward/loser": 0.5 * (0.5 - loser), "reward/accuracy": 0.95}
        row |= {"loss/preference": 0.69 - 0.1 * progress, "loss/proximal": 1.39 + 0.01 * progress}
        row |= {"reward/margin": 0.5 * (loser - winner), "gradient_share/sft": 0.5, "gradient_share/preference": 0.4}
        row |= {
            "gradient_share/proximal": 0.1,
            "rows/new": 0.8,
            "rows/demonstrations": 0.2,
            "capped/winner": 0.1 * progress,
            "weight_version": 1,
        }
    return row


def stage_nodes(methods: dict[str, list[float]], seed: int) -> list[dict]:
    """The graph in order; demonstrations and SFT were reused."""
    nodes = [("demos", None, 0, 30.0), ("sft", None, 0, 140.0), ("base.evaluate", "base", 0, 41.0)]
    for method in (m for m in methods if m != "base"):
        for round_ in range(1, len(methods[method]) + 1):
            kinds = [("collect", 60.0), ("optimise", 85.0), ("evaluate", 38.0)]
            nodes += [(f"{method}.{round_}.{kind}", method, round_, seconds) for kind, seconds in kinds]
    return [
        {
            "name": name,
            "kind": name.split(".")[-1],
            "method": method,
            "round": round_,
            "hash": hashlib.sha256(f"{name} {seed}".encode()).hexdigest(),
            "status": "done",
            "seconds": seconds,
            "reused": name in ("demos", "sft"),
        }
        for name, method, round_, seconds in nodes
    ]


def build_run(
    path: Path,
    *,
    n: int = 20,
    methods: dict[str, list[float]] | None = None,
    tasks: list[str] | None = None,
    variants: list[str] | None = None,
    pairs: int = 3,
    pair_steps: int = 60,
    size: int = 16,
    steps: int = 100,
    seed: int = 0,
    videos: int = 2,
) -> Path:
    """Write a complete run folder and return its path."""
    methods = methods or METHODS
    tasks, variants = tasks or ["handover_block"], variants or ["clean"]
    path.mkdir(parents=True)
    controls = [m for m in methods if m not in ("base", "rpro")]
    config = {"name": "flowpro_robotwin", "seed": seed, "method": "rpro", "controls": controls}
    config |= {"env": {"backend": "tabletop", "tasks": tasks}, "sft": {"steps": steps, "probe_weight": 1.0}}
    config |= {"objectives": {"rpro": {"beta": 1.0}}, "eval": {"episodes": n, "seeds": "held_out"}}
    (path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    stood_in = [
        {"wanted": "RoboTwin", "used": "tabletop", "why": "embedded MuJoCo tasks with RoboTwin's names"},
        {"wanted": "MoT-2B", "used": "nano", "why": "random weights before SFT <no pre-training>"},
    ]
    environment = {"commit": "0123abc", "seeds": {"training": seed}, "devices": ["cpu"], "substitutions": stood_in}
    environment |= {"versions": {"python": "3.11.2", "torch": "2.13.0", "mujoco": "4.0.0"}}
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "stages.json").write_text(json.dumps({"store": "stages", "nodes": stage_nodes(methods, seed)}))
    write_jsonl(path / "metrics.jsonl", metrics(methods, steps, max(1, steps // 50)))
    for method, rates in methods.items():
        for round_, rate in enumerate(rates, start=1):
            name = "base.evaluate" if method == "base" else f"{method}.{round_}.evaluate"
            write_jsonl(path / "episodes" / name / "results.jsonl", episodes(rate, n, tasks, variants, seed))
            if method == "rpro":
                write_pairs(path / "pairs" / f"{method}.{round_}.collect", pairs, size, pair_steps)
    if videos:
        write_videos(path / "videos" / "rescued", videos, size)
    return path


def write_videos(folder: Path, n: int, size: int) -> None:
    """Films of a square that moves."""
    folder.mkdir(parents=True)
    index = []
    for number in range(n):
        record = {"task": "handover_block", "variant": "clean", "seed": 2_000_000 + number, "before_failure": "dropped"}
        record |= {"pictures_hz": 10.0}
        record |= {"before_node": "sft", "after_node": "rpro.2.optimise"}
        for side in ("before", "after"):
            frames = []
            for step in range(8):
                frame = np.full((size, size, 3), 190, np.uint8)
                frame[step : step + size // 4, step : step + size // 4] = (200, 60, 50)
                frames.append(frame)
            record[side] = f"{number}-{side}.webm"
            (folder / record[side]).write_bytes(webm(frames, 10.0))
        index.append(record)
    write_jsonl(folder / "index.jsonl", index)


def summarise(run: LoadedRun) -> Row:
    """What `summary.json` holds of a run."""
    return written(measure(run))


def as_study(path: Path, **section: Any) -> Path:
    """Name the nodes of a run folder, METHOD.SEED.KIND and those that all share, as a study in one world does; every
    seed has its own base."""

    def named(node: str) -> str:
        method, _, rest = node.partition(".")
        seed, _, kind = rest.partition(".")
        return f"given.{seed}.{method}.1.{kind}" if seed.isdecimal() else f"given.1.{node}"

    config, graph = yaml.safe_load((path / "config.yaml").read_text()), json.loads((path / "stages.json").read_text())
    (path / "config.yaml").write_text(yaml.safe_dump(config | {"study": {"seeds": 3} | section}))
    nodes = [row | {"name": named(row["name"]), "round": row["round"] and 1} for row in graph["nodes"]]
    (path / "stages.json").write_text(json.dumps(graph | {"nodes": nodes}))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").open()]
    write_jsonl(path / "metrics.jsonl", [line | {"node": named(line["node"]), "round": 1} for line in lines])
    for folder in [folder for folder in path.glob("*/*") if folder.is_dir() and folder.parent.name != "videos"]:
        folder.rename(folder.with_name(named(folder.name)))
    for base in path.glob("*/given.1.base.*"):
        for seed in (2, 3):
            shutil.copytree(base, base.with_name(base.name.replace(".1.", f".{seed}.", 1)))
    return path
