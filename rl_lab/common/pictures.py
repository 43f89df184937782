"""Picture files as pixels: the one reader, so that training, examinations and reports see what `vllm serve` shows.

As in vLLM, EXIF orientation is applied and what is transparent lies on white. What has no one right reading is refused:
more than 8 bits a channel in one grey channel (PIL would clip it), animations, other formats than those below.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import struct
import zlib
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Still pictures that PIL decodes by itself; others may call programs."""
WIDE_MODES = ("I", "F")
"""First letter of PIL's modes of more than 8 bits."""
DECODING_ERRORS = (
    *(OSError, SyntaxError, TypeError, ValueError, EOFError, ArithmeticError, LookupError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)
"""What PIL raises for damaged files."""


def open_picture(data: bytes) -> Image.Image:
    """A picture file of one frame, not decoded yet; ValueError in one line for anything else."""
    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
        frames = getattr(opened, "n_frames", 1)
    except UnidentifiedImageError as error:
        raise ValueError(f"an image cannot be read: it is damaged or none of {', '.join(FORMATS)}") from error
    except DECODING_ERRORS as error:
        raise ValueError(f"an image cannot be read: {' '.join(str(error).split())}") from error
    if frames > 1 and opened.format != "MPO":  # the first of an MPO is the photograph
        raise ValueError(f"an image is a {opened.format} of {frames} frames; give one picture")
    return opened


def to_rgb(picture: Image.Image) -> Image.Image:
    """A picture as RGB: turned by its EXIF orientation, on white where transparent.

    ValueError in one line for more than 8 bits a channel and for damaged files.
    """
    if picture.mode[0] in WIDE_MODES:
        raise ValueError(
            f"an image has more than 8 bits a channel (PIL's mode {picture.mode}); scale it to 8 bits, so that nothing "
            "is clipped"
        )
    try:
        picture.load()
        with contextlib.suppress(*DECODING_ERRORS):  # as vLLM: a damaged EXIF block turns nothing
            picture = ImageOps.exif_transpose(picture)
        if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
            shown = picture.convert("RGBA")
            white = Image.new("RGB", shown.size, (255, 255, 255))
            white.paste(shown, mask=shown.getchannel("A"))
            return white
        return picture.convert("RGB")
    except DECODING_ERRORS as error:
        raise ValueError(f"an image cannot be read: {' '.join(str(error).split())}") from error


def data_uri(uri: str) -> bytes:
    """The content of a base64 data URI; ValueError for another or a damaged one."""
    head, comma, body = uri.partition(",")
    if not comma or not head.endswith(";base64"):
        raise ValueError("an image is a data URI that is not base64; write data:image/png;base64,..")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: characters that are not ASCII
        raise ValueError(f"an image is a data URI whose base64 is damaged: {error}") from error


def read_picture(source: bytes | str | Path | Image.Image) -> Image.Image:
    """The RGB picture of a file's content, a data URI, a path or a PIL picture; ValueError in one line for others."""
    if isinstance(source, str) and source.startswith("data:"):
        source = data_uri(source)
    elif isinstance(source, str | Path):
        path = Path(source)
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ValueError(f"an image cannot be read: {path}: {error.strerror}") from error
    if isinstance(source, bytes):
        source = open_picture(source)
    if not isinstance(source, Image.Image):
        kind = type(source).__name__
        raise ValueError(f"an image cannot be read: it is of type {kind}; give a path, a data URI or a PIL image")
    return to_rgb(source)
