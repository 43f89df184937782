"""Trackers that follow a run: Weights & Biases, TensorBoard, trackio and MLflow, through accelerate's classes.

They are fed from the lines of metrics.jsonl, and may never slow down, change or break a run. Every stage that logs is a
run of its own with the plain names of metrics, so that a project overlays what a run compares: group is the run's
folder, job type the kind of stage, tags are experiment, method, round and seed. One more run,
`results`, holds what evaluations and examinations measured over the rounds, the verdict, the report and its films; of a
study `verdicts` holds what study.json says.
"""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_lab.common.files import read_json_lines
from rl_lab.config.schema import RunConfig
from rl_lab.config.study import STUDY_FILE
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import SUMMARY_FILE, Line
from rl_lab.graph.tracker_runs import SERVICES, ServiceRun

FINISH_SECONDS = 60.0

LABELS = ("node", "method", "round", "step")

TAG_LETTERS = 64
"""W&B takes no longer tags."""

RESULTS, VERDICTS = "results", "verdicts"

PAGES = ("report.html", "study.html")


def result_line(node: Node, measured: Mapping[str, float]) -> Line:
    """What a stage measured of a model, over the rounds of its method: the line of the run `results`."""
    arm = node.method or node.name.rpartition(".")[0]
    values = {f"{name}/{arm}": value for name, value in measured.items()}
    return {"node": RESULTS, "step": node.round or 0, **values}


class Trackers:
    """All trackers of a run, side by side: what one of them does is nothing to the others."""

    def __init__(self, config: RunConfig, folder: Path, nodes: Iterable[Node]) -> None:
        nodes = list(nodes)
        self._trackers = [Tracker(name, config, folder, nodes) for name in config.trackers_used]

    def __enter__(self) -> Trackers:
        for tracker in self._trackers:
            tracker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for what is still on its way."""
        for tracker in self._trackers:
            tracker.close()
        for tracker in self._trackers:
            tracker.join()

    def log(self, line: Line) -> None:
        """Hand over one line of metrics; returns at once."""
        for tracker in self._trackers:
            tracker.log(line)


class Tracker:
    """Sends metrics to one service from a thread of its own; after its first failure it says so once and stops."""

    def __init__(self, name: str, config: RunConfig, folder: Path, nodes: Iterable[Node]) -> None:
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._name, self._config, self._folder = name, config, folder.absolute()
        self._nodes = {node.name: node for node in nodes}
        self._runs: dict[str, ServiceRun] = {}
        self._thread = threading.Thread(target=self._send, name=name, daemon=True)
        self.start, self.log = self._thread.start, self._lines.put

    def close(self) -> None:
        """No line comes any more."""
        self._lines.put(None)

    def join(self) -> None:
        """Wait a moment for what is still on its way."""
        self._thread.join(FINISH_SECONDS)

    def _send(self) -> None:
        try:
            while (line := self._lines.get()) is not None:
                values = {key: value for key, value in line.items() if key not in LABELS and value is not None}
                self._run(line["node"]).log(values, line["step"])
            self._send_report()
            self._send_verdicts()
            for run in reversed(self._runs.values()):  # MLflow ends the run that began last
                run.finish()
        except Exception as error:  # whatever a tracking service does, the run goes on
            print(f"warning: {self._name} stopped: {type(error).__name__}: {error}", file=sys.stderr)

    def _run(self, name: str) -> ServiceRun:
        if name not in self._runs:
            settings = (
                stage_settings(self._config, self._nodes[name])
                if name in self._nodes
                else run_settings(self._config, name)
            )
            self._runs[name] = _start(self._name, self._config, self._folder, settings)
        return self._runs[name]

    def _send_report(self) -> None:
        """Verdict, pages and films of a finished run."""
        summary = self._folder / SUMMARY_FILE
        if not summary.is_file():
            return
        results = self._run(RESULTS)
        verdict = json.loads(summary.read_text())["verdict"]
        results.text("verdict", "\n".join(verdict))
        for page in filter(Path.is_file, (self._folder / name for name in PAGES)):
            results.page(page)
        for name, film in films(self._folder):
            results.film(f"films/{name}", film)

    def _send_verdicts(self) -> None:
        """What a study found."""
        path = self._folder / STUDY_FILE
        if self._config.study is not None and path.is_file():
            self._run(VERDICTS).summarise(verdict_summary(json.loads(path.read_text())))


def films(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and file of the films of a report, which show the same episode before and after a training."""
    for index in sorted(folder.glob("videos/*/index.jsonl")):
        for row in read_json_lines(index):
            for side in ("before", "after"):
                yield (
                    f"{index.parent.name}/{row['task']}-{row['variant']}-{row['seed']}-{side}",
                    index.parent / row[side],
                )


def run_settings(config: RunConfig, name: str) -> dict[str, Any]:
    """Name, job type, tags and configuration of a run about all stages."""
    tags = [f"experiment:{config.name}"[:TAG_LETTERS], f"seed:{config.seed}"]
    return {"name": name, "job_type": name, "tags": tags, "config": config.model_dump(mode="json")}


def stage_settings(config: RunConfig, node: Node) -> dict[str, Any]:
    """Name, job type, tags and configuration of a stage's run."""
    labels = {"experiment": config.name, "method": node.method, "round": node.round}
    own = node.config or config
    labels |= {"seed": own.seed}
    known = {key: value for key, value in labels.items() if value is not None}
    return {
        "name": node.name,
        "job_type": node.kind,
        "tags": [f"{key}:{value}"[:TAG_LETTERS] for key, value in known.items()],
        "config": own.model_dump(mode="json") | {"stage": node.name, "kind": node.kind} | known,
    }


def verdict_summary(study: Line) -> Line:
    """Of a study.json by method, and before it by factor and value or for all worlds: mean, difference to the control
    with its ends, and p after correction; of every method how many alarms there are."""
    found: Line = {"control": study["control"]}
    rows = [
        ("" if row["factor"] is None else f"{row['factor']}={json.dumps(row['value'])}/", row) for row in study["rows"]
    ]
    rows += [(f"{row['factor']}/", row) for row in study.get("over_all", [])]
    for place, row in rows:
        for one in row["methods"]:
            name, ends = f"{place}{one['method']}", {"over_control": "value", "low": "low", "high": "high"}
            found |= {f"{name}/mean": one["mean"], f"{name}/p": one["corrected_p"]}
            found |= {f"{name}/{key}": one["difference"][end] for key, end in ends.items() if one["difference"]}
    for world in study["details"]:
        found |= {
            f"{name}/alarms": len(said) + found.get(f"{name}/alarms", 0) for name, said in world["alarms"].items()
        }
    return found


def _start(name: str, config: RunConfig, folder: Path, settings: Line) -> ServiceRun:
    return SERVICES[name](folder, config.wandb, settings)
