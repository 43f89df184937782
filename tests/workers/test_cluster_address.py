"""A run on a Ray cluster that was there before, of two nodes on this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster as RayCluster

from rl_lab.common.errors import UserError
from rl_lab.config.placement import LearnerPlacement, Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.workers import cluster as cluster_module
from rl_lab.workers import connection
from rl_lab.workers.cluster import Cluster, cluster_nodes

ROOT = Path(__file__).parents[2]
SMALL = """
name: small
env: {backend: tabletop}
stages: [demos, sft]
demos: {episodes: 2}
sft: {steps: 2, warmup: 0, batch_size: 4, ema: 0.0, probe_weight: 0.0}
placement: {learner: {ranks: 2, cpus: 1}, simulators: {cpus: 1}, strategy: SPREAD}
workers: {simulation: 2}
wandb: disabled
"""


@pytest.fixture(scope="module")
def address():
    connection.use_token("token", "cd" * 32)
    with pytest.MonkeyPatch.context() as patch:
        size = {"num_cpus": 2, "object_store_memory": 100 << 20}
        made = RayCluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        made.add_node(**size)
        patch.setenv("RAY_ADDRESS", made.address)
        yield made.address
        made.shutdown()


def test_nodes_are_found_and_what_does_not_fit_is_refused(address):
    nodes = cluster_nodes()
    assert [node["CPU"] for node in nodes] == [2.0, 2.0] and not ray.is_initialized()
    placement = Placement(learner=LearnerPlacement(ranks=2, cpus=3))
    with pytest.raises(UserError, match="2 x .3 CPU, 0 GPU. for learner.*have: 2 CPU, 0 GPU; 2 CPU, 0 GPU"):
        Cluster(WorkersConfig(simulation=1), placement)


def test_a_machine_that_does_not_see_the_run_folder_is_named(address, tmp_path, monkeypatch):
    cluster = Cluster(WorkersConfig(simulation=1), Placement())
    try:
        cluster.check_folders([tmp_path])
        # Both nodes are on this machine's disk, so the workers are told to look elsewhere.
        reads = cluster_module._reads
        monkeypatch.setattr(cluster_module, "_reads", lambda path: reads(path.parent / "elsewhere" / path.name))
        with pytest.raises(UserError, match=rf"machine .* cannot see {tmp_path}.*disk"):
            cluster.check_folders([tmp_path])
    finally:
        cluster.close()


@pytest.mark.slow
def test_a_small_run_with_two_ranks_goes_through_on_the_cluster(address, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "rl_lab.run", str(tmp_path / "small.yaml"), "--address", address]
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [*command, "workers.rollout=0", "--run-dir", str(tmp_path / "run")],
        cwd=tmp_path,
        env=variables | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoints" / "sft" / "model.safetensors").is_file()
