import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rl_lab.common import machine
from rl_lab.common.files import file_digest, write_whole
from rl_lab.graph import store
from rl_lab.graph.store import CODE_PACKAGES, Store, code_versions, link_tree

RECORD = {"kind": "demos", "seconds": 1.0}
WRITER = """
import sys
from pathlib import Path
from rl_lab.graph.store import Store
store, work = Store(Path(sys.argv[1])), Path(sys.argv[2])
number = 0
while True:
    work.mkdir()
    for part in range(20):
        (work / f"part-{part}").write_text("x" * 1000)
    store.publish(f"hash-{number}", work, {"kind": "demos", "seconds": 1.0})
    number += 1
"""


def fill(work: Path, content: str = "x") -> Path:
    work.mkdir(parents=True)
    (work / "data").write_text(content)
    return work


def test_a_published_stage_is_there_and_its_work_folder_is_gone(tmp_path):
    store, work = Store(tmp_path / "store"), fill(tmp_path / "work")
    stored = store.publish("abc", work, RECORD)
    assert (stored / "data").read_text() == "x"
    assert store.has("abc") and not store.has("abd")
    assert store.record("abc") == RECORD | {"files": {"data": file_digest(stored / "data")}}
    assert not work.exists()


def test_the_first_of_two_publishers_wins_and_nothing_is_mixed(tmp_path):
    store = Store(tmp_path / "store")
    store.publish("abc", fill(tmp_path / "a", "first"), RECORD)
    store.publish("abc", fill(tmp_path / "b", "second"), RECORD)
    assert (store.path("abc") / "data").read_text() == "first"
    assert not (tmp_path / "b").exists()


def test_publishing_the_same_stage_from_many_threads_leaves_one_whole_stage(tmp_path):
    store = Store(tmp_path / "store")
    folders = [fill(tmp_path / f"work-{number}", str(number)) for number in range(8)]
    threads = [threading.Thread(target=store.publish, args=("abc", folder, RECORD)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in store.path("abc").iterdir()) == ["data", "stage.json"]
    assert [path.name for path in store.root.iterdir()] == ["abc"]


def test_publishing_across_file_systems_copies(tmp_path, monkeypatch):
    store, rename = Store(tmp_path / "store"), os.rename

    def refuse(source, target):
        if Path(source).parent != store.root:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    stored = store.publish("abc", fill(tmp_path / "work"), RECORD)
    assert (stored / "data").read_text() == "x"
    assert [path.name for path in store.root.iterdir()] == ["abc"]


@pytest.mark.parametrize("delay", [0.05, 0.11, 0.23])
def test_a_writer_killed_at_any_moment_leaves_only_whole_stages(tmp_path, delay):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(tmp_path / "work")]
    writer = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    while not (tmp_path / "store" / "hash-0").exists():
        time.sleep(0.01)
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    store = Store(tmp_path / "store")
    folders = list(store.root.iterdir())
    assert folders
    for folder in folders:
        assert store.has(folder.name)
        assert sum(path.name.startswith("part-") for path in folder.iterdir()) == 20


def test_stored_files_are_read_only_because_run_folders_link_to_them(tmp_path):
    stored = Store(tmp_path / "store").publish("abc", fill(tmp_path / "work"), RECORD)
    link_tree(stored, tmp_path / "shown", without=("stage.json",))
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["data"]
    assert (tmp_path / "shown" / "data").samefile(stored / "data")
    assert (stored / "data").stat().st_mode & 0o222 == 0


def test_linking_replaces_what_an_interrupted_run_left(tmp_path):
    source = fill(tmp_path / "source", "new")
    fill(tmp_path / "target", "old")
    fill(tmp_path / ".target.partial", "torn")
    link_tree(source, tmp_path / "target")
    assert (tmp_path / "target" / "data").read_text() == "new"


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "file"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "new \udc80")
    assert path.read_text() == "old"


def test_results_depend_on_the_code_of_every_package():
    digests = {name: digest for name, digest in code_versions().items() if name.startswith("code/")}
    assert digests.keys() == {f"code/{name}" for name in CODE_PACKAGES}
    assert len(set(digests.values())) == len(digests) and hashlib.sha256().hexdigest() not in digests.values()


def test_a_changed_file_is_another_version_of_the_code(tmp_path, monkeypatch):
    for module in (store, machine):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in CODE_PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "module.py").write_text("x = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
        subprocess.run([*git, *command], check=True)
    before, commit = code_versions(), machine.git_commit()
    (tmp_path / "algos" / "module.py").write_text("x = 2\n")
    after = code_versions()
    assert [name for name in before if before[name] != after[name]] == ["code/algos"]
    assert commit is not None and machine.git_commit() == f"{commit}+changes"
