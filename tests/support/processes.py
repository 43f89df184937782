"""Runs whose processes are killed at chosen moments, resumed until they are done, and compared with an unbroken run.

Processes are found by the titles that Ray gives them (`ray::Simulation.collect`) below the run's own process. What an
unbroken run shows, which processes work in which stage, when and for how long, decides what is killed in the other one.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rl_lab.common.files import read_json_lines

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 1800
LOOK_S = 0.05
PROCESSES = {
    "learner": re.compile(r"ray::\w*Learner\w*(\.|$)"),
    "engine": re.compile(r"ray::Rollouter(\.|$)"),
    "simulation": re.compile(r"ray::Simulation(\.|$)"),
}
DRIVER = "driver"
KILLS = pytest.StashKey[list[tuple[str, list["KillPoint"], list["KillPoint"]]]]()
"""Of a test session: name of a run, kill points that were met, and missed."""


@dataclass(frozen=True)
class KillPoint:
    """One process of a run that is killed while a stage runs."""

    node: str
    kind: str
    """Of the node."""
    process: str
    after_lines: int
    """Lines of metrics that the stage has written by then."""
    after_s: float
    """Seconds after that, or after the stage has begun."""

    def __str__(self) -> str:
        when = f"step {self.after_lines} + {self.after_s:.1f} s" if self.after_lines else f"{self.after_s:.1f} s in"
        return f"{self.node:24} {self.process:10} {when}"


@dataclass
class Seen:
    """What an unbroken run showed of a stage."""

    node: str
    kind: str
    seconds: float = 0.0
    lines: int = 0
    processes: set[str] = field(default_factory=set)
    writing: list[float] = field(default_factory=list)
    """When lines were seen for the first time and last, seconds."""


def titles(pid: int) -> dict[int, str]:
    """The command lines of all processes below a process."""
    parents, found = {}, {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            stat, command = (path / "stat").read_text(), (path / "cmdline").read_bytes()
        except OSError:
            continue
        parents[int(path.name)] = int(stat.rpartition(")")[2].split()[1])
        found[int(path.name)] = command.partition(b"\0")[0].decode(errors="replace")

    def is_below(number: int) -> bool:
        while number in parents:
            number = parents[number]
            if number == pid:
                return True
        return False

    return {number: title for number, title in found.items() if is_below(number)}


def descendants(pid: int, title: str) -> list[int]:
    """Processes below `pid` whose command line starts with `title`."""
    return [number for number, found in titles(pid).items() if found.startswith(title)]


class Run:
    """`python -m rl_lab.run` in a session and a working directory of its own, and so with a store of its own."""

    def __init__(self, folder: Path, *arguments: str, log: Path | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.path, self.log = folder, folder / "run", log or folder / "log.txt"
        self.arguments = [*arguments] if "--resume" in arguments else [*arguments, "--run-dir", "run"]
        self._start(self.arguments)

    def _start(self, arguments: Iterable[str]) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rl_lab.run", *arguments],
                **{"cwd": self.folder, "env": environment, "stdout": log, "stderr": log, "start_new_session": True},
            )

    def resume(self) -> None:
        """Go on after the driver was killed, as a user would; from the start if it had not got a config yet."""
        self._start(["--resume", "run"] if (self.path / "config.yaml").is_file() else self.arguments)

    @property
    def is_over(self) -> bool:
        """Whether the driver has ended."""
        return self.process.poll() is not None

    def rows(self) -> list[dict[str, Any]]:
        """The stages with their status."""
        path = self.path / "stages.json"
        return json.loads(path.read_text())["nodes"] if path.is_file() else []

    def status(self, node: str) -> str:
        """Of one stage."""
        return next((row["status"] for row in self.rows() if row["name"] == node), "pending")

    def lines(self, node: str) -> int:
        """Lines of metrics of a stage."""
        return sum(line["node"] == node for line in read_json_lines(self.path / "metrics.jsonl", missing_ok=True))

    def working(self, process: str) -> list[int]:
        """Processes of a kind that are in the middle of a call."""
        pattern = PROCESSES[process]
        return [pid for pid, title in titles(self.process.pid).items() if pattern.match(title) and "." in title]

    def wait_for(self, reached: Callable[[], Any]) -> Any:
        """What `reached` gives as soon as it is true; fails with the log if the run ends or time runs out first."""

        def found() -> Any:
            assert not self.is_over, self.log.read_text()
            return reached()

        return _until(self, found)

    def kill_driver(self) -> None:
        """SIGKILL; Ray's processes notice by themselves."""
        self.process.kill()
        self.process.wait()

    def finish(self) -> None:
        """Wait for a good end."""
        code = self.process.wait(PATIENCE_S)
        assert code == 0, self.log.read_text()[-4000:]

    def watch(self) -> list[Seen]:
        """Wait for a good end; which processes work while which stages run, in the order of their start."""
        seen: dict[str, Seen] = {}
        began = time.monotonic()
        while not self.is_over:
            assert time.monotonic() - began < PATIENCE_S, self.log.read_text()[-4000:]
            below = titles(self.process.pid).values()
            busy = {name for name, pattern in PROCESSES.items() for t in below if pattern.match(t) and "." in t}
            for row in self.rows():
                if row["status"] == "running":
                    stage = seen.setdefault(row["name"], Seen(row["name"], row["kind"]))
                    stage.processes.update(busy)
                    if (lines := self.lines(row["name"])) > stage.lines:
                        stage.lines, stage.writing = lines, [*stage.writing[:1], time.monotonic()]
            time.sleep(LOOK_S)
        self.finish()
        for row in self.rows():
            if row["name"] in seen:
                seen[row["name"]].seconds, seen[row["name"]].lines = row["seconds"], self.lines(row["name"])
        return list(seen.values())


