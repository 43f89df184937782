"""HTML of all pages: Jinja2 templates hold it, escape every text that they show, and draw estimates as they stand.

A page is one file that needs no network, with the style sheets and scripts that its template names. Pictures inside it
are small, within a budget, and honest about what was left out.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from rl_lab.common.pictures import read_picture
from rl_lab.reports.estimates import SUCCESS, Estimate, Write
from rl_lab.reports.numbers import p_text, rate

__all__ = ["Cell", "Markup", "Tile", "escape", "macros", "minus", "parts", "tile"]


class Cell(NamedTuple):
    """A table cell with a CSS class."""

    content: Any
    css: str


class Tile(NamedTuple):
    """One number with what it is and how sure it is."""

    title: str
    value: str
    detail: str
    css: str = ""


ENVIRONMENT = Environment(
    loader=PackageLoader("rl_lab.reports"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: estimate_text(value) if value is None or isinstance(value, Estimate) else value,
)

ENVIRONMENT.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}


def macros(name: str) -> Any:
    """The macros of a template, each a function that gives Markup."""
    return ENVIRONMENT.get_template(f"{name}.html.jinja").module


parts = macros("parts")
"""What all pages share: tables, cells, figures."""


def minus(text: str) -> str:
    """With a real minus sign."""
    return text.replace("-", "\u2212")


def typeset(sentence: str) -> str:
    """A sentence of `verdict` with real minus signs and unbroken p-values."""
    return re.sub(r"p ([<=]) ", "p\u00a0\\1\u00a0", re.sub(r"(?<=[ ([])-(?=\d)", "\u2212", sentence))


def estimate_text(one: Estimate | None) -> Markup | str:
    """An estimate with its interval, empty where there is none; a difference is coloured where that excludes 0."""
    if one is None:
        return ""
    if one.refused is not None:
        return parts.titled("not paired", one.refused)
    unit = " %" if one.write is rate else ""
    texts = minus(f"{one.write(one.value)}{unit}"), minus(f" {one.ends()}{unit}")
    if one.over is None:
        return parts.estimate(*texts)
    title = f"{one.n} items, {one.replicates} replicates"
    if one.how == SUCCESS:
        title = f"{one.won} episodes won, {one.lost} lost, p {p_text(one.p)}"
    return parts.estimate(*texts, one.standing, title)


def tile(title: str, one: Estimate, detail: str, write: Write | None = None) -> Tile:
    """An estimate, and its interval behind the detail; a difference is coloured where that excludes 0."""
    write, css = write or one.write, "" if one.over is None else one.standing
    return Tile(title, minus(write(one.value)), minus(f"{detail} {one.ends(write)}"), css)


POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of every page: whatever a config or an instruction contains, nothing is fetched."""
LIVE_POLICY = f"{POLICY}; connect-src 'self'"
"""Of a page that follows a run: it asks the server that gave it, and nobody else."""


def asset(name: str) -> Markup:
    """A style sheet or script beside this file."""
    return Markup(resources.files("rl_lab.reports").joinpath(name).read_text(encoding="utf-8"))


def document(template: str, /, policy: str = POLICY, **values: Any) -> str:
    """The page of a template that extends `page.html.jinja`."""
    page = ENVIRONMENT.get_template(f"{template}.html.jinja")
    return page.render(values, asset=asset, policy=policy)


IMAGE_SIDE = 360
"""Longest side of a picture in pixels; larger ones are scaled down."""


def picture(image: bytes | Path) -> str:
    """A picture as a data URI of at most IMAGE_SIDE pixels. ValueError if it is none."""
    small = read_picture(image)
    small.thumbnail((IMAGE_SIDE, IMAGE_SIDE))
    return webp(small, 80)


def webp(image: Image.Image, quality: int) -> str:
    """A picture as it is, as a data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=4)
    return data_uri(buffer.getvalue())


def data_uri(content: bytes, kind: str = "image/webp") -> str:
    """Of a picture or film."""
    return f"data:{kind};base64," + base64.b64encode(content).decode()


class ImageBudget:
    """Encoded pictures within a budget of bytes, and how many were left out or could not be read."""

    def __init__(self, budget: int) -> None:
        self.left, self.without, self.broken = budget, 0, 0

    def encode(self, images: Iterable[bytes | Path]) -> list[str]:
        """Data URIs of those that can be read and fit."""
        shown: list[str] = []
        for image in images:
            try:
                uri = picture(image)
            except ValueError:
                self.broken += 1
                continue
            if len(uri) > self.left:
                self.without += 1
                continue
            self.left -= len(uri)
            shown.append(uri)
        return shown

    def problems(self) -> list[str]:
        """What the page lacks, one line each."""
        lines = [f"{self.without} pictures did not fit into the page"] if self.without else []
        return [*lines, *([f"{self.broken} pictures are missing or cannot be read"] if self.broken else [])]
