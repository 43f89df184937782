"""One nano model and one engine for all tests; nothing here needs vLLM before a test asks for the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl_lab.workers.rollout import RolloutEngine
from tests.serving.builders import VLM, make_vlm, save_vlm

ENGINE = {
    "dtype": "float32",
    "max_model_len": 512,
    "max_num_seqs": 16,
    "max_num_batched_tokens": 512,
    "kv_cache_gib": 0.25,
}


@pytest.fixture(scope="session")
def vlm() -> VLM:
    return make_vlm()


@pytest.fixture(scope="session")
def folder(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(vlm, tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="session")
def engine(folder: Path) -> RolloutEngine:
    pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
    return RolloutEngine(folder, **ENGINE)