WORKERS = {
    **dict.fromkeys(("demos", "evaluate", "collect", "questions"), {"simulation"}),
    **dict.fromkeys(("sft", "optimise", "cold_start", "warm_start", "rft", "imitate"), {"learner"}),
    **dict.fromkeys(("examine", "traces"), {"engine"}),
    **dict.fromkeys(("grpo", "distill"), {"engine", "learner"}),
    "joint": {"engine", "learner", "simulation"},
}
"""Workers of a stage of each kind; others that were seen meanwhile belong to a stage beside it."""


def choose(seen: list[Seen], draw: np.random.Generator, kinds: Iterable[str] | None = None) -> list[KillPoint]:
    """A random moment of a random stage of every kind (or of these kinds) for each process that works in it."""
    points: list[KillPoint] = []
    by_kind: dict[str, list[Seen]] = defaultdict(list)
    for stage in seen:
        if kinds is None or stage.kind in kinds:
            by_kind[stage.kind].append(stage)
    for kind, stages in by_kind.items():
        for process in sorted({DRIVER} | WORKERS.get(kind, set())):
            with_it = [stage for stage in stages if process == DRIVER or process in stage.processes]
            if with_it:
                points.append(_moment(with_it[draw.integers(len(with_it))], process, draw))
    order = [stage.node for stage in seen]
    return sorted(points, key=lambda point: (order.index(point.node), point.after_lines, point.after_s))


def _moment(stage: Seen, process: str, draw: np.random.Generator) -> KillPoint:
    """Some way into the stage: behind one of its lines, where it writes several, else after a share of its time."""
    if stage.lines >= 3:
        per_line = (stage.writing[-1] - stage.writing[0]) / stage.lines  # start and end of the stage are left out
        lines = int(draw.integers(1, max(2, 2 * stage.lines // 3)))
        return KillPoint(stage.node, stage.kind, process, lines, round(float(draw.uniform(0, min(per_line, 1.0))), 2))
    return KillPoint(stage.node, stage.kind, process, 0, round(float(draw.uniform(0.05, 0.4)) * stage.seconds, 2))


def kill(run: Run, points: Iterable[KillPoint]) -> tuple[list[KillPoint], list[KillPoint]]:
    """Kill at one point after the other, resuming after each death of the driver; points that were met, and missed.

    A point is missed where its stage, or its process, was over before its moment came.
    """
    met, missed = [], []
    for point in points:
        pids = _wait_for(run, point)
        if pids is None:
            missed.append(point)
        elif point.process == DRIVER:
            run.kill_driver()
            run.resume()
            met.append(point)
        else:
            os.kill(pids[0], signal.SIGKILL)
            met.append(point)
            _until(run, lambda dead=pids[0]: not Path(f"/proc/{dead}/cmdline").exists() or run.is_over)
    return met, missed


def _until(run: Run, reached: Callable[[], Any]) -> Any:
    began = time.monotonic()
    while not (found := reached()):
        assert time.monotonic() - began < PATIENCE_S, run.log.read_text()[-4000:]
        time.sleep(LOOK_S)
    return found


def _wait_for(run: Run, point: KillPoint) -> list[int] | None:
    """The processes that the point is about, at its moment; None if that has passed."""

    def gone() -> bool:
        if run.is_over:
            assert run.process.returncode == 0, run.log.read_text()[-4000:]
            return True
        return run.status(point.node) == "done"

    began: list[float] = []

    def reached() -> list[int] | str | None:
        if gone():
            return "gone"
        if run.status(point.node) != "running" or run.lines(point.node) < point.after_lines:
            return None
        began.append(time.monotonic())
        if time.monotonic() - began[0] < point.after_s:
            return None
        return [run.process.pid] if point.process == DRIVER else run.working(point.process)

    found = _until(run, reached)
    return None if isinstance(found, str) else found
