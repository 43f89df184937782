"""HTML of all pages: Jinja2 templates hold it, and escape every text that they show."""

from __future__ import annotations

from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

__all__ = ["Cell", "Markup", "Tile", "escape", "macros", "parts"]


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
