"""python -m rl_lab.pool: what each command prints, on live and finished runs, and what it refuses."""

import json
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest

from algos.curriculum.items import BANDS
from rl_lab.common.errors import UserError
from rl_lab.curriculum.show import image_paths
from rl_lab.curriculum.store import PoolItem, PoolStore
from rl_lab.curriculum.view import Filter, PoolView, locate
from rl_lab.pool import main
from tests.support.pools import create, output, png, read_lines, roll_out, train, write_run


def table_rows(text):
    return [line.split() for line in text.split("\n\n")[0].splitlines()[2:]]


def test_ls_lists_items_by_their_probability_of_the_frontier(finished, capsys):
    text = output(capsys, "ls", finished, "--limit", 5)
    rows = table_rows(text)
    assert len(rows) == 5 and "5 of 40 items that match, 40 in all; step 11, weight version 11" in text
    view = PoolView(str(finished))
    best = view.items.band_probability.max()
    assert view.state(view.number(rows[0][0]))["band_probability"] == pytest.approx(float(best))


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--band", "frontier"], lambda s: s["band"] == "frontier"),
        (["--category", "planning"], lambda s: s["category"] == 3),
        (["--rate", "0.3:0.7"], lambda s: 0.3 <= s["rate"] <= 0.7),
        (["--age", ":3"], lambda s: s["age"] is not None and s["age"] <= 3),
        (["--age", "4:"], lambda s: s["age"] is not None and s["age"] >= 4),
        (["--band", "easy", "--category", "prediction"], lambda s: s["band"] == "easy" and s["category"] == 1),
        (["--state", "pinned"], lambda s: s["pinned"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_ls_filters(finished, capsys, arguments, law):
    view = PoolView(str(finished))
    shown = {row[0] for row in table_rows(output(capsys, "ls", finished, "--limit", 99, *arguments))}
    assert shown == {view.item(n)["id"] for n in range(40) if law(view.state(n))}


@pytest.mark.parametrize("sort", ["rate", "age", "groups", "selections", "frontier"])
def test_ls_sorts_both_ways(finished, sort):
    view = PoolView(str(finished))
    names = {"frontier": "band_probability"}
    values = [view.state(n)[names.get(sort, sort)] for n in view.select(Filter(sort=sort)).tolist()]
    values = [-1 if value is None else value for value in values]
    assert values == sorted(values, reverse=True)
    reverse = view.select(Filter(sort=sort, reverse=True)).tolist()
    assert (
        sorted(reverse) == list(range(40))
        and reverse[-1] == view.select(Filter(sort=sort))[0]
        or values[0] == values[1]
    )


def test_show_gives_picture_posterior_and_rollouts(finished, capsys, tmp_path):
    view = PoolView(str(finished))
    number = int(np.argmax(view.items.groups))
    item = view.item(number)["id"]
    text = output(capsys, "show", finished, item, "--images", tmp_path / "pictures", "--rollouts", 3)
    path = tmp_path / "pictures" / f"{item}-0.png"
    assert str(path) in text and path.read_bytes() == png(number)
    assert f"Question {number}: which one is nearer?" in text and "answer: " in text and "Beta(" in text
    assert text.count("weight version ") == 3 and "choice " in text and "judge " in text
    assert "</answer>" in text and f"selected {view.items.selections[number]} times" in text
    last = view.observations(number)[-1]
    assert f"{BANDS[last['band_before']]} -> {BANDS[last['band']]}" in text


def test_show_names_picture_files_that_the_items_bring_themselves(tmp_path):
    from rl_lab.curriculum.show import show
    from rl_lab.curriculum.store import PoolItem

    store = create(tmp_path, 1)
    (tmp_path / "there.png").write_bytes(png(0))
    store.add([PoolItem("mine", "planning", content={"images": ["there.png", "gone.png"], "prompt": "?"})])
    text = show(PoolView(str(tmp_path)), "mine", 1, tmp_path / "unused")
    assert f"{tmp_path / 'there.png'}\n" in text and f"{tmp_path / 'gone.png'} (missing)" in text
    assert "never observed; prior Beta(1.0, 1.0), mean 0.50" in text and not (tmp_path / "unused").exists()


def test_items_with_ids_that_are_alike_have_pictures_of_their_own(tmp_path):
    store = create(tmp_path, 1)
    store.add([PoolItem(name, "planning", content={"prompt": "?"}) for name in ("a/b", "a_b")])
    view = PoolView(str(tmp_path))
    for number, name in enumerate(("a/b", "a_b")):
        store.keep_images(view.number(name), [png(number)])
    view = PoolView(str(tmp_path))
    (slashed,), (plain,) = (image_paths(view, view.number(name), tmp_path / "out") for name in ("a/b", "a_b"))
    assert plain.name == "a_b-0.png" and slashed != plain and slashed.read_bytes() != plain.read_bytes()


def test_hist_draws_the_bands_over_time(finished, capsys):
    text = output(capsys, "hist", finished, "--lines", 6)
    lines = text.splitlines()[2:9]
    assert [line.split()[0] for line in lines] == ["0", "2", "4", "7", "9", "11", "now"]
    counts = [sum(map(int, line.split()[-5:])) for line in lines]
    assert counts == [40] * 7 and lines[0].split()[-5] == "40"
    assert "moves over the whole run: unseen -> " in text
    planning = output(capsys, "hist", finished, "--category", "planning")
    assert sum(map(int, planning.splitlines()[2].split()[-5:])) == 10


def test_why_explains_a_sampled_item_and_its_result(finished, capsys):
    view = PoolView(str(finished))
    row = next(r for r in view.rows("SELECT * FROM selections WHERE reason = 'frontier' AND step > 5"))
    text = output(capsys, "why", finished, f"{view.item(row['number'])['id']}@{row['step']}")
    assert "Known before: " in text and "Beta(" in text and "drawn by its probability" in text
    assert "its chance was " in text and "Result (step " in text


def test_why_explains_an_item_that_was_not_sampled(tmp_path, capsys):
    store = create(tmp_path, 40)
    train(store, 8)
    view = PoolView(str(tmp_path))
    taken = {row["number"] for row in view.rows("SELECT number FROM selections WHERE step = 7")}
    observed = {row["number"] for row in view.rows("SELECT number FROM observations WHERE step < 7")}
    seen = next(n for n in sorted(observed) if n not in taken)
    text = output(capsys, "why", tmp_path, f"{view.item(seen)['id']}@7")
    assert "Not sampled: " in text and "(frontier); its weight was" in text and "a chance of" in text
    first = next(n for n in range(40) if not any(r["step"] == 0 for r in view.selections(n)))
    text = output(capsys, "why", tmp_path, f"{view.item(first)['id']}@0")
    assert "it had never been observed; prior Beta(1.0, 1.0)" in text and "(unseen), each with a chance of 20 %" in text


def test_why_knows_retired_and_waiting_items(tmp_path, capsys):
    store = create(tmp_path, 40)
    batch = store.select(0, 0)
    output(capsys, "retire", tmp_path, "next_step-003")
    store.select(1, 0)
    waiting = next(item for item in batch.ids if item != "next_step-003")
    assert "its rollouts of step 0 were still out" in output(capsys, "why", tmp_path, f"{waiting}@1")
    assert "it was retired by hand at step 1" in output(capsys, "why", tmp_path, "next_step-003@1")
    assert "Result: not there yet." in output(capsys, "why", tmp_path, f"{waiting}@0")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"scheme": "uniform"}, "(uniform), each with a chance of"),
        ({"scheme": "difficulty_pools"}, "(normal), each with a chance of"),
        ({"mode": "stage"}, "come from the 40 of this probe"),
    ],
    ids=str,
)
def test_why_speaks_of_the_scheme_that_selected(tmp_path, capsys, options, text):
    store = create(tmp_path, 40, **options)
    train(store, 2)
    view = PoolView(str(tmp_path))
    free = next(n for n in range(40) if not view.selections(n))
    assert text.replace("come from", "came from") in output(capsys, "why", tmp_path, f"{view.item(free)['id']}@1")


