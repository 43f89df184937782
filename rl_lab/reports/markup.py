"""HTML of all pages: Jinja2 templates hold it, and escape every text that they show."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from rl_lab.reports.estimates import SUCCESS, Estimate, Write
from rl_lab.reports.numbers import p_text, rate

__all__ = ["Cell", "Markup", "Tile", "escape", "estimate_text", "macros", "minus", "parts"]


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
    finalize=lambda value: "" if value is None else value,
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


def estimate_text(one: Estimate | None, write: Write | None = None) -> Markup | str:
    """An estimate with its interval, empty where there is none; a difference is coloured where that excludes 0."""
    if one is None:
        return ""
    if one.refused is not None:
        return parts.titled("not paired", one.refused)
    write = write or one.write
    unit = " %" if write is rate else ""
    texts = minus(f"{write(one.value)}{unit}"), minus(f" {one.ends(write)}{unit}")
    if one.over is None:
        return parts.estimate(*texts)
    title = f"{one.n} items, {one.replicates} replicates"
    if one.how == SUCCESS:
        title = f"{one.won} episodes won, {one.lost} lost, p {p_text(one.p)}"
    return parts.estimate(*texts, one.standing, title)
