"""Whole experiments, each process of them killed at random moments in every kind of stage: the bits of unbroken runs.

Run with `-m slow`; at the end the list of kill points is printed. An experiment file that is not there is skipped.
"""

import time
from pathlib import Path

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from tests.faults.comparison import differences
from tests.support.processes import KILLS, Run, choose, kill

pytestmark = pytest.mark.slow

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
RUNS: dict[str, tuple[tuple[str, ...], tuple[str, ...] | None, int]] = {
    "flowpro_smoke": (("env.backend=tabletop",), None, 8),
    "frontier_smoke": (("grpo.beta=0.05", "rl.steps=8"), None, 8),
    "self_evolving_smoke": ((), ("traces", "rft", "gate", "distill", "imitate", "join"), 4),
    "joint_smoke": (("joint.arms=[together]",), ("warm_start", "joint"), 4),
}
"""Overrides; kinds of stages (None: all), so that each is killed in one run; kill points that must be met."""
REFERENCES = {"flowpro_smoke": "flow/identical_reference", "frontier_smoke": "kl"}
"""A metric of the frozen reference, which is that of before the kill if its values are the unbroken run's."""
SEED = 0
"""Of the moments."""


@pytest.mark.parametrize("name", RUNS)
def test_a_run_killed_again_and_again_ends_with_the_bits_of_the_unbroken_one(tmp_path, name, request):
    path = EXPERIMENTS / f"{name}.yaml"
    if not path.is_file():
        pytest.skip(f"there is no {path.name}")
    overrides, kinds, least = RUNS[name]
    arguments = (str(path), *overrides, "wandb=disabled")
    began = time.monotonic()
    unbroken = Run(tmp_path / "unbroken", *arguments)
    points = choose(unbroken.watch(), np.random.default_rng(SEED), kinds)
    between = time.monotonic()
    broken = Run(tmp_path / "broken", *arguments)
    met, missed = kill(broken, points)
    broken.finish()
    seconds = f"unbroken {between - began:.0f} s, broken {time.monotonic() - between:.0f} s"
    request.config.stash.setdefault(KILLS, []).append((f"{name}: {seconds}", met, missed))
    assert list(differences(broken.folder, unbroken.folder)) == []
    assert len(met) >= least, f"too few kill points were met: {met}, missed: {missed}"
    reference = REFERENCES.get(name)
    lines = read_json_lines(broken.path / "metrics.jsonl")
    assert reference is None or any(line.get(reference) for line in lines)
