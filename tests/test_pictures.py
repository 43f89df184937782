"""Pictures of every kind: as vLLM reads them, or refused by name; and all places that read one agree."""

import base64
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from rl_lab.common.pictures import read_picture
from rl_lab.model.chat import ImageProcessor, to_rgb
from rl_lab.records.question_files import read_image
from rl_lab.records.robotwin import RGB_MARK, decode_image
from rl_lab.reports.pages.markup import picture as small_picture

LEFT_RED = np.zeros((16, 24, 3), np.uint8)
LEFT_RED[:, :12, 0] = 255
ORIENTATION = 0x0112


def encoded(picture, kind="PNG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(kind="PNG"):
    """A picture that is stored lying and marked to be turned by 90 degrees clockwise (orientation 6)."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    return encoded(Image.fromarray(LEFT_RED), kind, exif=exif)


def pixels(data):
    return np.asarray(read_picture(data))


def kinds():
    """Files of many modes, by name."""
    grey = np.tile(np.arange(0, 256, 16, dtype=np.uint8), (16, 1))
    colour = Image.fromarray(np.stack([grey, grey.T, grey[::-1]], -1))
    see_through = colour.copy()
    see_through.putalpha(Image.fromarray(grey))
    palette = colour.quantize(8)
    return {
        "grey": encoded(Image.fromarray(grey)),
        "bits": encoded(Image.fromarray(grey).convert("1")),
        "palette": encoded(palette),
        "palette with transparency": encoded(palette, transparency=3),
        "palette with alphas": encoded(see_through.quantize(8)),
        "colour key": encoded(colour, transparency=(0, 0, 240)),
        "alpha": encoded(see_through),
        "grey with alpha": encoded(see_through.convert("LA")),
        "webp with alpha": encoded(see_through, "WEBP", lossless=True),
        "CMYK": encoded(colour.convert("CMYK"), "JPEG", quality=95),
        "JPEG": encoded(colour, "JPEG", quality=95),
        "turned PNG": turned(),
        "turned JPEG": turned("JPEG"),
        "GIF": encoded(palette, "GIF"),
        "photographs of one MPO": encoded(colour, "MPO", save_all=True, append_images=[colour.rotate(90)]),
    }


@pytest.mark.parametrize("name", kinds())
def test_every_kind_of_picture_is_read_as_vllm_reads_it(name):
    media = pytest.importorskip("vllm.multimodal.media.image")
    data = kinds()[name]
    np.testing.assert_array_equal(pixels(data), np.asarray(media.ImageMediaIO().load_bytes(data).media))


def test_orientation_and_alpha_by_hand():
    upright = pixels(turned())
    assert upright.shape == (24, 16, 3)
    assert (upright[:12] == (255, 0, 0)).all() and (upright[12:] == 0).all()
    half = Image.fromarray(np.full((1, 1, 4), (0, 0, 0, 51), np.uint8))
    assert pixels(encoded(half)).tolist() == [[[204, 204, 204]]]


def test_all_readers_turn_a_picture_the_same_way(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(turned())
    upright = pixels(turned())
    for value in ("a.png", {"bytes": turned(), "path": None}, {"bytes": None, "path": "a.png"}, Image.open(path)):
        np.testing.assert_array_equal(read_image(value, tmp_path), upright)
    np.testing.assert_array_equal(to_rgb(Image.open(path)), upright)
    processor = ImageProcessor(patch_size=16, min_pixels=16, max_pixels=2**20)
    ((fetched,),) = processor.fetch_images([[str(path)]])
    np.testing.assert_array_equal(fetched, upright)
    read = small_picture(path)
    assert Image.open(io.BytesIO(base64.b64decode(read.split(",")[1]))).size == (16, 24)


def test_frames_of_robotwin_are_turned_too():
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    square = np.zeros((16, 16, 3), np.uint8)
    square[:, :8, 0] = 255
    data = encoded(Image.fromarray(square), "JPEG", quality=100, subsampling=0, exif=exif, comment=RGB_MARK)
    frame = decode_image(data, 16)
    assert frame[2, 8, 0] > 200 and frame[13, 8, 0] < 50


def bomb():
    """The header of a PNG of 60,000 x 60,000 pixels."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )


def refused():
    deep = Image.fromarray(np.array([[0, 300, 65535]], np.uint16))
    frames = [Image.fromarray(LEFT_RED), Image.fromarray(LEFT_RED[:, ::-1])]
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    return {
        "16 bits": (encoded(deep), "more than 8 bits a channel .*I;16"),
        "16 bits in TIFF": (encoded(deep, "TIFF"), "more than 8 bits a channel"),
        "floats": (encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "more than 8 bits a channel"),
        "animation": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), "GIF of 2 frames"),
        "APNG": (encoded(frames[0], save_all=True, append_images=frames[1:]), "PNG of 2 frames"),
        "pages": (encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]), "TIFF of 2 frames"),
        "truncated PNG": (encoded(Image.fromarray(noise))[:-700], "an image cannot be read"),
        "truncated JPEG": (encoded(Image.fromarray(noise), "JPEG")[:-300], "an image cannot be read"),
        "bomb": (bomb(), "an image cannot be read.*decompression bomb"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n", "an image cannot be read"),
        "nothing": (b"", "an image cannot be read"),
    }


@pytest.mark.parametrize("name", refused())
def test_what_has_no_right_reading_is_refused_in_one_line(name):
    data, reason = refused()[name]
    with pytest.raises(ValueError, match=reason) as error:
        read_picture(data)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_damaged_uri_are_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="an image cannot be read: .*none.png: No such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ValueError, match="base64 is damaged"):
        read_picture("data:image/png;base64,ä")


def test_a_picture_too_narrow_for_patches_is_refused_where_it_is_read(tmp_path):
    narrow = np.zeros((1, 201, 3), np.uint8)
    for value in (narrow, {"bytes": encoded(Image.fromarray(narrow))}):
        with pytest.raises(ValueError, match="image of 1 x 201 pixels is too narrow; keep the sides within 1:200"):
            read_image(value, tmp_path)
    assert read_image(narrow[:, :200], tmp_path).shape == (1, 200, 3)
