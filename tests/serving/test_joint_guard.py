"""The guard in a real run: RPRO at a rate that destroys what both skills read is caught, a gentle one left alone."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    *("wandb=disabled", "stages=[demos, questions, warm_start, joint]", "joint.arms=[together]"),
    *("questions.tasks=[final_place]", "questions.cold_start=600", "questions.development=40", "examine.max_tokens=16"),
    *("cold_start.steps=300", "cold_start.batch_size=16", "grpo.max_completion_length=16", "rl.steps=3"),
    *("optimise.steps=4", "joint.block=2", "joint.exam_every=3", "joint.guard.allowed=0.03"),
    *("joint.guard.actions=[roll_back]", "joint.guard.lower_by=0.001", "checkpoint_every=50"),
)
HARMFUL, GENTLE = 0.05, 1e-6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A working directory, whose store both runs share: they begin with one warm start."""
    return tmp_path_factory.mktemp("guarded")


def run(folder: Path, rate: float) -> tuple[list[dict], list[float], str]:
    """Events of the guard, reward on the development questions over time, and what was said."""
    command = [sys.executable, "-m", "rl_lab.run", str(ROOT / "experiments" / "joint_smoke.yaml"), *SETTINGS]
    command += [f"optimise.lr={rate}", "--run-dir", f"run-{rate}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    out = folder / f"run-{rate}" / "joint" / "together.joint"
    language = [np.mean(exam["scores"]["language"]) for exam in read_json_lines(out / "exams.jsonl")]
    return read_json_lines(out / "guard.jsonl", missing_ok=True), language, done.stderr


def test_a_destructive_rate_is_blamed_rolled_back_and_told(folder):
    events, language, said = run(folder, HARMFUL)
    assert language[0] > 0.08, "the warm start has something to lose"
    (event, *_) = [event for event in events if event["skill"] == "language"]
    assert (event["objective"], event["action"]) == ("rpro", "roll_back") and event["bound"] < -0.03
    assert event["given_back"] >= 0.5 * -event["difference"]
    assert language[1] < language[0] - 0.05 and language[-1] > language[1] + 0.05, language
    assert event["text"] in said


def test_a_gentle_rate_is_left_alone(folder):
    events, language, _ = run(folder, GENTLE)
    assert events == [] and abs(language[-1] - language[0]) < 0.1
