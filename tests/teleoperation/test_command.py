"""`python -m rl_lab.correct`: its page, its episodes and its errors."""

from __future__ import annotations

import itertools
import json
import threading
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch

from algos.chunks import Timing
from envs.correctors import Corrector
from envs.rollback import RollbackConfig, intervened_rollout
from envs.rollout import run_lockstep
from rl_lab.action.batching import fit_processor
from rl_lab.action.collection import collection_units, round_name
from rl_lab.config.load import load_config
from rl_lab.correct import failed_episodes, main
from rl_lab.errors import UserError
from rl_lab.learning.checkpoint import CheckpointInfo, save_policy
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.presets import preset_config
from rl_lab.teleoperation.server import PageServer
from rl_lab.workers.environments import Environments
from rl_lab.workers.policy import LocalPolicy
from tests.records import episode


class Keys:
    """A session that only listens."""

    def __init__(self):
        self.pressed: list[str] = []

    def press(self, key):
        self.pressed.append(key)
        return self.status()

    def status(self):
        return {"over": False, "kept": len(self.pressed)}

    def picture(self):
        return b"PNG"


@pytest.fixture
def page():
    """A served session, and how to ask it."""
    keys = Keys()
    with PageServer(keys, 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def ask(path, body=None, kind="application/json"):
            request = Request(server.address + path, body, {"Content-Type": kind} if body is not None else {})
            with urlopen(request, timeout=10) as answer:
                return answer.read()

        yield keys, ask
        server.shutdown()
        thread.join()


def test_the_page_presses_keys_and_shows_the_scene(page):
    keys, ask = page
    assert b"Corrections" in ask("/") and ask("/picture?1") == b"PNG"
    assert json.loads(ask("/press", b"{}")) == {"over": False, "kept": 0}
    assert json.loads(ask("/press", b'{"key": "w"}'))["kept"] == 1 and keys.pressed == ["w"]
    for path, body, kind in (
        ("/other", None, ""),
        ("/press", b'{"key": "w"}', "text/plain"),
        ("/press", b"[", "application/json"),
    ):
        with pytest.raises(HTTPError):
            ask(path, body, kind)
    assert keys.pressed == ["w"], "a page of another site cannot press keys"


EXPERIMENT = """
name: corrections
seed: 0
env: {backend: tabletop, tasks: [handover_block]}
stages: [demos, sft, {repeat: 1, of: [collect, optimise, evaluate]}]
collect: {pairs: 5, max_episodes: 10}
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A policy with random weights, which always fails, and an experiment."""
    folder = tmp_path_factory.mktemp("correct")
    torch.manual_seed(0)
    policy = HyVLAPolicy(preset_config("nano"))
    processor = fit_processor(policy.config, [episode(0)], Timing(policy.chunk_size))
    save_policy(folder / "policy", policy, processor, CheckpointInfo(weight_version=1, steps=0))
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    return folder


def test_its_failures_are_those_of_the_round_bit_for_bit(given):
    config = load_config(given / "experiment.yaml", [])
    first = list(itertools.islice(failed_episodes(given / "policy", config, set()), 3))
    ((_, (unit,)),) = collection_units(config, round_name(1), config.seed)
    policy = LocalPolicy(given / "policy", seed=config.seed)
    rollback = RollbackConfig(**config.collect.rollback())
    seen = {}

    def stand_still(env, seed, before):
        seen[seed] = env.save()
        yield from ()

    watching = Corrector("watching", stand_still)
    envs = Environments().of(unit.env, len(unit.seeds))
    draw = np.random.default_rng(0)
    run_lockstep(
        [
            intervened_rollout(env, seed, corrector=watching, config=rollback, generator=draw)
            for env, seed in zip(envs, unit.seeds, strict=True)
        ],
        policy.act,
    )
    assert [failed.seed for failed in first] == list(unit.seeds[:3])
    for failed in first:
        assert seen[failed.seed] in failed.trace.snapshots
    done = {failed.episode for failed in first[:2]}
    (third,) = itertools.islice(failed_episodes(given / "policy", config, done), 1)
    assert third.seed == unit.seeds[2], "what is corrected is not asked for again"


def test_bad_input_is_one_line(given, tmp_path):
    experiment, policy = str(given / "experiment.yaml"), str(given / "policy")
    with pytest.raises(UserError, match=r"CKPT: .* is no checkpoint folder: config.json is missing"):
        main([str(tmp_path), experiment, "--out", str(tmp_path / "c.jsonl")])
    with pytest.raises(UserError, match="its folder does not exist; give a file in an existing folder"):
        main([policy, experiment, "--out", str(tmp_path / "no" / "c.jsonl")])
    with pytest.raises(UserError, match="port 99999 cannot be used: .*; give another --port, or 0"):
        main([policy, experiment, "--out", str(tmp_path / "c.jsonl"), "--port", "99999"])
