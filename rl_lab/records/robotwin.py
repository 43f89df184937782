"""RoboTwin's HDF5 demonstrations -> `Episode`, in both layouts of its repository.

classic     DATA/<task>/<config>/data/episode0.hdf5 beside instructions/episode0.json and seed.txt
            observation/<camera>/rgb, endpose/{left,right}_endpose, endpose/{left,right}_gripper: N frames
trajectory  DATA/<config>/<task>/<embodiment>/data/episode_0000000.hdf5 (since July 2026), `data_format_version` v1.0
            vision/cam_*/colors, state/*_ee_poses, state/*_ee_joint_states, the same below action/: the next frame

The command of step t is the pose of frame t + 1, as in RoboTwin's converters. Quaternions are wxyz; grippers 1 = open.
`additional_info/frequency` is RoboTwin's `save_freq`, physics steps (1/250 s) a frame, not hertz.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image

from envs.pictures import fit
from envs.types import ARMS, CAMERAS, Episode
from rl_lab.common.errors import UserError
from rl_lab.common.files import files_below
from rl_lab.common.pictures import open_picture, to_rgb
from rl_lab.common.reading import parse_json, read_text
from rl_lab.records.checks import BrokenEpisodeError, Problem, episode_problems, naming_episode

PHYSICS_HZ = 250
SAVE_FREQ = 15
"""Physics steps a frame in RoboTwin's demo_clean and demo_randomized: 16.7 Hz."""
TRAJECTORY_CAMERAS = dict(zip(CAMERAS, ("cam_head", "cam_left_wrist", "cam_right_wrist"), strict=True))
RGB_MARK = b"XPL-RGB1"
"""JPEG comment of newer files. Without it, red and blue are exchanged: RGB arrays were given to OpenCV's encoder."""
_NAME = re.compile(r"episode_?(\d+)\.hdf5")


@dataclass(frozen=True)
class EpisodeFile:
    """Where an episode lies and what its path says about it."""

    path: Path
    layout: str
    """"classic" or "trajectory"."""
    number: int
    task: str
    variant: str

    @property
    def folder(self) -> Path:
        """Of the data folder and what lies beside it."""
        return self.path.parent.parent


def control_hz(save_freq: int = SAVE_FREQ) -> float:
    """Frames a second of demonstrations."""
    return PHYSICS_HZ / save_freq


def episode_paths(folder: Path) -> list[Path]:
    """Files named as episodes at or below a folder, linked folders included; or the one file that is given."""
    paths = files_below(folder) if folder.is_dir() else [folder]
    return [path for path in paths if _NAME.fullmatch(path.name)]


def find_episodes(folder: Path) -> list[EpisodeFile]:
    """All episode files at or below a folder, by path and number; UserError if there are none."""
    found = []
    for path in episode_paths(folder):
        name = _NAME.fullmatch(path.name)
        if name and path.is_file():
            parents = [parent.name for parent in path.resolve().parents][1:4] + ["", "", ""]
            if path.name.startswith("episode_"):
                found.append(EpisodeFile(path, "trajectory", int(name[1]), parents[1], parents[2]))
            else:
                found.append(EpisodeFile(path, "classic", int(name[1]), parents[1], parents[0]))
    if not found:
        raise UserError(
            f"{folder} holds no episode0.hdf5 or episode_0000000.hdf5; name RoboTwin's data folder, or a "
            "LeRobotDataset with its meta/info.json"
        )
    return sorted(found, key=lambda file: (str(file.path.parent), file.number))


def decode_image(data: Any, image_size: int) -> np.ndarray:
    """A stored JPEG (or an RGB array) as uint8 [S, S, 3], scaled to fit and centred on black."""
    if isinstance(data, np.ndarray) and data.ndim == 3:
        picture = Image.fromarray(data)
    else:
        buffer = (data.tobytes() if isinstance(data, np.ndarray) else bytes(data)).rstrip(b"\0")
        opened = open_picture(buffer)
        marked = opened.info.get("comment") == RGB_MARK
        picture = to_rgb(opened)
        if not marked:
            picture = Image.merge("RGB", picture.split()[::-1])
    return fit(np.asarray(picture), image_size)


