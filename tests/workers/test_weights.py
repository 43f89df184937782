"""Weight snapshots arrive whole or not at all."""

import dataclasses

import pytest

from rl_lab.model.checkpoint import publish, pull


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoint"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(range(256)))
    (path / "config.json").write_text("{}")
    return path


def test_a_snapshot_carries_version_and_every_file(folder, tmp_path):
    snapshot = publish(folder, version=3)
    copy = pull(snapshot, tmp_path / "copy")
    assert snapshot.version == 3
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }


def test_a_damaged_snapshot_is_refused_with_its_version(folder, tmp_path):
    snapshot = publish(folder, version=3)
    damaged = dataclasses.replace(snapshot, files=snapshot.files | {"config.json": b"{ }"})
    with pytest.raises(RuntimeError, match="version 3 arrived damaged"):
        pull(damaged, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_equal_files_have_equal_digests_whatever_the_version(folder):
    assert publish(folder, 1).digest == publish(folder, 2).digest
