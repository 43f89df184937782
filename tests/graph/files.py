"""A small experiment file for tests."""

from pathlib import Path

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
RUNS = sorted(path for path in EXPERIMENTS.glob("*.yaml") if not path.stem.startswith("eval_"))
"""Experiments for `rl_lab.run`."""

SMALL = """
name: small
stages: [demos, sft, evaluate, {repeat: 2, of: [collect, optimise, evaluate]}]
sft: {steps: 10, warmup: 2}
optimise: {steps: 10, warmup: 2}
wandb: disabled
"""


def write_small(folder: Path, extra: str = "") -> Path:
    """The small experiment, with further lines of YAML, in a folder."""
    path = folder / "small.yaml"
    path.write_text(SMALL + extra)
    return path
