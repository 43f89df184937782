"""One nano model and one engine for all tests; nothing here needs vLLM before a test asks for the engine."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rl_lab.workers.engine import EngineOptions, RolloutEngine
from tests.support.models import VLM, make_vlm, save_vlm

ENGINE = EngineOptions(
    dtype="float32", max_model_len=512, max_num_seqs=16, max_num_batched_tokens=512, kv_cache_gib=0.25
)


@pytest.fixture(scope="session")
def vlm() -> VLM:
    return make_vlm()


@pytest.fixture(scope="session")
def folder(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vlm(vlm, tmp_path_factory.mktemp("vlm"))


class Engines:
    """The engine asked for last. There can be one in a process: another one's end takes vLLM's process groups along."""

    def __init__(self) -> None:
        self._held: tuple[object, RolloutEngine] | None = None

    def get(self, folder: Path, **changes: Any) -> RolloutEngine:
        """An engine with this checkpoint and the settings of `ENGINE`, but for the changes."""
        pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")
        key = folder, tuple(changes.items())
        if self._held is None or self._held[0] != key:
            self._held = None
            gc.collect()
            self._held = key, RolloutEngine(folder, replace(ENGINE, **changes))
        return self._held[1]


@pytest.fixture(scope="session")
def engines() -> Engines:
    return Engines()


@pytest.fixture
def engine(engines: Engines, folder: Path) -> RolloutEngine:
    return engines.get(folder)
