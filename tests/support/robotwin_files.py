"""Writes files in RoboTwin's formats, as its collectors do: JPEG bytes padded to one length, one row a frame."""

from io import BytesIO
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from tests.support.episodes import poses

COLOUR = (200, 40, 10)
CAMERAS = ("head_camera", "left_camera", "right_camera")


def jpeg(marked: bool, shade: int) -> bytes:
    """Red on top, 32 x 24; without the mark its channels are stored the wrong way round, as OpenCV did."""
    picture = np.zeros((24, 32, 3), np.uint8)
    picture[:] = COLOUR
    picture[12:] = shade
    file = BytesIO()
    image = Image.fromarray(picture if marked else np.ascontiguousarray(picture[..., ::-1]))
    image.save(file, "JPEG", quality=95, **({"comment": b"XPL-RGB1"} if marked else {}))
    return file.getvalue()


def pictures(num_frames: int, marked: bool) -> np.ndarray:
    return np.array([jpeg(marked, 4 * frame) for frame in range(num_frames)], dtype="S")


def write_classic(root: Path, number: int, steps: int = 6, task: str = "handover_block") -> Path:
    """DATA/<task>/demo_clean/data/episode<number>.hdf5 with its instructions and seeds."""
    folder = root / task / "demo_clean"
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "instructions").mkdir(exist_ok=True)
    (folder / "instructions" / f"episode{number}.json").write_text(
        '{"seen": ["Hand it over.", "Pass it."], "unseen": []}'
    )
    (folder / "seed.txt").write_text("100 107 109 ")
    ee = poses(steps, number)
    path = folder / "data" / f"episode{number}.hdf5"
    with h5py.File(path, "w") as file:
        for camera in CAMERAS:
            file[f"observation/{camera}/rgb"] = pictures(steps + 1, marked=False)
        for arm, start in (("left", 0), ("right", 8)):
            file[f"endpose/{arm}_endpose"] = ee[:, start : start + 7]
            file[f"endpose/{arm}_gripper"] = ee[:, start + 7]
        file["joint_action/vector"] = np.zeros((steps + 1, 14))
    return path


def write_trajectory(root: Path, number: int, steps: int = 6, task: str = "handover_block") -> Path:
    """DATA/demo_clean/<task>/aloha_agilex/data/episode_<number>.hdf5, format v1.0."""
    folder = root / "demo_clean" / task / "aloha_agilex" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    ee = poses(steps, number).astype(np.float32)
    path = folder / f"episode_{number:07d}.hdf5"
    with h5py.File(path, "w") as file:
        file["data_format_version"] = "v1.0"
        file["instruction"] = "Hand it over."
        file["additional_info/frequency"] = np.int32(15)
        for name in ("cam_head", "cam_left_wrist", "cam_right_wrist"):
            file[f"vision/{name}/colors"] = pictures(steps, marked=True)
        for group, rows in (("state", ee[:-1]), ("action", ee[1:])):
            for arm, start in (("left", 0), ("right", 8)):
                file[f"{group}/{arm}_ee_poses"] = rows[:, start : start + 7]
                file[f"{group}/{arm}_ee_joint_states"] = rows[:, start + 7 : start + 8]
    return path
