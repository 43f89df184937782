"""What a page of HTML shows, and what a browser makes of it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"br", "img", "input", "meta"}


class Outline(HTMLParser):
    """Checks nesting and collects attributes and visible text."""

    def __init__(self, page):
        super().__init__()
        self.open, self.attributes, self.text, self.identifiers = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, name, attributes):
        self.attributes += [(name, *pair) for pair in attributes]
        self.identifiers += [value for key, value in attributes if key == "id"]
        if name not in VOID:
            self.open.append(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)


def visible(page):
    return " ".join(" ".join(Outline(page).text).split())


def dumped(path, script):
    """The page's DOM after the browser has run a script of the test's own at its end."""
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.html"
        probe.write_text(path.read_text().replace("</body>", f"<script>(async () => {{{script}}})()</script></body>"))
        command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        command += ["--virtual-time-budget=4000", "--dump-dom", probe.as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
