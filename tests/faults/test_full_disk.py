"""Disks that are full, or read-only: one line that says what, where and how to mend it; then on to the same bits."""

import errno
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ray.exceptions import RayTaskError

from rl_lab.common.errors import DiskError, disk_error
from rl_lab.common.errors import run_command as exit_with
from rl_lab.common.files import write_file, write_folder
from rl_lab.curriculum.store import PoolStore
from rl_lab.graph import stage
from rl_lab.learner.state import SavedStates
from rl_lab.model.checkpoint import load_language_model, save_training_state
from rl_lab.records import rollouts
from rl_lab.records.rollouts import RolloutStore
from rl_lab.training import state as grpo_state
from tests.faults.disks import fill, free, protect, remount, small_disk, unprotect
from tests.support.experiments import FakeStages, main, write_small
from tests.support.stage_runs import FakeRun

MOMENTS: dict[str, tuple[Any, str]] = {
    "a selection": (PoolStore, "select"),
    "an observation": (PoolStore, "observe"),
    "pictures of items": (PoolStore, "keep_images"),
    "rollouts": (rollouts, "write_file"),
    "a line of metrics": (stage, "append_json_line"),
    "a saved state": (SavedStates, "save"),
    "the pool's copy": (PoolStore, "checkpoint"),
    "counts of a state": (grpo_state, "write_whole"),
    "the end of the pool": (PoolStore, "seal"),
}
"""What is being written when the disk turns out full."""


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "24m") as folder:
        yield folder


def fills_before(disk: Path, function: Callable, calls: int) -> Callable:
    """The same function, on a disk that is full from its call number `calls` on."""
    left = [calls]

    def filled(*arguments, **named):
        left[0] -= 1
        if left[0] == 0:
            fill(disk)
        return function(*arguments, **named)

    return filled


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_that_fills_its_disk_says_so_and_resumes_to_the_same_bits(
    disk, tmp_path, questions, policy, monkeypatch, moment
):
    unbroken = FakeRun(tmp_path / "unbroken", questions, policy, "rl.staleness=1").start().outcome()
    run = FakeRun(disk / "run", questions, policy, "rl.staleness=1")
    with monkeypatch.context() as patch:
        owner, name = MOMENTS[moment]
        calls = {"the end of the pool": 1, "a saved state": 3, "the pool's copy": 3, "counts of a state": 3}
        patch.setattr(owner, name, fills_before(disk, getattr(owner, name), calls.get(moment, 5)))
        with pytest.raises(Exception) as failure:  # noqa: PT011 - whatever it is, it must be known as a full disk
            run.start()
    error = disk_error(failure.value, "run")
    assert error is not None and error.exit_code == 1, repr(failure.value)
    assert "no space is left on the disk; free some" in str(error) and "\n" not in str(error)
    assert not list(run.path.rglob("*.partial")), "what was not finished keeps no space"
    free(disk)
    assert run.start().outcome() == unbroken


def command(*arguments: str, stages: FakeStages | None = None) -> int:
    """The exit code of `python -m rl_lab.run` with plain functions as stages."""
    with pytest.raises(SystemExit) as ended:
        exit_with(lambda: main(*arguments, stages=stages))
    return ended.value.code


def only_error(text: str) -> str:
    """The one line of an output that reports an error."""
    assert "Traceback" not in text
    (line,) = [line for line in text.splitlines() if line.startswith("error: ")]
    return line


