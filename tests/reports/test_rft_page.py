"""The section on traces of invented candidates."""

import json

import pytest

from algos.rft import RFTOptions
from rl_lab.records.rollouts import RolloutStore
from rl_lab.reports.pages.rollouts import traces_section
from rl_lab.reports.run import load_run
from rl_lab.stages.rft_selection import RFTSelection
from tests.support.questions import rollout
from tests.support.rollouts import groups_of
from tests.support.run_folders import write_jsonl


def trace(item, sample, text, reward):
    return rollout(item, sample, text, text.split(), rewards={"answer": reward}, reward=reward)


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run" / "rft" / "rft.traces"
    texts = ["the cup is left of it", "the cup is left of it", "<b>a plate</b> stands there", "no idea at all"]
    rows = [trace("point-1", i, text, float(i < 3)) for i, text in enumerate(texts)]
    RolloutStore(folder).write(1, groups_of(rows))
    summary = RFTSelection(folder, RFTOptions()).finish()
    line = {"node": "rft.traces", "step": 2, "traces/candidates": 4, "traces/kept": summary.kept}
    line |= {"traces/items": 1, "traces/items_kept": 1}
    line |= {f"why_dropped/{reason}": count for reason, count in summary.dropped.items()}
    write_jsonl(tmp_path / "run" / "metrics.jsonl", [line])
    node = {"name": "rft.traces", "kind": "traces", "method": "rft", "round": None, "status": "done", "seconds": 1.0}
    stages = {"store": "stages", "nodes": [node | {"hash": "0" * 32, "reused": False}]}
    (tmp_path / "run" / "stages.json").write_text(json.dumps(stages))
    (tmp_path / "run" / "config.yaml").write_text("name: traces\n")
    return tmp_path / "run"


def test_the_table_counts_and_the_examples_say_why(run):
    page = traces_section(load_run(run))
    assert "<td>4</td><td>2</td><td>1</td><td>1</td>" in page
    assert page.index("kept") < page.index("duplicate") < page.index("no idea at all")
    assert "&lt;b&gt;a plate" in page


def test_traces_that_cannot_be_read_leave_the_counts(run):
    for path in (run / "rft" / "rft.traces" / "rollouts").iterdir():
        path.write_bytes(b"broken")
    page = traces_section(load_run(run))
    assert "cannot be read" in page
    assert "<td>4</td>" in page


def test_a_run_without_traces_has_no_such_section(run):
    (run / "metrics.jsonl").write_text("")
    assert traces_section(load_run(run)) == ""
