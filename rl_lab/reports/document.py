"""A whole HTML page: one file that needs no network, with the style sheets and scripts that its template names."""

from __future__ import annotations

from importlib import resources
from typing import Any

from rl_lab.reports.markup import ENVIRONMENT, Markup

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""Content security policy of every page: whatever a config or an instruction contains, nothing is fetched."""


def asset(name: str) -> Markup:
    """A style sheet or script beside this file."""
    return Markup(resources.files("rl_lab.reports").joinpath(name).read_text(encoding="utf-8"))


def document(template: str, /, **values: Any) -> str:
    """The page of a template that extends `page.html.jinja`."""
    page = ENVIRONMENT.get_template(f"{template}.html.jinja")
    return page.render(values, asset=asset, policy=POLICY)
