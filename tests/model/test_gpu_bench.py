"""`bench gpu`: faults of a check become rows, the table is whole after each, and its checks run on a CPU."""

import json
import os
import time

import pytest
import torch

from rl_lab.benchmarks.gpu import checks
from rl_lab.benchmarks.gpu.chunks import latency
from rl_lab.benchmarks.gpu.parity import parity
from rl_lab.benchmarks.gpu.process import rows_of
from rl_lab.benchmarks.gpu.steps import waits
from rl_lab.benchmarks.gpu.table import Row, Table, skipped

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch sees none")


def breaks(how):
    """A check that finds one thing and then fails in some way."""
    yield Row("found", 1.0)
    if how == "raises":
        raise ValueError("first line\nthe last one")
    if how == "dies":
        os._exit(7)
    time.sleep(60)


@pytest.mark.parametrize(
    ("how", "limit_s", "said"),
    [
        ("raises", 60, "failed: the last one"),
        ("dies", 60, "its process died with code 7"),
        ("sleeps", 0.2, "stopped at its limit of 0 s"),
    ],
)
def test_what_befalls_a_check_is_a_row_and_what_it_found_stays(how, limit_s, said):
    rows = list(rows_of(breaks, {"how": how}, limit_s))
    assert rows[-1] == Row("", said)
    assert rows[:-1] == ([] if how == "sleeps" else [Row("found", 1.0)])


def test_the_table_is_whole_after_every_row(tmp_path):
    table = Table(tmp_path, {"device": "cpu"})
    for row in (Row("a|b", 0.123456, "ms", "n = 3", "step: nano"), skipped("c", "needs CUDA")):
        table.add(row)
        stored = json.loads((tmp_path / "bench_gpu.json").read_text())
        assert stored["head"] == {"device": "cpu"} and stored["rows"][-1]["value"] == row.value
    assert (tmp_path / "bench_gpu.md").read_text().splitlines()[-2:] == [
        "| step: nano | a/b | 0.1235 | ms | n = 3 |",
        "|  | c | skipped: needs CUDA |  |  |",
    ]


def test_checks_that_fit_no_budget_say_so(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "RESERVE_S", 60)
    rows = checks.run(device="cpu", budget=1, checks=("waits", "resume"), folder=str(tmp_path))
    assert {row["value"] for row in rows} == {"skipped: the budget is spent"} and len(rows) == 3


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, on_a_gpu])])
def test_the_golden_sets_hold(device, precision):
    rows = list(parity(device, precision))
    assert len(rows) == 20 + 2 * (precision == "float32")
    for row in rows:
        assert "holds" in row.note if precision == "float32" else row.value < 0.02, row


@pytest.mark.gpu
@on_a_gpu
def test_the_host_waits_where_a_learner_reads_its_numbers_and_nowhere_else():
    for row in waits("cuda", "nano"):
        assert row.note.startswith(f"expected {row.value}"), row


@pytest.mark.gpu
@on_a_gpu
def test_a_graph_of_a_chunk_gives_the_bits_of_its_kernels():
    assert [row.value for row in latency("cuda", "nano") if "difference" in row.what] == [0.0]


@pytest.mark.slow
def test_every_check_runs_on_a_cpu(tmp_path):
    rows = checks.run(device="cpu", budget=60, folder=str(tmp_path))
    assert {row["check"].split(":")[0] for row in rows} == set(checks.EVERYTHING)
    assert not [row for row in rows if str(row["value"]).startswith(("failed", "stopped", "its process"))]
