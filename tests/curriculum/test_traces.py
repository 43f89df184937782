"""What the pool commands say of traces sampled for fine-tuning and of the rollouts that a selection kept."""

import html
import re

import pytest

from algos.rft import RFTOptions
from rl_lab.common.errors import UserError
from rl_lab.pool import main
from rl_lab.records.rollouts import RolloutStore, selection_text
from rl_lab.stages.rft_selection import RFTSelection
from tests.support.pools import write_run

OPTIONS = RFTOptions(min_judge_score=0.5, max_likeness=1.0, high=None, min_reward=0.0)


@pytest.fixture
def node(tmp_path):
    """The traces of a node: rollouts as a run stores them, and no pool."""
    folder = tmp_path / "run" / "rft" / "rft.traces"
    folder.mkdir(parents=True)
    source = write_run(tmp_path / "source", steps=3, num_items=8)
    (source / "rollouts").rename(folder / "rollouts")
    return folder


def test_traces_are_shown_while_they_are_sampled_and_after(node, capsys):
    row = RolloutStore(node).read()[0]
    main(["show", str(node), row["item"]])
    text = capsys.readouterr().out
    assert "not chosen from yet" in text and row["completion"] in text
    RFTSelection(node, OPTIONS, lambda rows: [0.9 if row["sample"] else 0.1 for row in rows]).finish()
    main(["show", str(node.parents[1]), row["item"], "--rollouts", "99"])  # the run has no other traces
    text = capsys.readouterr().out
    stored = RolloutStore(node).read(items=[row["item"]])
    assert text.count("kept for fine-tuning, judge score 0.9") == sum(one["kept"] for one in stored)
    main(["why", str(node), f"{row['item']}@{row['step']}"])
    lines = capsys.readouterr().out.splitlines()
    asked = [one for one in stored if one["step"] == row["step"]]
    assert len(lines) == len(asked)
    for line, one in zip(lines, asked, strict=True):
        assert ("kept" in line) == one["kept"]
    assert any("low score, judge score 0.1: its judge score is below" in line for line in lines)


def test_what_is_not_there_is_one_line(node):
    with pytest.raises(UserError, match="has no trace of 'nobody'; an item there is"):
        main(["show", str(node), "nobody"])
    row = RolloutStore(node).read()[0]
    with pytest.raises(UserError, match="was not asked in step 99 but in"):
        main(["why", str(node), f"{row['item']}@99"])
    other = node.with_name("other.traces")
    other.mkdir()
    (other / "rollouts").symlink_to(node / "rollouts")
    with pytest.raises(UserError, match="holds traces of 2 nodes; give one of"):
        main(["show", str(node.parents[1]), row["item"]])


def selected(folder, step):
    store = RolloutStore(folder)
    count = len(store.read(steps=[step]))
    store.add_columns(
        step,
        {
            "judge_score": [0.75] + [None] * (count - 1),
            "kept": [True] + [False] * (count - 1),
            "why_dropped": [None] + ["near_duplicate"] * (count - 1),
        },
    )
    return store.read(steps=[step])


def test_show_says_what_became_of_a_rollout(tmp_path, capsys):
    folder = write_run(tmp_path, steps=3)
    (first, *_) = RolloutStore(folder).read(steps=[2])
    command = ["show", str(folder), first["item"], "--images", str(tmp_path / "pictures"), "--rollouts", "4"]
    main(command)
    before = capsys.readouterr().out
    assert "kept" not in before and "dropped" not in before and "judge score" not in before
    selected(folder, 2)
    main(command)
    text = capsys.readouterr().out
    assert "; kept for fine-tuning, judge score 0.75\n" in text
    assert text.count("; dropped: near duplicate\n") == 3
    assert (
        text.replace("; kept for fine-tuning, judge score 0.75", "").replace("; dropped: near duplicate", "") == before
    )


def test_the_page_carries_it_with_each_rollout(tmp_path):
    folder = write_run(tmp_path / "run", steps=3, num_items=8)
    rows = selected(folder, 2)
    path = tmp_path / "page.html"
    main(["html", str(folder), "--out", str(path), "--rollouts", "4"])
    found = re.findall(r'"selection": ?"([^"]*)"', html.unescape(path.read_text()))
    assert found.count("kept for fine-tuning, judge score 0.75") == 1
    assert 3 <= found.count("dropped: near duplicate") < len(rows)
    assert set(found) <= {"", "kept for fine-tuning, judge score 0.75", "dropped: near duplicate"}


def test_without_a_selection_there_is_nothing_to_say():
    assert selection_text({}) == "" == selection_text({"kept": None, "judge_score": None, "why_dropped": None})
    assert selection_text({"kept": True}) == "kept for fine-tuning"