def files(run: Path) -> dict[str, bytes]:
    """What a run shows of its stages."""
    folders = ("episodes", "checkpoints", "pairs")
    return {
        str(path.relative_to(run)): path.read_bytes()
        for name in folders
        for path in sorted((run / name).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def unbroken(tmp_path, monkeypatch) -> Path:
    """A finished run of plain functions in the current directory."""
    home = tmp_path / "unbroken"
    home.mkdir()
    monkeypatch.chdir(home)
    write_small(home)
    assert command("small.yaml", "--run-dir", "run") == 0
    return home / "run"


@pytest.mark.parametrize("node", ["demos", "sft", "rpro.1.optimise", "report"])
@pytest.mark.parametrize("moment", ["while it runs", "when it is stored"])
def test_the_command_ends_with_one_line_keeps_what_is_finished_and_resumes(
    disk, unbroken, monkeypatch, capsys, node, moment
):
    monkeypatch.chdir(disk)
    write_small(disk)
    stages = FakeStages()
    hook = "before" if moment == "while it runs" else "after"
    setattr(stages, hook, lambda context: fill(disk) if context.node.name == node else None)
    assert command("small.yaml", "--run-dir", "run", "workers.stages=1", stages=stages) == 1
    line = only_error(capsys.readouterr().err)
    assert "no space is left on the disk; free some, then continue with: python -m rl_lab.run --resume run" in line
    assert moment == "when it is stored" or f"error: {node}: " in line
    done = {path.name for path in (disk / "runs").glob(".stages/*")}
    free(disk)
    again = FakeStages()
    assert command("--resume", "run", stages=again) == 0
    assert len(done) + len(again.ran) == len(stages.ran) + len(again.ran) - (node in again.ran)
    assert files(disk / "run") == files(unbroken)


def test_a_full_store_on_another_disk_loses_no_finished_stage(disk, unbroken, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(disk)
    write_small(disk)
    run = tmp_path / "elsewhere"
    stages = FakeStages()

    def filling(context):
        if context.node.name == "sft":
            (context.out / "large").write_bytes(bytes(1 << 20))
            fill(disk, leave=1 << 19)

    stages.after = filling
    assert command("small.yaml", "--run-dir", str(run), stages=stages) == 1
    assert "no space is left" in only_error(capsys.readouterr().err)
    assert [path.name for path in (disk / "runs" / ".stages").iterdir() if path.name.startswith(".")] == []
    free(disk)
    again = FakeStages()
    assert command("--resume", str(run), stages=again) == 0
    assert "demos" not in again.ran


def test_a_disk_that_is_still_full_changes_nothing(disk, monkeypatch, capsys):
    monkeypatch.chdir(disk)
    write_small(disk)
    stages = FakeStages()
    stages.fail_at = "rpro.1.optimise"
    assert command("small.yaml", "--run-dir", "run", stages=stages) == 1
    capsys.readouterr()
    metrics = (disk / "run" / "metrics.jsonl").read_bytes()
    fill(disk)
    assert command("--resume", "run") == 1
    assert "no space is left" in only_error(capsys.readouterr().err)
    assert (disk / "run" / "metrics.jsonl").read_bytes() == metrics
    free(disk)
    assert command("--resume", "run") == 0


def test_a_read_only_run_directory_is_refused_with_one_line(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    remount(disk, "ro")
    assert command("small.yaml", "--run-dir", str(disk / "run")) == 2
    line = only_error(capsys.readouterr().err)
    assert f"cannot create {disk}/run: Read-only file system; give a writable --run-dir" in line
    assert not list(disk.iterdir())


def test_resuming_in_a_read_only_run_directory_is_refused(disk, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    assert command("small.yaml", "--run-dir", str(disk / "run"), "stages=[demos]") == 0
    remount(disk, "ro")
    capsys.readouterr()
    assert command("--resume", str(disk / "run")) == 2
    assert f"cannot write to {disk}/run: Read-only file system; give a writable" in only_error(capsys.readouterr().err)


def test_a_read_only_store_is_refused_before_anything_is_written(disk, tmp_path, monkeypatch, capsys):
    write_small(disk)
    monkeypatch.chdir(disk)
    assert command("small.yaml", "--run-dir", str(tmp_path / "first"), "stages=[demos]") == 0
    remount(disk, "ro")
    capsys.readouterr()
    for arguments in (("small.yaml", "--run-dir", str(tmp_path / "run")), ("--resume", str(tmp_path / "first"))):
        before = {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}
        assert command(*arguments) == 2
        line = only_error(capsys.readouterr().err)
        assert f"cannot store stages in {disk}/runs/.stages: Read-only file system; make it writable" in line
        assert not (tmp_path / "run").exists()
        assert before == {path: path.read_bytes() for path in (tmp_path / "first").rglob("*") if path.is_file()}


def test_a_disk_that_becomes_read_only_is_one_line_too(disk, monkeypatch, capsys):
    monkeypatch.chdir(disk)
    write_small(disk)
    stages = FakeStages()
    stages.before = lambda context: protect(disk / "run") if context.node.name == "sft" else None
    assert command("small.yaml", "--run-dir", "run", "workers.stages=1", stages=stages) == 2
    assert "the file system is read-only; make it writable, then continue with" in only_error(capsys.readouterr().err)
    unprotect(disk / "run")
    assert command("--resume", "run") == 0


def test_a_file_or_folder_that_could_not_be_written_leaves_the_one_before_and_nothing_else(disk):
    write_file(disk / "file", lambda file: file.write(b"old"))
    write_folder(disk / "folder", lambda folder: (folder / "part").write_text("old"))
    fill(disk)
    for write in (
        lambda: write_file(disk / "file", lambda file: file.write(bytes(1 << 20))),
        lambda: write_folder(disk / "folder", lambda folder: (folder / "part").write_bytes(bytes(1 << 20))),
    ):
        with pytest.raises(OSError) as failure:
            write()
        assert failure.value.errno == errno.ENOSPC
    free(disk)
    assert sorted(path.name for path in disk.iterdir()) == ["file", "folder"]
    assert ((disk / "file").read_text(), (disk / "folder" / "part").read_text()) == ("old", "old")


def test_a_learners_state_on_a_full_disk_is_known_as_one_also_from_another_process(disk):
    state = {"weights": torch.zeros(1 << 20)}
    save_training_state(disk / "state.pt", state)
    before = (disk / "state.pt").read_bytes()
    fill(disk)
    with pytest.raises((OSError, RuntimeError)) as failure:
        save_training_state(disk / "state.pt", state | {"more": torch.zeros(10)})
    sent = pickle.loads(pickle.dumps(RayTaskError("save", "a traceback", failure.value)))
    for error in (failure.value, sent, sent.as_instanceof_cause()):
        assert "no space is left on the disk" in str(disk_error(error, "run"))
    assert (disk / "state.pt").read_bytes() == before


def test_what_a_disk_says_is_read_from_every_kind_of_error():
    full = sqlite3.OperationalError("database or disk is full")
    full.sqlite_errorcode = sqlite3.SQLITE_FULL
    known = [OSError(errno.EDQUOT, "Disk quota exceeded", "f"), full, RuntimeError("I/O error (os error 28)")]
    assert all(disk_error(error, "run").exit_code == 1 for error in known)
    assert disk_error(PermissionError(errno.EACCES, "Permission denied", "f"), "run").exit_code == 2
    assert str(disk_error(known[0], "run")).startswith("f: ") and str(disk_error(full, "run")).startswith("run: ")


def test_errors_that_are_not_the_disks_stay_what_they_are():
    missing = FileNotFoundError(errno.ENOENT, "No such file", "f")
    for error in (ValueError("no"), missing, sqlite3.OperationalError("x")):
        assert disk_error(error, "run") is None
    try:
        try:
            raise PermissionError(errno.EACCES, "Permission denied", "cache")
        except PermissionError:
            raise ValueError("something else")  # noqa: B904 - the occasion, not the cause
    except ValueError as error:
        assert disk_error(error, "run") is None


def test_an_error_of_the_disk_travels_between_processes():
    error = pickle.loads(pickle.dumps(DiskError("run: full", 1)))
    assert (str(error), error.exit_code) == ("run: full", 1)


def test_rollouts_that_did_not_fit_are_not_there(disk):
    fill(disk)
    store = RolloutStore(disk / "run")
    with pytest.raises(OSError):
        store.write(1, [])
    free(disk)
    assert store.steps() == []


def test_a_checkpoint_that_does_not_fit_is_known_as_a_full_disk(disk, policy):
    model = load_language_model(policy)
    fill(disk, leave=1 << 20)
    with pytest.raises(Exception) as failure:  # noqa: PT011 - of whatever library
        model.save(disk / "checkpoint", model.info)
    assert "no space is left on the disk" in str(disk_error(failure.value, "run")), repr(failure.value)
    free(disk)
    model.save(disk / "checkpoint", model.info)
    assert load_language_model(disk / "checkpoint").info == model.info


def test_pairs_that_do_not_fit_are_known_as_a_full_disk(disk):
    fill(disk, leave=1 << 16)
    arrays = {"images": np.random.default_rng(0).integers(0, 256, 1 << 20, dtype=np.uint8)}
    with pytest.raises(OSError) as failure:
        np.savez_compressed(disk / "pair-0000.npz", **arrays)
    assert "no space is left on the disk" in str(disk_error(failure.value, "run"))


def test_a_run_that_could_not_even_write_its_config_starts_again_in_the_same_folder(disk, monkeypatch, capsys):
    monkeypatch.chdir(disk)
    write_small(disk)
    (disk / "runs" / ".stages").mkdir(parents=True)
    (disk / "run").mkdir()
    fill(disk)
    assert command("small.yaml", "--run-dir", "run", "stages=[demos]") == 1
    assert "no space is left on the disk; free some, then start again" in only_error(capsys.readouterr().err)
    free(disk)
    assert command("small.yaml", "--run-dir", "run", "stages=[demos]") == 0