class _Reader:
    """Collects the problems of one open file, so that all of them are reported at once."""

    def __init__(self, name: str, file: h5py.File) -> None:
        self.name, self.file = name, file
        self.problems: list[Problem] = []

    def fail(self, text: str, frame: int | None = None) -> None:
        self.problems.append(Problem(self.name, frame, text))

    def stop_if_broken(self) -> None:
        if self.problems:
            raise BrokenEpisodeError(self.problems)

    def array(self, key: str) -> np.ndarray:
        """A dataset as float64 [N, n]; empty if it is not there."""
        node = self.file.get(key)
        if not isinstance(node, h5py.Dataset) or node.ndim < 1:
            self.fail(f"{key} is missing")
            return np.zeros((0, 1))
        values = np.asarray(node[()], dtype=np.float64)
        return values.reshape(len(values), -1)

    def poses(self, pose_key: str, gripper_key: str) -> np.ndarray:
        """`ee` rows [N, 16] of both arms; keys hold {arm}."""
        parts = {key.format(arm=arm): 0 for arm in ARMS for key in (pose_key, gripper_key)}
        arrays = {key: self.array(key) for key in parts}
        self.stop_if_broken()
        lengths = {key: len(array) for key, array in arrays.items()}
        if len(set(lengths.values())) > 1:
            text = ", ".join(f"{key} {length}" for key, length in lengths.items())
            self.fail(f"truncated: rows differ: {text}", min(lengths.values()))
        for key, array in arrays.items():
            width = 7 if key.endswith(("endpose", "ee_poses")) else 1
            if array.shape[1] != width:
                self.fail(f"{key} has {array.shape[1]} columns, expected {width}")
        self.stop_if_broken()
        return np.concatenate(list(arrays.values()), axis=1)

    def images(self, keys: list[str], num_frames: int, num_used: int, image_size: int, decode: bool) -> np.ndarray:
        """uint8 [num_used, cameras, S, S, 3] of cameras that hold `num_frames` each; black unless they are decoded."""
        images = np.zeros((num_used, len(keys), image_size, image_size, 3), dtype=np.uint8)
        for camera, key in enumerate(keys):
            node = self.file.get(key)
            if not isinstance(node, h5py.Dataset):
                self.fail(f"camera missing: {key}")
            elif len(node) != num_frames:
                text = f"truncated: {key} has {len(node)} images for {num_frames} frames"
                self.fail(text, min(len(node), num_frames))
            elif decode:
                self._decode(node, images[:, camera], key, image_size)
        return images

    def _decode(self, node: h5py.Dataset, images: np.ndarray, key: str, image_size: int) -> None:
        for frame in range(len(images)):
            try:
                images[frame] = decode_image(node[frame], image_size)
            except (OSError, ValueError) as error:
                self.fail(f"{key} cannot be decoded: {error}", frame)
                return

    def check_rate(self, save_freq: int) -> None:
        """The file's own `save_freq`, where it says one."""
        node = self.file.get("additional_info/frequency")
        if node is not None and node[()] != save_freq:
            text = f"wrong rate: additional_info/frequency is {node[()]}, expected save_freq {save_freq}"
            self.fail(f"{text} ({control_hz(save_freq):.1f} Hz)")


def _texts(payload: Any, split: str) -> list[str]:
    """Instructions in a JSON file of RoboTwin: {"seen": [...], "unseen": [...]}, a list or a string."""
    if isinstance(payload, dict):
        payload = payload.get(split) or payload.get("instructions") or payload.get("instruction") or []
    texts = [payload] if isinstance(payload, str) else payload
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"instructions are no list of texts but {str(texts)[:80]}")
    return [text for text in texts if text]


