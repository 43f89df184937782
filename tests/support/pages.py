"""What a page of HTML shows, and what a browser makes of it."""

import html
import json
import shutil
import subprocess
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from rl_lab.reports.pages.run import build_page
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"br", "img", "input", "link", "meta"}


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


def outline_of(page):
    """The outline of a page whose links have their targets, whose ids occur once, and that fetches nothing."""
    outline = Outline(page)
    targets = [value[1:] for name, key, value in outline.attributes if (name, key) == ("a", "href")]
    assert set(targets) <= set(outline.identifiers) and len(set(outline.identifiers)) == len(outline.identifiers)
    for name, key, value in outline.attributes:
        if key in ("src", "href", "action", "data", "poster", "srcset"):
            assert value.startswith(("data:", "#")), (name, key, value[:60])
    return outline


def page_of(path):
    """The report of a run folder."""
    run = load_run(path)
    return build_page(run, measure(run))


def visible(page):
    return " ".join(" ".join(Outline(page).text).split())


PRELUDE = """
const pick = (label, value) => {
  const control = document.querySelector(`[aria-label="${label}"]`);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const names = () => [...document.querySelectorAll(".pool-list button")].map((button) => button.dataset.item);
const tokens = () => [...document.querySelectorAll(".rollout .tokens span")].map((t) => [t.textContent, t.title]);
const found = {};
"""
"""What a test's script may use; what it puts into `found` is the result."""
RESULT = """
const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
document.body.append(out);
"""
BUDGETS_MS = (4_000, 40_000, 400_000)
"""Of virtual time, which may pass before a busy machine has run the script; then more is given."""


def found_in_browser(path, script):
    """What a script of the test's own finds in a page that a browser shows."""
    script = f"<script>(async () => {{{PRELUDE}{script}{RESULT}}})()</script>"
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / "probe.html"
        probe.write_text(path.read_text().replace("</body>", f"{script}</body>"))
        for budget in BUDGETS_MS:
            command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/{budget}"]
            command += [f"--virtual-time-budget={budget}", "--dump-dom", probe.as_uri()]
            dom = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
            if '<pre id="found">' in dom:
                return json.loads(html.unescape(dom.split('<pre id="found">')[1].split("</pre>")[0]))
    raise AssertionError("the script did not come to its end")
