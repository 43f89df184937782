"""The index of RoboTwin episodes that Hy-VLA's authors publish with their code (`assets/dataset_index.csv`).

One row an episode: `episode_dir` (task/config), `hdf5_name`, `is_dirty`. The released RoboTwin policy was trained
without the dirty ones: 1,860 of 27,500, episodes of unusual length (arXiv:2606.14409, appendix A).
"""

from __future__ import annotations

import csv
import re
from pathlib import Path

from rl_lab.errors import UserError
from rl_lab.reading import read_text

Key = tuple[str, str, int]
"""Task, config and number of an episode, which its path ends with whatever the file's name is padded to."""


def episode_key(path: Path) -> Key | None:
    """Key of TASK/CONFIG/data/episode_N.hdf5; None for a path that does not end so."""
    number = re.fullmatch(r"episode_?(\d+)", path.stem)
    if number is None or len(path.parts) < 4:
        return None
    return path.parts[-4], path.parts[-3], int(number[1])


def read_index(path: Path) -> dict[Key, bool]:
    """Whether each episode of an index is dirty. UserError, naming the line, for a file that is no such index."""
    rows = csv.DictReader(read_text(path).splitlines())
    missing = {"episode_dir", "hdf5_name", "is_dirty"} - set(rows.fieldnames or ())
    if missing:
        raise UserError(f"{path} is no index of episodes: it lacks the columns {', '.join(sorted(missing))}")
    found: dict[Key, bool] = {}
    for row in rows:
        key = episode_key(Path(str(row["episode_dir"])) / str(row["hdf5_name"]))
        if key is None or row["is_dirty"] not in ("0", "1"):
            raise UserError(
                f"{path}, line {rows.line_num}: expected episode_dir TASK/CONFIG, hdf5_name data/episode_N.hdf5 and "
                "is_dirty 0 or 1"
            )
        found[key] = row["is_dirty"] == "1"
    return found


def clean_files(files: list[Path], index: Path) -> list[Path]:
    """The files whose episodes are not dirty. UserError for one that the index does not know."""
    dirty = read_index(index)
    keys = [episode_key(file) for file in files]
    unknown = next((file for file, key in zip(files, keys, strict=True) if key not in dirty), None)
    if unknown is not None:
        raise UserError(
            f"{unknown} is not in the index {index}; name RoboTwin's own folders TASK/CONFIG, or leave the index out"
        )
    return [file for file, key in zip(files, keys, strict=True) if key is not None and not dirty[key]]
