"""Statistics: files of ours and released ones, hostile pickles, absolute halves."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs import se3
from rl_lab.benchmarks.golden import golden_path
from rl_lab.common.moments import Moments
from rl_lab.model.norm_stats import RELEASED_STATS_FILE, STATS_FILE, ActionStats, load_arrays
from rl_lab.model.presets import preset_config
from rl_lab.model.processor import PolicyProcessor
from rl_lab.model.tokenizer import load_tokenizer
from tests.model.test_processor import random_poses


def released(absolute: bool = False, dtype: type = np.float64) -> dict[str, Any]:
    """What a released file holds."""
    rng = np.random.default_rng(0)
    arrays = {
        "qpos_mean": rng.normal(size=20),
        "qpos_std": rng.random(20) + 0.5,
        "action_mean": rng.normal(size=(4, 20)),
        "action_std": rng.random((4, 20)) + 0.5,
    }
    if absolute:
        arrays |= {"action_mean_abs": rng.normal(size=(4, 20)), "action_std_abs": rng.random((4, 20)) + 0.5}
    return {name: value.astype(dtype) for name, value in arrays.items()} | {"first_frame": None}


def write(folder: Path, content: Any, protocol: int = 4) -> Path:
    path = folder / RELEASED_STATS_FILE
    path.write_bytes(pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_released_pickle_is_read_in_every_protocol(tmp_path: Path, protocol: int, dtype: type) -> None:
    expected = released(absolute=True, dtype=dtype)
    stats = ActionStats.load(write(tmp_path, expected, protocol))
    for name, value in vars(stats).items():
        assert np.array_equal(value, expected[name]) and value.dtype == dtype, name


def test_layouts_and_byte_orders_of_arrays_are_kept(tmp_path: Path) -> None:
    plain = np.arange(12.0).reshape(3, 4)
    expected = {"f": np.asfortranarray(plain), "big": plain.astype(">f4"), "t": plain.T, "i": plain.astype(np.int32)}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for name, value in load_arrays(write(tmp_path, expected, protocol)).items():
            assert np.array_equal(value, expected[name]), (name, protocol)


def test_the_names_of_older_numpy_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, released(), protocol=2)
    path.write_bytes(path.read_bytes().replace(b"numpy._core.", b"numpy.core."))
    assert b"numpy.core." in path.read_bytes()
    assert np.array_equal(ActionStats.load(path).qpos_mean, released()["qpos_mean"])


class Call:
    """Unpickled by the standard library, calls a function."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.reduced = function, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run_it(tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    content = released() | {"qpos_mean": Call(os.system, f"touch {witness}")}
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"refused to unpickle .*it asks for posix\.system") as caught:
        ActionStats.load(path)
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists(), "the file must be one that does harm elsewhere"


def build_on_class() -> bytes:
    """Sets an attribute of the class that stands for an array: BUILD with a state of slots."""
    return b"\x80\x02cnumpy._core.multiarray\n_reconstruct\n(N}X\x04\x00\x00\x00realX\x01\x00\x00\x00xstb."


def nested_name() -> bytes:
    """A dictionary whose key is a tuple of tuples that is a million times as long when printed."""
    return b"\x80\x02})" + b"2\x86" * 20 + b"Ns."


