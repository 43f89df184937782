"""`pool show` and `pool html` say which rollouts a selection for fine-tuning kept, and nothing where there was none."""

import html
import re

from rl_lab.pool import main
from rl_lab.records.rollouts import RolloutStore, selection_text
from tests.support.pools import write_run


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
