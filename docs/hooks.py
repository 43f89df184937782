"""What mkdocs is told besides mkdocs.yml: the pages of the root belong to the site, and a reference from docstrings.

Links in the pages are those of the repository, so that they work there too; here they are led to the pages of the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
ORIGINS = {
    "index.md": "README.md",
    "experiments.md": "experiments/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changes.md": "CHANGELOG.md",
}
"""Pages of the site whose file is not in docs/."""
PLACES = {origin: page for page, origin in ORIGINS.items()}
LIBRARIES = {
    "algos": "Methods as losses, samplers and data transforms, beside their equations.",
    "algos.curriculum": "The frontier curriculum: what is drawn, and what is believed of an item.",
    "envs": "Environments, rollback, types and rotations.",
    "envs.tabletop": "The embedded MuJoCo environment.",
    "envs.spatial_qa": "Questions about scenes, with true answers.",
    "rewards": "Rewards of episodes and texts.",
    "rl_lab.contracts": "What code of one's own has to keep, which `rl_lab.check` tries.",
    "rl_lab.model": "The model, its checkpoints and its preprocessing.",
    "rl_lab.config": "The sections of an experiment; see also the [configuration reference](../configuration.md).",
}
"""Folders that the reference shows, a page each."""
LINK = re.compile(r"(!?\[[^\]]*\])\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: MkDocsConfig) -> None:
    """The reference's place in the navigation becomes its pages."""
    pages = [{name: f"api/{name}.md"} for name in LIBRARIES]
    for section in config.nav or ():
        for entries in section.values():
            if isinstance(entries, list) and {"Libraries": "api/"} in entries:
                entries[entries.index({"Libraries": "api/"})] = {"Libraries": pages}


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Pages of the root, and one of the reference for each folder."""
    for page, origin in ORIGINS.items():
        files.append(File.generated(config, page, content=(ROOT / origin).read_text()))
    for name, line in LIBRARIES.items():
        modules = sorted(path.stem for path in (ROOT / Path(*name.split("."))).glob("[!_]*.py"))
        parts = [f"# {name}", line, *(f"::: {name}.{module}" for module in modules)]
        files.append(File.generated(config, f"api/{name}.md", content="\n\n".join(parts) + "\n"))


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """A page's links lead to the site's pages; those to other files of the repository are text."""
    if page.file.src_uri.startswith("api/"):
        return markdown
    folder = posixpath.dirname(ORIGINS.get(page.file.src_uri, f"docs/{page.file.src_uri}"))

    def lead(link: re.Match[str]) -> str:
        text, path, anchor = link.groups(default="")
        target = posixpath.normpath(posixpath.join(folder, path))
        if target in PLACES or target.startswith("docs/") or not (ROOT / target).exists():
            return f"{text}({PLACES.get(target, target.removeprefix('docs/'))}{anchor})"
        return text.strip("[]")

    return LINK.sub(lead, markdown)