HOSTILE = {
    "eval": pickle.dumps(Call(eval, "1 + 1")),
    "getattr": pickle.dumps({"qpos_mean": Call(getattr, "text", "upper")}),
    "numpy function": pickle.dumps({"qpos_mean": Call(np.fromfile, "/etc/hostname")}),
    "array of objects": pickle.dumps({"qpos_mean": np.array([None, "text"], dtype=object)}),
    "array of calls": pickle.dumps({"qpos_mean": np.array([Call(os.getpid)], dtype=object)}),
    "structured array": pickle.dumps({"qpos_mean": np.zeros(2, dtype=[("a", "f8")])}),
    "array type itself": pickle.dumps({"qpos_mean": np.ndarray}),
    "state for a class": build_on_class(),
    "not arrays": pickle.dumps({"qpos_mean": 3.5}),
    "not a dictionary": pickle.dumps([1, 2]),
    "names that are not text": pickle.dumps({1: np.zeros(2)}),
    "a name without end": nested_name(),
    "too few bytes": pickle.dumps(released()).replace(b"\x8c\x09qpos_mean", b"\x8c\x09qpos_mxan")[:-200],
    "text": b"qpos_mean: 1\n",
    "nothing": b"",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / RELEASED_STATS_FILE
    path.write_bytes(HOSTILE[name])
    with pytest.raises(ValueError, match="refused to unpickle .*: only numpy arrays of numbers are read") as caught:
        ActionStats.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_released_file_becomes_one_of_ours(tmp_path: Path) -> None:
    write(tmp_path, released(absolute=True))
    config = preset_config("nano", chunk_size=8)
    processor = PolicyProcessor(config, load_tokenizer(), ActionStats.find(tmp_path))
    processor.save_pretrained(tmp_path / "ours")
    first = (tmp_path / "ours" / STATS_FILE).read_bytes()
    again = ActionStats.load(tmp_path / "ours" / STATS_FILE)
    again.save(tmp_path / STATS_FILE)
    assert (tmp_path / STATS_FILE).read_bytes() == first
    for key, value in vars(processor.stats).items():
        assert np.array_equal(value, getattr(again, key)), key


def test_saving_writes_the_pickle_that_the_released_deployment_looks_for(tmp_path: Path) -> None:
    content = released(absolute=True)
    write(tmp_path, content)
    processor = PolicyProcessor(preset_config("nano", chunk_size=8), load_tokenizer(), ActionStats.find(tmp_path))
    processor.save_pretrained(tmp_path / "ours")
    raw = (tmp_path / "ours" / RELEASED_STATS_FILE).read_bytes()
    assert b"numpy.core.multiarray" in raw and b"numpy._core" not in raw  # numpy 1 knows the older name alone
    found = pickle.loads(raw)
    assert found.keys() == content.keys() and found["first_frame"] is None
    for key, value in vars(processor.stats).items():
        assert np.array_equal(value, found[key]), key


def test_a_released_folder_is_read_with_its_pickle(tmp_path: Path) -> None:
    shutil.copytree(golden_path("policy"), tmp_path / "policy")
    chunk = PolicyProcessor.from_pretrained(golden_path("policy")).config.n_action_steps
    content = released() | {"action_mean": np.zeros((chunk, 20)), "action_std": np.ones((chunk, 20))}
    write(tmp_path / "policy", content)
    processor = PolicyProcessor.from_pretrained(tmp_path / "policy")
    assert np.array_equal(processor.stats.qpos_mean, content["qpos_mean"])
    write(tmp_path / "policy", content | {"qpos_std": Call(os.getpid)})
    with pytest.raises(ValueError, match="refused to unpickle"):
        PolicyProcessor.from_pretrained(tmp_path / "policy")


def test_a_std_of_zero_in_a_released_file_is_raised_to_the_released_floor(tmp_path: Path) -> None:
    content = released()
    content["action_std"][0] = 0
    assert (ActionStats.load(write(tmp_path, content)).action_std[0] == 1e-8).all()


def test_a_file_without_a_statistic_or_with_another_shape_is_named(tmp_path: Path) -> None:
    content = released()
    del content["action_std"]
    with pytest.raises(ValueError, match="norm_stats.pkl lacks the statistics action_std"):
        ActionStats.load(write(tmp_path, content))
    with pytest.raises(ValueError, match=r"statistic action_std has shape \(3, 20\); expected \(4, 20\)"):
        ActionStats.load(write(tmp_path, released() | {"action_std": np.ones((3, 20))}))
    with pytest.raises(ValueError, match="both action_mean_abs and action_std_abs"):
        ActionStats.load(write(tmp_path, released() | {"action_mean_abs": np.ones((4, 20))}))


def test_statistics_of_tokens_that_the_model_lacks_are_dropped(tmp_path: Path) -> None:
    stats = ActionStats.load(write(tmp_path, released(absolute=True)))
    for chunk_size, absolute in ((4, False), (8, True)):
        processor = PolicyProcessor(preset_config("nano", chunk_size=chunk_size), load_tokenizer(), stats)
        assert processor.stats.has_absolute is absolute


def absolute_processor(poses: np.ndarray, actions: np.ndarray) -> PolicyProcessor:
    chunks = se3.to_relative(actions, poses)
    stats = ActionStats.from_moments(*map(Moments, (se3.encode_pose(poses), chunks, se3.encode_pose(actions))))
    return PolicyProcessor(preset_config("nano", chunk_size=2 * actions.shape[1]), load_tokenizer(), stats)


def test_doubled_chunks_hold_relative_then_absolute_poses_and_decode_to_their_blend() -> None:
    poses, actions = random_poses((40,)), random_poses((40, 3), seed=1)
    processor = absolute_processor(poses, actions)
    chunks = processor.encode(actions, poses).numpy()
    assert chunks.shape == (40, 6, 20)
    np.testing.assert_allclose(chunks.std(0), 1.0, atol=1e-5)
    np.testing.assert_allclose(processor.decode(chunks, poses), actions, atol=1e-5)

    stats = processor.stats
    other = processor.encode(random_poses((40, 3), seed=2), poses).numpy()
    mixed = np.concatenate([chunks[:, :3], other[:, 3:]], axis=1)
    absolute = se3.decode_absolute(other[:, 3:] * stats.action_std_abs + stats.action_mean_abs)
    np.testing.assert_allclose(processor.decode(mixed, poses), se3.blend(actions, absolute), atol=1e-5)