def test_pin_and_retire_from_another_process_reach_a_live_run(tmp_path, capsys):
    store = create(tmp_path, 40)
    train(store, 2)
    command = [sys.executable, "-m", "rl_lab.pool", "pin", str(tmp_path), "counting-037", "next_step-039"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "takes effect at the run's next selection, after step 1" in done.stdout
    assert "pin: waits for the next selection" in output(capsys, "show", tmp_path, "counting-037")
    output(capsys, "retire", tmp_path, "pointing-000")
    batch = store.select(2, 2)
    assert {"counting-037", "next_step-039"} <= set(batch.ids) and "pointing-000" not in batch.ids
    roll_out(store, batch, 2)
    assert "pin: step 2" in output(capsys, "show", tmp_path, "counting-037")
    assert [r[0] for r in table_rows(output(capsys, "ls", tmp_path, "--state", "retired"))] == ["pointing-000"]
    output(capsys, "pin", tmp_path, "counting-037", "--undo")
    store.select(3, 3)
    assert not store.curriculum.items.pinned[37] and store.curriculum.items.pinned[39]


def test_export_writes_what_the_filter_leaves(finished, capsys, tmp_path):
    import pyarrow.parquet

    lines, table = tmp_path / "pool.jsonl", tmp_path / "pool.parquet"
    assert "10 items" in output(capsys, "export", finished, lines, "--category", "planning", "--sort", "id")
    output(capsys, "export", finished, table, "--category", "planning", "--sort", "id")
    rows = read_lines(lines)
    assert [row["id"] for row in rows] == [f"next_step-{n:03d}" for n in range(3, 40, 4)]
    assert rows[0]["content"]["prompt"].startswith("Question 3") and rows[0]["category"] == "planning"
    same = [row | {"content": json.loads(row["content"])} for row in pyarrow.parquet.read_table(table).to_pylist()]
    assert same == rows


def test_diff_compares_a_checkpoint_with_the_end_and_runs_with_each_other(finished, capsys, tmp_path):
    text = output(capsys, "diff", f"{finished}@4", finished)
    assert "A: " in text and "step 3, weight version 3" in text and "step 11, weight version 11" in text
    assert "40 shared items, 0 only in A, 0 only in B" in text
    matrix = text.split("band in A \\ B")[1].split("\n\n")[0].splitlines()[2:]
    assert sum(int(line.split()[-1]) for line in matrix) == 40
    train(create(tmp_path, 30, scheme="uniform"), 6)
    text = output(capsys, "diff", finished, tmp_path)
    assert "30 shared items, 10 only in A, 0 only in B" in text and "uniform" in text and "moved most" in text


def test_a_checkpoint_is_shown_like_a_run(finished, capsys):
    assert "step 3, weight version 3" in output(capsys, "ls", f"{finished}@4")
    assert output(capsys, "hist", f"{finished}@8").split("\n\n")[0].splitlines()[-2:][0].split()[0] == "7"


def test_a_run_without_a_pool_says_so_and_names_what_there_is(finished, tmp_path):
    (tmp_path / "episodes").mkdir()
    (tmp_path / "metrics.jsonl").write_text("")
    command = [sys.executable, "-m", "rl_lab.pool", "ls", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    message = f"error: {tmp_path} has no curriculum pool (pool.sqlite); it holds episodes/, metrics.jsonl\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_a_run_whose_training_has_not_begun_has_no_pool_yet(tmp_path):
    rows = [{"name": "base.examine", "kind": "examine", "status": "running"}]
    rows += [{"name": "frontier.1.grpo", "kind": "grpo", "status": "pending"}]
    (tmp_path / "stages.json").write_text(json.dumps({"nodes": rows}))
    with pytest.raises(UserError, match="no curriculum pool yet: frontier.1.grpo has not begun; ask again when it has"):
        locate(str(tmp_path))
    (tmp_path / "stages.json").write_text(json.dumps({"nodes": rows[:1]}))
    with pytest.raises(UserError, match=r"no curriculum pool \(pool.sqlite\)"):
        locate(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ls", "RUN/nowhere"], "no run folder at"),
        (["ls", "RUN@5"], r"has no checkpoint of its pool at step 5; there are: 4, 8, 12"),
        (["ls", "RUN@x"], "'x' in .* is no step"),
        (["ls", "RUN", "--category", "cooking"], "has no category 'cooking'; it has perception, prediction"),
        (
            ["ls", "RUN", "--category", "predicton"],
            r"no category 'predicton'; it has .*; did you mean prediction\?",
        ),
        (["ls", "RUN", "--band", "best"], "invalid choice: 'best'"),
        (["ls", "RUN", "--band", "fronteer"], r"invalid choice: 'fronteer' .*; did you mean frontier\? `"),
        (["ls", "RUN", "--rate", "high"], "'high' is no range; write LOW:HIGH"),
        (["ls", "RUN", "--rate", "0.9:0.1"], "is no range"),
        (["ls", "RUN", "--limit", "0"], "'0' is not allowed here; give a whole number from 1 to "),
        (["show", "RUN", "pointing-00"], "has no item 'pointing-00'; ids that begin alike: pointing-000, pointing-004"),
        (["show", "RUN", ""], "has no item ''"),
        (["why", "RUN", "pointing-000"], "is not ITEM@STEP; write for example pointing-000@12"),
        (["why", "RUN", "pointing-000@99"], "made no selection at step 99; the steps are 0 to 11"),
        (["why", "RUN", "nothing@3"], "has no item 'nothing'"),
        (["pin", "RUN", "nothing"], "has no item 'nothing'"),
        (["pin", "RUN@4", "pointing-000"], "is a checkpoint, which does not change; give the run, "),
        (["export", "RUN", "pool.csv"], "must end in .jsonl or .parquet"),
        (["export", "RUN", "RUN/config.yaml"], "exists or its folder does not"),
        (["diff", "RUN", "RUN/nowhere"], "no run folder at"),
        (["html", "RUN", "--out", "RUN/nowhere/pool.html"], "cannot write"),
        (["html", "RUN", "--out", "RUN/pool.sqlite"], "cannot write .*pool.sqlite: .* is read by the same command"),
        (["export", "RUN", "RUN/new.jsonl"], "cannot write .*new.jsonl: .* is read by the same command"),
        (["paint", "RUN"], "invalid choice: 'paint'"),
        ([], "required: COMMAND"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_line(finished, arguments, message):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file() and "sqlite-" not in path.name}
    with pytest.raises(UserError, match=message) as caught:
        main([argument.replace("RUN", str(finished)) for argument in arguments])
    assert "\n" not in str(caught.value)
    assert before == {p: p.read_bytes() for p in finished.rglob("*") if p.is_file() and "sqlite-" not in p.name}


@pytest.mark.parametrize("junk", [b"", b"not a database at all" * 100])
def test_a_file_that_is_no_pool_is_named(tmp_path, junk):
    (tmp_path / "pool.sqlite").write_bytes(junk)
    with pytest.raises(UserError, match=r"pool.sqlite cannot be read: .*; it is no pool, or not whole"):
        main(["ls", str(tmp_path)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("UPDATE meta SET value = '3' WHERE key = 'options'", "options: "),
        ("UPDATE meta SET value = '{' WHERE key = 'seed'", "seed: not JSON"),
        ("DELETE FROM items WHERE number = 3", "holds 5 records of 4 items"),
        ("UPDATE items SET category = x'41'", "category of a row is b'A'"),
        ("UPDATE items SET id = CAST(x'ff' AS TEXT) WHERE number = 0", "cannot be read: Could not decode"),
        ("DROP TABLE steps", "cannot be read: no such table: steps"),
    ],
)
def test_a_damaged_pool_is_one_line_that_names_what_is_wrong_in_it(tmp_path, change, message):
    create(tmp_path, 5).close()
    with closing(sqlite3.connect(tmp_path / "pool.sqlite", isolation_level=None)) as db:
        db.execute(change)
    with pytest.raises(UserError, match=rf"pool.sqlite.*({message})"):
        main(["ls", str(tmp_path)])


def test_readers_leave_nothing_beside_the_pool(tmp_path, capsys):
    create(tmp_path, 5).close()
    output(capsys, "ls", tmp_path), output(capsys, "hist", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "pool.sqlite"]


def test_a_pool_without_any_selection_yet_can_be_read(tmp_path, capsys):
    create(tmp_path, 5).close()
    assert "before the first selection" in output(capsys, "ls", tmp_path)
    assert "now" in output(capsys, "hist", tmp_path)
    with pytest.raises(UserError, match="nothing was selected yet"):
        main(["why", str(tmp_path), "pointing-000@0"])


def test_unreadable_rollout_files_are_said_and_do_not_hide_the_others(finished, capsys, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    view = PoolView(str(tmp_path / "run"))
    view.rollouts.path(view.now[0]).write_bytes(b"torn")
    item = view.item(int(np.argmax(view.items.groups)))["id"]
    text = output(capsys, "show", tmp_path / "run", item, "--images", tmp_path)
    assert "rollouts/step-00000011.parquet cannot be read: " in text and "</answer>" in text


def test_every_command_works_while_the_run_holds_the_pool_open(tmp_path, capsys):
    run = write_run(tmp_path / "live", steps=6)
    store = PoolStore(run / "pool.sqlite")
    batch = store.select(6, 6)
    for arguments in (["ls", run], ["hist", run], ["show", run, batch.ids[0]], ["why", run, f"{batch.ids[0]}@6"]):
        assert output(capsys, *arguments)
    (
        output(capsys, "html", run),
        output(capsys, "diff", f"{run}@4", run),
        output(capsys, "export", run, tmp_path / "a.jsonl"),
    )
    output(capsys, "pin", run, batch.ids[1]), output(capsys, "retire", run, batch.ids[0])
    roll_out(store, batch, 6)
    assert batch.ids[1] in store.select(7, 7).ids
