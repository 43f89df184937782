"""What a run folder shows of a stage while it runs and afterwards."""

import os
import threading
from pathlib import Path

import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.common.terminal import ProgressBars
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageContext
from rl_lab.stages.kinds import KINDS

NODE = Node("frontier.1.grpo", KINDS["grpo"], method="frontier")


@pytest.fixture
def folder(tmp_path):
    opened = RunFolder.create(tmp_path / "run", "name")
    yield opened
    opened.close()


def make_tree(path: Path, text: str) -> Path:
    (path / "rollouts").mkdir(parents=True)
    (path / "pool.sqlite").write_text(text)
    (path / "rollouts" / "step-1").write_text(text)
    (path / "metrics.jsonl").write_text("")
    return path


def test_a_running_stage_is_a_link_that_the_stored_tree_replaces(folder, tmp_path):
    live, stored = make_tree(folder.path / "work" / "1" / "out", "live"), make_tree(tmp_path / "store" / "1", "stored")
    shown = folder.path / "grpo" / NODE.name
    folder.show_live(NODE, live)
    assert shown.is_symlink() and not os.path.isabs(os.readlink(shown))
    assert (shown / "pool.sqlite").read_text() == "live"
    folder.show(NODE, stored)
    assert not shown.is_symlink() and (shown / "rollouts" / "step-1").read_text() == "stored"
    assert sorted(path.name for path in shown.iterdir()) == ["pool.sqlite", "rollouts"]
    assert (live / "pool.sqlite").read_text() == "live", "what the link pointed to is left alone"


def test_a_link_of_a_killed_run_is_replaced_and_one_into_nothing_too(folder):
    shown = folder.path / "grpo" / NODE.name
    for name in ("1", "2"):
        folder.show_live(NODE, folder.path / "work" / name)
        assert os.readlink(shown).endswith(f"work/{name}")
    stored = make_tree(folder.path.parent / "stored", "stored")
    folder.show(NODE, stored)
    assert (shown / "pool.sqlite").read_text() == "stored"


def test_a_stage_that_runs_again_replaces_the_tree_of_its_last_run(folder, tmp_path):
    stored = make_tree(tmp_path / "store" / "1", "old")
    folder.show(NODE, stored)
    folder.show_live(NODE, make_tree(folder.path / "work" / "2", "new"))
    assert (folder.path / "grpo" / NODE.name / "pool.sqlite").read_text() == "new"
    assert (stored / "pool.sqlite").read_text() == "old"


def test_only_stages_worth_watching_are_shown_live(folder):
    folder.show_live(Node("cold_start", KINDS["cold_start"]), folder.path / "work" / "1")
    assert not (folder.path / "checkpoints").exists()


def test_a_stage_that_starts_over_in_the_same_process_has_every_line_once(folder, tmp_path):
    folder.append_metrics([{"node": "other", "step": 1}])
    out = tmp_path / "out"
    out.mkdir()
    context = StageContext(
        NODE, None, {}, out, tmp_path, 0, folder, ProgressBars(), threading.Event(), lambda line: None
    )
    context.resume_from(-1)
    for step in (1, 2, 3):
        context.log(step, loss=1.0)
    context.resume_from(1)
    context.log(2, loss=2.0)
    lines = [(line["node"], line["step"], line.get("loss")) for line in read_json_lines(folder.metrics_path)]
    assert lines == [("other", 1, None), (NODE.name, 1, 1.0), (NODE.name, 2, 2.0)]
