"""`python -m rl_lab.watch`: what a run does now, read from its folder, and its report as pages of this machine."""

import json
import threading
import time
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from rl_lab.common.errors import UserError
from rl_lab.graph.heartbeat import LIVE_FILE, Heartbeat
from rl_lab.reports.live_report import LiveReport, LiveServer
from rl_lab.reports.pages.live import live_section
from rl_lab.reports.run import load_run
from rl_lab.watch import main
from rl_lab.workers.pool import _Worker
from tests.support.pages import outline_of, visible
from tests.support.run_folders import build_run

NOW = 1_000_000.0
SIGNS = {
    "time": NOW - 3,
    "every_s": 5.0,
    "host": "far",
    "pid": 7,
    "stages": {"rpro.2.evaluate": {"done": 12, "total": 40, "left_s": 75.0}},
    "workers": [{"name": "simulation-0", "doing": "working", "seconds": 8.0, "idle": 0.25, "replaced": 2}],
}


@pytest.fixture
def run(tmp_path):
    """A run whose last evaluation is running."""
    path = build_run(tmp_path / "run", n=4, pairs=1, steps=4, videos=0)
    return set_status(path, "rpro.2.evaluate", "running")


def set_status(path, node, status):
    stages = json.loads((path / "stages.json").read_text())
    next(row for row in stages["nodes"] if row["name"] == node)["status"] = status
    (path / "stages.json").write_text(json.dumps(stages))
    return path


def now_of(path):
    return visible(str(live_section(load_run(path), "v", NOW)))


def test_a_driver_that_writes_is_alive_and_says_what_stages_and_workers_do(run):
    (run / LIVE_FILE).write_text(json.dumps(SIGNS))
    with (run / "metrics.jsonl").open("a") as file:
        line = {"node": "rpro.2.evaluate", "step": 9, "idle/learner": 0.5, "mismatch/mean": 0.0125}
        file.write(json.dumps(line | {"rollouts/staleness": 1.0}) + "\n")
    text = now_of(run)
    assert "Running: process 7 on far wrote 3 s ago." in text
    assert "12 of 40" in text and "1 min 15 s left" in text and "1 running" in text
    assert "simulation-0 working for 8 s 25 % 2" in text
    assert "rpro.2.evaluate 9 50 % 0.0125 1" in text


@pytest.mark.parametrize("signs", [SIGNS | {"time": NOW - 31}, SIGNS | {"time": NOW - 4000}])
def test_a_driver_that_has_not_written_for_long_is_an_alarm(run, signs):
    (run / LIVE_FILE).write_text(json.dumps(signs))
    assert "No sign of process 7 on far for" in now_of(run) and f"--resume {run}" in now_of(run)


def test_a_run_without_a_driver_is_stopped_or_finished(run):
    assert "Not running, and not finished; continue it with" in now_of(run)
    (run / LIVE_FILE).write_text("{torn")
    assert "Not running" in now_of(run)
    set_status(run, "rpro.2.evaluate", "done")
    assert "Finished." in now_of(run)


def test_a_heartbeat_is_there_while_its_body_runs_and_no_trouble_where_it_cannot_be(tmp_path):
    counts = iter(range(1000))
    with Heartbeat(tmp_path, lambda: {"count": next(counts)}, every_s=0.01):
        deadline = time.monotonic() + 20
        while not (tmp_path / LIVE_FILE).exists() or json.loads((tmp_path / LIVE_FILE).read_text())["count"] < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert json.loads((tmp_path / LIVE_FILE).read_text())["every_s"] == 0.01
    assert not (tmp_path / LIVE_FILE).exists()
    with Heartbeat(tmp_path / "nowhere", dict, every_s=0.01):
        time.sleep(0.05)


def test_a_worker_says_what_it_does_and_how_idle_it_was():
    now = time.monotonic()
    worker = _Worker("simulation-1", None, is_new=False, busy_s=10.0, since=now - 20, began=now - 40)
    status = worker.status()
    assert (status["doing"], status["replaced"]) == ("working", 0)
    assert status["idle"] == pytest.approx(0.25, abs=0.02) and status["seconds"] == pytest.approx(20, abs=1)
    assert _Worker("x", None).status()["doing"] == "waiting"


@pytest.fixture
def served(run):
    """A run's report, and a function that asks its server."""
    report = LiveReport(run, every_s=0.05)
    with LiveServer(report, 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def ask(name="", base=server.address, **headers):
            with urlopen(Request(base + name, headers=headers), timeout=60) as answer:
                return answer.read().decode()

        yield report, ask
        server.shutdown()


def test_the_page_is_the_report_below_what_happens_now(served, run):
    before = sorted(path.name for path in run.iterdir())
    _, ask = served
    page = ask()
    text = visible(page)
    assert page.index('id="now"') < page.index('class="verdict"') and "Success and completion steps" in text
    assert "This report is incomplete" not in text, "that stages run is said above"
    outline_of(page)
    assert ask("now").lstrip().startswith('<section id="now"')
    assert sorted(path.name for path in run.iterdir()) == before, "nothing is written into the folder"


def test_only_who_has_the_address_is_answered_and_no_other_site(served):
    _, ask = served
    for base, headers in (
        (ask.__defaults__[1].rsplit("/", 2)[0] + "/", {}),
        (ask.__defaults__[1], {"Host": "evil.example"}),
        (ask.__defaults__[1], {"Origin": "http://evil.example"}),
    ):
        with pytest.raises(HTTPError, match="403"):
            ask(base=base, **headers)
    for name in ("study.html", "config.yaml", "../config.yaml"):
        with pytest.raises(HTTPError, match="404"):
            ask(name)


def test_the_report_follows_what_the_run_writes_and_outlives_a_damaged_folder(served, run):
    report, ask = served
    threading.Thread(target=report.follow, daemon=True).start()

    def wait_for(text):
        deadline = time.monotonic() + 60
        while text not in ask() + ask("now"):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)

    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"node": "rpro.2.optimise", "step": 3, "alarm": "something new: alarm"}) + "\n")
    wait_for("something new: alarm")
    (run / "config.yaml").unlink()
    wait_for("The report is an older one:")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a run folder"):
        main([str(tmp_path)])
