"""The report of a run folder as pages that follow the run, on a port of this machine alone.

`/SECRET/` is the report with what the run does now above it, `/SECRET/now` that section alone, and
`study.html` the page of a study. Nothing is written into the folder. The secret is the server's own, so that
other users of the machine cannot read along.
"""

from __future__ import annotations

import hmac
import secrets
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from rl_lab.common.errors import UserError, one_line
from rl_lab.common.listening import ADDRESS, NOT_OURS, BoundedClients, PageHandler
from rl_lab.graph.run_folder import CONFIG_FILE, STAGES_FILE
from rl_lab.graph.store import METRICS_FILE
from rl_lab.reports.pages.live import live_section
from rl_lab.reports.pages.run import build_page
from rl_lab.reports.pages.study import STUDY_PAGE, build_study
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure

HTML = "text/html; charset=utf-8"
LEAST_REST = 2.0
"""Between two builds lies at least so many times what one takes: watching shall not slow a run down."""


class LiveReport:
    """The pages of a run as they were last built, built anew when the run has written."""

    def __init__(self, path: Path, every_s: float) -> None:
        """UserError if there is no run folder."""
        self._path, self._every_s = path, every_s
        self._problem: str | None = None
        self._stamp: object = None
        self._build()

    def follow(self) -> None:
        """Build for ever, in a thread of its own."""
        while True:
            began = time.monotonic()
            if self._written() != self._stamp:
                try:
                    self._build()
                    self._problem = None
                except (UserError, OSError, ValueError) as error:
                    self._problem = f"The report is an older one: {one_line(error)}"
            time.sleep(max(self._every_s, LEAST_REST * (time.monotonic() - began)))

    def _written(self) -> object:
        """Changes with whatever the driver writes down: a line of a training, or a stage that begins or ends."""
        paths = [self._path / name for name in (CONFIG_FILE, STAGES_FILE, METRICS_FILE)]
        states = [path.stat() if path.exists() else None for path in paths]
        return [state and (state.st_mtime_ns, state.st_size) for state in states]

    def _build(self) -> None:
        stamp = self._written()
        run = load_run(self._path)
        summary = measure(run)
        version = secrets.token_hex(4)
        page = build_page(run, summary, live_section(run, version, time.time()), self._every_s)
        pages = {"": page}
        if "study" in summary:
            pages[STUDY_PAGE] = build_study(run, summary["study"])
        self._run, self._version, self._pages, self._stamp = run, version, pages, stamp

    def page(self, name: str) -> str | None:
        """What stands under a name of the address; None for nothing."""
        if name == "now":
            return str(live_section(self._run, self._version, time.time(), self._problem))
        return self._pages.get(name)


class LiveServer(BoundedClients, HTTPServer):
    """Serves one live report; OSError for a port that cannot be had."""

    full = b"HTTP/1.0 503 too many connections\r\n\r\n"

    def __init__(self, report: LiveReport, port: int) -> None:
        super().__init__((ADDRESS, port), _Handler)
        self.report, self.secret = report, secrets.token_urlsafe(16)

    @property
    def address(self) -> str:
        """What to open in a browser."""
        return f"http://{ADDRESS}:{self.server_address[1]}/{self.secret}/"


class _Handler(PageHandler, BaseHTTPRequestHandler):
    server: LiveServer

    def do_GET(self) -> None:
        secret, _, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        known = hmac.compare_digest(secret.encode(), self.server.secret.encode())
        if not self.is_ours() or not known:
            self.answer(403, "text/plain", NOT_OURS if known else b"open the address that rl_lab.watch printed\n")
            return
        page = self.server.report.page(name)
        if page is None:
            self.answer(404, "text/plain", b"there is no such page\n")
        else:
            self.answer(200, HTML, page.encode())
