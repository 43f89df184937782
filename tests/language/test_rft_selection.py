"""The selection over a run's rollouts: columns, kept traces, kills at any moment, and memory that does not grow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from algos.rft import REASONS, RFTOptions, candidate, select
from rl_lab.benchmarks.processes import memory_mib
from rl_lab.records import rollouts
from rl_lab.records.rollouts import KEPT_FILE, RolloutStore
from rl_lab.stages import rft_selection
from rl_lab.stages.rft_selection import RFT_FILE, RFTSelection
from tests.support.learners import Killed
from tests.support.refusals import refusal
from tests.support.rollouts import groups_of, read_kept
from tests.support.stored_runs import trace, write_traces

OPTIONS = RFTOptions(max_per_item=2, max_tokens=24, max_likeness=0.8, shingle=2)
JUDGED = RFTOptions(max_per_item=2, max_tokens=24, max_likeness=0.8, shingle=2, min_judge_score=0.3)


def judge(rows):
    return [None if row["sample"] == 5 else len(row["completion"]) % 10 / 10 for row in rows]


def result(run):
    return RolloutStore(run).read(), list(read_kept(run))


@pytest.mark.parametrize(("options", "asked"), [(OPTIONS, None), (JUDGED, judge)])
def test_the_stream_chooses_what_the_rules_choose(tmp_path, monkeypatch, options, asked):
    monkeypatch.setattr(rft_selection, "CHUNK", 7)
    before = RolloutStore(write_traces(tmp_path)).read()
    summary = RFTSelection(tmp_path, options, asked).finish()
    rows, kept = result(tmp_path)
    assert [{name: row[name] for name in before[0]} for row in rows] == before
    by_item = {}
    for number, row in enumerate(rows):
        by_item.setdefault(row["item"], []).append(number)
    for numbers in by_item.values():
        own = [
            candidate(n, r["completion"], r["tokens"], r["finished"], r["reward"], options)
            for n, r in ((n, rows[n]) for n in numbers)
        ]
        own = [replace(one, judge_score=rows[one.key]["judge_score"]) for one in own]
        assert [rows[n]["why_dropped"] for n in numbers] == select(own, options)
    assert all(row["kept"] == (row["why_dropped"] is None) for row in rows)
    chosen = [row for row in rows if row["kept"]]
    assert kept == [{name: row[name] for name in kept[0]} for row in chosen] and len(kept) > 20
    assert summary.candidates == len(rows) == 480 and summary.kept == len(kept) and summary.items == len(by_item)
    assert summary.dropped == dict(Counter(r["why_dropped"] for r in rows if not r["kept"]))
    assert summary.items_kept == len({row["item"] for row in chosen})
    assert list(summary.dropped) == [reason for reason in REASONS if reason in summary.dropped]
    assert len(summary.dropped) > 8
    if asked:
        assert all(row["judge_score"] == judge([row])[0] for row in chosen)
        assert {"unjudged", "low_score"} <= set(summary.dropped)
    else:
        assert all(row["judge_score"] is None for row in rows)


def test_only_survivors_are_judged_once(tmp_path):
    asked = []

    def noting(rows):
        asked.extend((row["step"], row["group"], row["sample"]) for row in rows)
        return judge(rows)

    write_traces(tmp_path)
    RFTSelection(tmp_path, JUDGED, noting).finish()
    cheap = REASONS[: REASONS.index("unjudged")]
    rows = RolloutStore(tmp_path).read()
    wanted = [(r["step"], r["group"], r["sample"]) for r in rows if r["why_dropped"] not in cheap]
    assert asked == wanted


@pytest.fixture
def killed(monkeypatch):
    """Dies at the n-th moment: before or after a transaction, before or after a file gets its columns or its name."""
    moments = {"left": -1}

    def moment():
        moments["left"] -= 1
        if moments["left"] == 0:
            raise Killed

    def around(function):
        def wrapped(*args, **kwargs):
            moment()
            value = function(*args, **kwargs)
            moment()
            return value

        return wrapped

    transaction = rft_selection.transaction

    @contextmanager
    def breaking(db):
        with transaction(db):
            moment()
            yield
            moment()
        moment()

    monkeypatch.setattr(rft_selection, "transaction", breaking)
    monkeypatch.setattr(rollouts, "write_file", around(rollouts.write_file))
    monkeypatch.setattr(RolloutStore, "add_columns", around(RolloutStore.add_columns))
    monkeypatch.setattr(rft_selection, "CHUNK", 10)
    return moments


def test_killed_at_any_moment_and_resumed_equals_one_pass(tmp_path, killed):
    whole = write_traces(tmp_path / "whole", steps=2, items=8)
    expected = RFTSelection(whole, JUDGED, judge).finish()
    kills = 0
    for moment in range(1, 1000):
        run = write_traces(tmp_path / str(moment), steps=2, items=8)
        killed["left"] = moment
        try:
            summary = RFTSelection(run, JUDGED, judge).finish()
        except Killed:
            kills += 1
            summary = RFTSelection(run, JUDGED, judge).finish()
        else:
            assert kills > 40
            break
        assert summary == expected and result(run) == result(whole)
    assert moment < 999
    killed["left"] = 0
    run = write_traces(tmp_path / "often", steps=2, items=8)
    for _ in range(1000):
        killed["left"] = 9
        try:
            summary = RFTSelection(run, JUDGED, judge).finish()
        except Killed:
            continue
        break
    assert summary == expected and result(run) == result(whole)


def test_finishing_again_changes_nothing(tmp_path):
    write_traces(tmp_path)
    first = RFTSelection(tmp_path, OPTIONS).finish()
    files = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert RFTSelection(tmp_path, OPTIONS).finish() == first
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")} == files


def test_steps_that_were_not_asked_for_stay_as_they_are(tmp_path):
    store = RolloutStore(write_traces(tmp_path))
    RFTSelection(tmp_path, OPTIONS, steps=[1, 3]).finish()
    assert {row["step"] for row in store.read() if row["kept"] is not None} == {1, 3}


def test_what_cannot_work_is_one_line_and_writes_nothing(tmp_path):
    assert "there are no rollouts in" in refusal(RFTSelection, tmp_path, OPTIONS)
    write_traces(tmp_path)
    for options, asked in ((OPTIONS, judge), (JUDGED, None)):
        assert "go together" in refusal(RFTSelection, tmp_path, options, asked)
    assert "step 9 is not stored" in refusal(RFTSelection, tmp_path, OPTIONS, steps=[9])
    assert "no selected traces" in refusal(lambda: list(read_kept(tmp_path)))
    RolloutStore(tmp_path).add_columns(2, {"kept": [True] * 96})
    assert "step 2 has a column 'kept'" in refusal(RFTSelection, tmp_path, OPTIONS)
    assert not (tmp_path / RFT_FILE).exists()


def test_a_selection_is_not_taken_up_with_other_options(tmp_path):
    write_traces(tmp_path)
    RFTSelection(tmp_path, OPTIONS)
    assert "other options" in refusal(RFTSelection, tmp_path, RFTOptions())


def test_a_second_selection_of_other_steps_is_refused(tmp_path):
    write_traces(tmp_path)
    RFTSelection(tmp_path, OPTIONS, steps=[1, 3]).finish()
    told = refusal(RFTSelection, tmp_path, OPTIONS, steps=[1, 2, 4])
    assert "is a selection from 2 steps, 1 to 3, not from these 3, 1 to 4" in told


def test_kept_traces_lie_in_large_row_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(rollouts, "ROW_GROUP", 16)
    write_traces(tmp_path)
    kept = RFTSelection(tmp_path, OPTIONS).finish().kept
    file = pq.ParquetFile(tmp_path / KEPT_FILE)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == kept > 32 and len(sizes) > 1 and all(size >= 16 for size in sizes[:-1])


def test_a_judge_that_forgets_a_trace_is_an_error(tmp_path):
    write_traces(tmp_path)
    with pytest.raises(ValueError, match="the judge gave 0 scores"):
        RFTSelection(tmp_path, JUDGED, lambda rows: []).finish()


def peaks(folder, nums_steps, rows_per_step):
    """MiB in a process of its own for each number of steps, which selects from synthetic rows; with the summaries."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, __file__, str(folder), str(rows_per_step), *map(str, nums_steps)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return map(json.loads, done.stdout.splitlines())


