"""Pictures and videos named in users' data: from files, data URIs and tables, never from the network."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rl_lab.language.question_files import find_file
from rl_lab.model.sizes import check_aspect
from rl_lab.pictures import read_picture


def read_image(value: Any, folder: Path, base: str = "") -> np.ndarray:
    """uint8 [H, W, 3] of a path (see `find_file`), a data URI, a PIL image, an array, or {"bytes", "path"}.

    ValueError in one line for anything that is none of these or cannot be decoded.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ValueError(f"an image is a {value.dtype} array of shape {value.shape}; give uint8 [H, W, 3]")
        check_aspect(*value.shape[:2])
        return value
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str) and not value.startswith("data:"):
        value = existing_file(value, "image", folder, base)
    picture = read_picture(value)
    check_aspect(picture.height, picture.width)
    return np.asarray(picture)


def existing_file(value: Any, kind: str, folder: Path, base: str = "") -> Path:
    """The file that a path names; ValueError for a URL and where no file is."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{kind} is {value!r:.40}; give a path{' or a data URI' if kind == 'image' else ''}")
    if "://" in value:
        raise ValueError(f"{kind} {value:.80} is a URL; nothing is downloaded here, so fetch it and give its path")
    path = find_file(value, folder, base)
    if path is None:
        raise ValueError(
            f"there is no {kind} {value:.80} beside the data or in the working directory, to which paths are relative"
        )
    return path
