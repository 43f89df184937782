"""The pool on disk: exact on resume, readable while a run writes, edits from other processes."""

import subprocess
import sys

import numpy as np
import pytest

from algos.curriculum.items import RECORD
from algos.curriculum.options import CurriculumOptions
from rl_lab.common.errors import UserError
from rl_lab.curriculum.edits import give_edits
from rl_lab.curriculum.store import CHUNK, POOL_FILE, PoolItem, PoolStore, connect
from rl_lab.curriculum.view import PoolView
from tests.support.pools import CATEGORIES, content, create, make_items, png, roll_out, train


def give(path, action, *numbers):
    db = connect(path)
    give_edits(db, action, numbers)
    db.close()


def test_a_row_of_records_fits_in_one_page():
    assert CHUNK * RECORD.itemsize < 4096 - 35 - 10


@pytest.mark.parametrize("num_items", [1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_what_is_in_memory_is_on_disk_after_every_step(tmp_path, num_items):
    store = create(tmp_path, num_items, batch_size=1)
    train(store, 5)
    reopened = PoolStore(store.path)
    everything = np.arange(num_items)
    assert (
        reopened.curriculum.items.records(everything).tobytes() == store.curriculum.items.records(everything).tobytes()
    )
    assert np.array_equal(reopened.curriculum.band_counts, store.curriculum.band_counts)


@pytest.mark.parametrize(
    "options",
    [{}, {"scheme": "dynamic"}, {"mode": "stage", "stage_candidates": 24, "stage_size": 12, "stage_epochs": 2}],
    ids=str,
)
def test_a_run_resumed_from_a_checkpoint_repeats_the_unbroken_one_bit_for_bit(tmp_path, options):
    unbroken = create(tmp_path / "a", **options)
    expected = train(unbroken, 12)
    broken = create(tmp_path / "b", **options)
    train(broken, 9, checkpoint_every=6)
    broken.select(9, 9)  # killed here: selected, nothing came back
    broken.close()
    resumed = PoolStore.restore(tmp_path / "b" / "checkpoints" / "step-6", broken.path, print)
    assert train(resumed, 6, start=6) == expected[6:]
    unbroken.close(), resumed.close()
    assert content(tmp_path / "a" / POOL_FILE) == content(tmp_path / "b" / POOL_FILE)


def test_a_killed_writer_leaves_the_pool_between_two_transactions(tmp_path):
    create(tmp_path).close()
    code = (
        "import os, sys; from pathlib import Path; from rl_lab.curriculum.store import PoolStore\n"
        "from tests.support.pools import train\n"
        "store = PoolStore(Path(sys.argv[1])); train(store, 3); store.select(3, 3)\n"
        "store._db.execute('BEGIN'); store._db.execute('DELETE FROM observations'); os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path / POOL_FILE)], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    store = PoolStore(tmp_path / POOL_FILE)
    assert store.curriculum.items.pending.sum() == 8 and store.curriculum.items.groups.sum() >= 24
    observations = store._db.execute("SELECT COUNT(*) FROM observations").fetchone()[0]
    assert observations == store.curriculum.items.groups.sum()


def test_a_checkpoint_is_the_state_of_its_step_and_readable_without_write_access(tmp_path):
    store = create(tmp_path)
    train(store, 6, checkpoint_every=3)
    folder = tmp_path / "checkpoints" / "step-3"
    (folder / POOL_FILE).chmod(0o444)
    folder.chmod(0o555)
    try:
        view = PoolView(f"{tmp_path}@3")
        assert view.now == (2, 2) and view.place.path == folder / POOL_FILE
        assert view.items.groups.sum() < store.curriculum.items.groups.sum()
        assert [p.name for p in folder.iterdir()] == [POOL_FILE]
    finally:
        folder.chmod(0o755)


def test_readers_see_whole_steps_while_the_run_writes_and_block_it_never(tmp_path):
    store = create(tmp_path)
    train(store, 2)
    before = PoolView(str(tmp_path))
    assert before.now[0] == 1
    train(store, 3, start=2)
    assert len(before.steps()) == 2 and before.items.groups.sum() == len(before.rows("SELECT 1 FROM observations"))
    after = PoolView(str(tmp_path))
    assert after.now[0] == 4 and after.items.groups.sum() == len(after.rows("SELECT 1 FROM observations"))


def test_edits_of_another_process_take_effect_at_the_next_selection_and_are_logged(tmp_path):
    store = create(tmp_path)
    train(store, 2)
    give(store.path, "pin", 39)
    give(store.path, "retire", 0, 1)
    batch = store.select(2, 2)
    assert "next_step-039" in batch.ids and {"pointing-000", "counting-001"}.isdisjoint(batch.ids)
    assert [(edit.action, edit.number) for edit in batch.edits] == [("pin", 39), ("retire", 0), ("retire", 1)]
    assert [row["applied_step"] for row in PoolView(str(tmp_path)).edits()] == [2, 2, 2]
    roll_out(store, batch, 2)
    give(store.path, "restore", 0)
    give(store.path, "unpin", 39)
    assert store.select(3, 3).edits[0].action == "restore"
    assert not store.curriculum.items.retired[0] and store.curriculum.items.retired[1]


def test_a_resumed_run_applies_an_edit_at_the_step_where_the_unbroken_run_did(tmp_path):
    def run(store, steps, start, edit_before=None):
        chosen = []
        for step in range(start, start + steps):
            if step == edit_before:
                give(store.path, "pin", 37)
                give(store.path, "retire", 3)
            chosen += train(store, 1, start=step)
        return chosen

    unbroken = create(tmp_path / "a")
    expected = run(unbroken, 10, 0, edit_before=7)
    broken = create(tmp_path / "b")
    run(broken, 4, 0)
    broken.checkpoint(tmp_path / "saved")
    run(broken, 4, 4, edit_before=7)
    broken.close()
    resumed = PoolStore.restore(tmp_path / "saved", broken.path, print)
    assert run(resumed, 6, 4) == expected[4:] and all("counting-037" in ids for ids in expected[7:])
    unbroken.close(), resumed.close()
    first, second = content(tmp_path / "a" / POOL_FILE), content(tmp_path / "b" / POOL_FILE)
    assert [row[-1] for row in first.pop("edits")] == [row[-1] for row in second.pop("edits")] == [7, 7]
    assert first == second


def test_an_edit_keeps_its_step_when_a_run_is_killed_again_before_it_comes_there(tmp_path):
    store = create(tmp_path)
    train(store, 4, checkpoint_every=4)
    train(store, 2, start=4)
    give(store.path, "pin", 37)
    train(store, 2, start=6)
    store.close()
    for steps_before_the_next_kill in (1, 0):
        store = PoolStore.restore(tmp_path / "checkpoints" / "step-4", store.path, print)
        train(store, steps_before_the_next_kill, start=4)
        store.close()
    resumed = PoolStore.restore(tmp_path / "checkpoints" / "step-4", store.path, print)
    assert [len(resumed.select(step, step).edits) for step in (4, 5, 6)] == [0, 0, 1]


def test_an_edit_given_after_a_resumption_takes_effect_at_once(tmp_path):
    store = create(tmp_path)
    train(store, 4, checkpoint_every=4)
    give(store.path, "pin", 37)
    train(store, 2, start=4)
    store.close()
    resumed = PoolStore.restore(tmp_path / "checkpoints" / "step-4", store.path, print)
    give(resumed.path, "retire", 37)
    assert [edit.action for edit in resumed.select(4, 4).edits] == ["pin", "retire"]


def test_an_edit_that_was_never_applied_survives_the_resumption(tmp_path):
    store = create(tmp_path)
    train(store, 3, checkpoint_every=3)
    give(store.path, "pin", 11)
    store.close()
    resumed = PoolStore.restore(tmp_path / "checkpoints" / "step-3", store.path, print)
    assert "next_step-011" in resumed.select(3, 3).ids


def test_every_selected_item_has_a_reason_and_history_grows_by_what_was_selected(tmp_path):
    store = create(tmp_path, 200)
    chosen = train(store, 10)
    view = PoolView(str(tmp_path))
    assert len(view.rows("SELECT * FROM selections")) == sum(len(ids) for ids in chosen)
    assert all(row["reason"] and 0 < row["chance"] <= 1 for row in view.rows("SELECT * FROM selections"))
    assert len(view.rows("SELECT * FROM steps")) <= 20


def test_items_may_join_a_running_pool(tmp_path):
    store = create(tmp_path, 10)
    train(store, 2)
    store.add([PoolItem("new-1", "planning"), PoolItem("new-2", "planning", content={"prompt": "?"})])
    assert store.ids(np.array([10, 11])) == ["new-1", "new-2"]
    assert PoolView(str(tmp_path)).item(11)["content"] == {"prompt": "?"}
    assert len(PoolStore(store.path)) == 12
    with pytest.raises(UserError, match="repeats an id"):
        store.add([PoolItem("new-1", "planning")])
    assert len(store) == 12 and len(PoolStore(store.path)) == 12


def test_a_pool_is_created_whole_or_not_at_all(tmp_path):
    path, options = tmp_path / POOL_FILE, CurriculumOptions(batch_size=2)
    with pytest.raises(UserError, match="item b has category 'cooking'; use perception"):
        PoolStore.create(path, options, 0, CATEGORIES, [PoolItem("a", "planning"), PoolItem("b", "cooking")])
    with pytest.raises(UserError, match="item 1 of the pool repeats an id"):
        PoolStore.create(path, options, 0, CATEGORIES, [PoolItem("a", "planning"), PoolItem("a", "planning")])
    assert not path.exists()
    PoolStore.create(path, options, 0, CATEGORIES, make_items(4)).close()
    with pytest.raises(UserError, match="exists; open it"):
        PoolStore.create(path, options, 0, CATEGORIES, make_items(4))
    with pytest.raises(UserError, match=r"pool.sqlite is missing"):
        PoolStore(tmp_path / "nowhere" / POOL_FILE)
    with pytest.raises(UserError, match="resume from a checkpoint that holds the pool"):
        PoolStore.restore(tmp_path / "nowhere", path, print)


def test_refused_rewards_leave_memory_and_file_alone(tmp_path):
    store = create(tmp_path)
    batch = store.select(0, 0)
    with pytest.raises(ValueError, match="a reward is 2.0"):
        store.observe(0, batch.numbers, np.full((8, 4), 2.0), np.zeros(8))
    roll_out(store, batch, 0)
    assert PoolStore(store.path).curriculum.items.groups.sum() == 8


def test_pictures_are_kept_once_and_released_items_come_back(tmp_path):
    store = create(tmp_path, 8)
    store.keep_images(2, [png(2), png(3)])
    store.keep_images(2, [png(5)])
    assert PoolView(str(tmp_path)).images(2) == [png(2), png(3)]
    batch = store.select(0, 0)
    store.release(batch.numbers)
    assert sorted(store.select(1, 0).ids) == sorted(batch.ids)
    assert PoolStore(store.path).curriculum.items.pending.all()


def test_items_of_one_task_and_level_share_a_cell_also_when_they_come_later(tmp_path):
    store = create(tmp_path, num_items=40)
    cells = store.curriculum.items.cell
    assert len(set(cells.tolist())) == 20, "four tasks at five levels"
    assert all(cells[number] == cells[number + 20] for number in range(20))
    store.close()
    again = PoolStore(tmp_path / POOL_FILE)
    again.add([PoolItem("late", "planning", "next_step", "choice", {"difficulty": {"objects": 3}})])
    again.add([PoolItem("new", "planning", "next_step", "choice", {"difficulty": {"objects": 9}})])
    assert again.curriculum.items.cell[-2:].tolist() == [int(cells[3]), 20]
    again.close()
    assert PoolStore(tmp_path / POOL_FILE).curriculum.items.cell[-2:].tolist() == [int(cells[3]), 20]


def test_a_pool_of_an_older_run_is_refused_by_its_format(tmp_path):
    store = create(tmp_path)
    store._db.execute("UPDATE meta SET value = '2' WHERE key = 'format'")
    store.close()
    for reads in (lambda: PoolStore(tmp_path / POOL_FILE), lambda: PoolView(str(tmp_path))):
        with pytest.raises(UserError, match="has format 2, this version reads 3"):
            reads()