def check_memory(tmp_path, few, many, rows_per_step=500):
    small, large = peaks(tmp_path, (few, many), rows_per_step)
    print(small, large)
    assert large["candidates"] == many * rows_per_step == large["kept"] + sum(large["dropped"].values())
    assert large["kept"] > 0.05 * large["candidates"]
    assert small["peak"] > small["before"]
    assert large["peak"] < small["peak"] + 24


LINUX = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the peak from Linux's /proc")


@LINUX
def test_memory_does_not_grow_with_the_candidates(tmp_path):
    check_memory(tmp_path, 4, 30)


@LINUX
@pytest.mark.slow
def test_memory_does_not_grow_up_to_a_hundred_thousand_candidates(tmp_path):
    check_memory(tmp_path, 10, 200)


def main(run, num_steps, rows_per_step):
    import time

    import pyarrow as pa
    import pyarrow.parquet as pq

    store, rng = RolloutStore(run), np.random.default_rng(0)
    store.write(0, groups_of([trace(str(i // 8), i // 8, i % 8, rng) for i in range(rows_per_step)]))
    table = pq.read_table(store.path(0))
    for step in range(1, num_steps):
        names = pa.array([f"{step}-{i // 8}" for i in range(rows_per_step)])
        pq.write_table(table.set_column(1, "item", names), store.path(step))
    del table
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew; getrusage would tell that of our parent
    before, start = memory_mib("VmRSS"), time.perf_counter()
    summary = RFTSelection(run, JUDGED, judge).finish()
    figures = {"peak": memory_mib("VmHWM"), "before": before, "seconds": time.perf_counter() - start}
    print(json.dumps(figures | vars(summary)), flush=True)


KILLS = 8


def begin(run):
    """A child of this process, which has imported everything, selects slowly enough to be killed at work."""
    child = os.fork()
    if child == 0:
        try:
            RFTSelection(run, JUDGED, judge).finish(lambda name, done, total: time.sleep(0.02))
        finally:
            os._exit(0)
    return child


@pytest.mark.slow
def test_killed_again_and_again_it_ends_as_an_unbroken_one(tmp_path):
    whole, run = (write_traces(tmp_path / name) for name in ("whole", "killed"))
    draw, kills = np.random.default_rng(0), 0
    for _ in range(KILLS):
        child = begin(run)
        time.sleep(draw.uniform(0.02, 0.25))
        os.kill(child, signal.SIGKILL)
        kills += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert kills >= 2, "the selection ended before it was killed; slow it down"
    assert RFTSelection(run, JUDGED, judge).finish() == RFTSelection(whole, JUDGED, judge).finish()
    assert result(run) == result(whole)


if __name__ == "__main__":
    for num_steps in map(int, sys.argv[3:]):
        if (child := os.fork()) == 0:  # each is as new: nothing of the other's is in its memory
            main(Path(sys.argv[1]) / str(num_steps), num_steps, int(sys.argv[2]))
            sys.exit()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