def _instruction(file: EpisodeFile, handle: h5py.File, split: str) -> str:
    """The one that RoboTwin's converter would take (number of the episode modulo their count); "" if there is none."""
    for name in ("instructions", "instruction"):
        path = file.folder / name / f"{file.path.stem}.json"
        if path.is_file():
            texts = _texts(parse_json(read_text(path), str(path)), split)
            if texts:
                return texts[file.number % len(texts)]
    stored = handle.get("instruction")
    if stored is None:
        return ""
    value = stored[()]
    (text,) = _texts(value.decode("utf-8") if isinstance(value, bytes) else value, split)
    return text


def episode_place(path: Path, _: int = 0) -> tuple[str, str, int]:
    """Task, variant and environment seed of an episode's file, as what lies beside it tells."""
    (file,) = find_episodes(path)
    return file.task, file.variant, _seed(file)


def _seed(file: EpisodeFile) -> int:
    """The episode's entry of seed.txt; its number where there is none."""
    path = file.folder / "seed.txt"
    seeds = read_text(path).split() if path.is_file() else []
    if file.number >= len(seeds):
        return file.number
    if not seeds[file.number].isdecimal():
        raise ValueError(f"{path} has {seeds[file.number][:20]!r} where the seed of episode {file.number} should stand")
    return int(seeds[file.number])


def _read(file: EpisodeFile, handle: h5py.File, image_size: int, save_freq: int, split: str, decode: bool) -> Episode:
    reader = _Reader(str(file.path), handle)
    reader.check_rate(save_freq)
    if "state" in handle:
        state, action = (
            reader.poses(f"{side}/{{arm}}_ee_poses", f"{side}/{{arm}}_ee_joint_states") for side in ("state", "action")
        )
        if len(state) != len(action):
            reader.fail(f"truncated: {len(state)} states, {len(action)} actions", min(len(state), len(action)))
        poses, num_frames = np.concatenate([state, action[-1:]]), len(state)
    else:
        action = poses = reader.poses("endpose/{arm}_endpose", "endpose/{arm}_gripper")
        action, num_frames = poses[1:], len(poses)
    if len(action) < 1:
        reader.fail("truncated: fewer than two frames")
    reader.stop_if_broken()
    images = reader.images(_camera_keys(handle), num_frames, len(action), image_size, decode)
    episode = Episode(
        task=file.task,
        variant=file.variant,
        seed=_seed(file),
        instruction=_instruction(file, handle, split),
        success=True,  # RoboTwin stores a demonstration only after its expert succeeded
        num_steps=len(action),
        poses=poses,
        actions=action,
        frame_steps=np.arange(len(action)),
        images=images,
        extra={"source": str(file.path), "control_hz": control_hz(save_freq)},
    )
    reader.problems += episode_problems(reader.name, episode)
    reader.stop_if_broken()
    return episode


def read_episode(path: Path, _: int, image_size: int, save_freq: int, split: str, decode: bool = True) -> Episode:
    """The demonstration of a file, without `decode` with black images; BrokenEpisodeError with all that is wrong with
    it."""
    (file,) = find_episodes(path)
    with naming_episode(str(path)), h5py.File(path, "r") as handle:
        return _read(file, handle, image_size, save_freq, split, decode)


def _camera_keys(handle: h5py.File) -> list[str]:
    if "state" in handle:
        return [f"vision/{TRAJECTORY_CAMERAS[camera]}/colors" for camera in CAMERAS]
    return [f"observation/{camera}/rgb" for camera in CAMERAS]


def read_images(path: Path, _: int, frames: np.ndarray, image_size: int, __: tuple[str, ...] = CAMERAS) -> np.ndarray:
    """Some frames of a file, uint8 [n, 3, S, S, 3]; BrokenEpisodeError if they cannot be read."""
    with naming_episode(str(path), int(frames[0])):
        with h5py.File(path, "r") as handle:
            # The bytes first: h5py has one lock for all threads, decoding has none.
            stored = [[handle[key][int(frame)] for key in _camera_keys(handle)] for frame in frames]
        return np.stack([np.stack([decode_image(data, image_size) for data in views]) for views in stored])
