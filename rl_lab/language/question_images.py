"""Pictures and videos named in users' data: from files, data URIs and tables, never from the network."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def read_image(value: Any, folder: Path) -> np.ndarray:
    """uint8 [H, W, 3] of a path below `folder`, a data URI, a PIL image, an array, or {"bytes", "path"}.

    ValueError in one line for anything that is none of these or cannot be decoded.
    """
    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim != 3 or value.shape[2] != 3 or not value.size:
            raise ValueError(f"an image is a {value.dtype} array of shape {value.shape}; give uint8 [H, W, 3]")
        return value
    if isinstance(value, Mapping):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if isinstance(value, str):
        value = _data_uri(value) if value.startswith("data:") else existing_file(value, "image", folder).read_bytes()
    try:
        opened = value if isinstance(value, Image.Image) else Image.open(io.BytesIO(value))
        return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, TypeError, Image.DecompressionBombError) as error:
        raise ValueError(f"an image cannot be read: {error}") from error


def _data_uri(uri: str) -> bytes:
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("an image is a data URI that is not base64; write data:image/png;base64,..")
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ValueError(f"an image is a data URI whose base64 is damaged: {error}") from error


def existing_file(value: Any, kind: str, folder: Path) -> Path:
    """The file that a path, relative to `folder`, names; ValueError for a URL and where no file is."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{kind} is {value!r:.40}; give a path{' or a data URI' if kind == 'image' else ''}")
    if "://" in value:
        raise ValueError(f"{kind} {value:.80} is a URL; nothing is downloaded here, so fetch it and give its path")
    path = folder / value
    if "\0" in value or not path.is_file():
        raise ValueError(f"there is no {kind} {value:.80} beside the data; paths are relative to its folder")
    return path
