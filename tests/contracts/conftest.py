"""Code of one's own that keeps no contract, and experiments of the examples."""

from pathlib import Path

import pytest

from rl_lab.stages.kinds import load_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def wrong(request, tmp_path):
    """The file of a test's WRONG classes; of test_policies it is wrong_policies.py."""
    path = tmp_path / f"{request.path.stem.replace('test_', 'wrong_')}.py"
    path.write_text(request.module.WRONG)
    return path


@pytest.fixture
def example(monkeypatch):
    """An experiment of `examples`, read from the folder in which it is to be started."""
    monkeypatch.chdir(ROOT)
    return lambda name, *overrides: load_config(ROOT / "examples" / f"{name}.yaml", overrides)
