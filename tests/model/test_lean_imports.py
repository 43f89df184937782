"""Models, learner and benchmarks of them import where only torch, transformers and what those need are installed."""

import subprocess
import sys

ABSENT = (
    "ray",
    "vllm",
    "mujoco",
    "gymnasium",
    "wandb",
    "trl",
    "peft",
    "PIL",
    "scipy",
    "pyarrow",
    "datasets",
    "accelerate",
)
NEEDED = (
    "rl_lab.bench",
    "rl_lab.benchmarks.model",
    "rl_lab.learner.learner",
    "rl_lab.learner.memory_plan",
    "rl_lab.model.lora",
)


def test_models_and_learner_import_without_simulators_engines_and_trackers() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({ABSENT})); import {', '.join(NEEDED)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
