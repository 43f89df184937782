"""Weights & Biases, fed from the lines of metrics.jsonl. It may never slow down, change or break a run.

Every stage that logs is a W&B run of its own with the plain names of metrics, so that a project overlays what a run
compares: group is the run's folder, job type the kind of stage, tags are experiment, variant (or method), replicate and
seed. Of a sweep, one more run of job type `verdicts` holds what sweep.json says.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node
from rl_lab.runner.run_folder import Line

FINISH_SECONDS = 60.0
LABELS = ("node", "method", "round", "replicate", "step")
PROJECT = "rl-lab"
TAG_LETTERS = 64
"""W&B takes no longer tags."""
VERDICTS = "verdicts"
SWEEP_FILE = "sweep.json"


class Tracker:
    """Sends metrics from a thread of its own; after its first failure it says so once and does nothing more.

    All files lie in the run folder; `offline`, the default, opens no connection and asks nothing.
    """

    def __init__(self, config: RunConfig, folder: Path, nodes: Iterable[Node]) -> None:
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._config, self._folder = config, folder.absolute()
        self._nodes = {node.name: node for node in nodes}
        if config.wandb != "disabled":
            self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)

    def __enter__(self) -> Tracker:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for what is still on its way."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(FINISH_SECONDS)

    def log(self, line: Line) -> None:
        """Hand over one line of metrics; returns at once."""
        if self._thread is not None:
            self._lines.put(line)

    def _send(self) -> None:
        runs: dict[str, Any] = {}
        try:
            while (line := self._lines.get()) is not None:
                name = line["node"]
                if name not in runs:
                    runs[name] = _start(self._config, self._folder, stage_settings(self._config, self._nodes[name]))
                    runs[name].define_metric("*", step_metric="step")
                values = {key: value for key, value in line.items() if key not in LABELS and value is not None}
                runs[name].log(values | {"step": line["step"]})
            for run in runs.values():
                run.finish()
            self._send_verdicts()
        except Exception as error:  # whatever a tracking service does, the run goes on
            print(f"warning: wandb stopped: {type(error).__name__}: {error}", file=sys.stderr)

    def _send_verdicts(self) -> None:
        """What a sweep found, as the summary of a run."""
        path = self._folder / SWEEP_FILE
        if self._config.sweep is None or not path.is_file():
            return
        config = self._config
        tags = [f"experiment:{config.name}"[:TAG_LETTERS], f"seed:{config.seed}"]
        settings = {"name": VERDICTS, "job_type": VERDICTS, "tags": tags, "config": config.model_dump(mode="json")}
        run = _start(self._config, self._folder, settings)
        run.summary.update(verdict_summary(json.loads(path.read_text())))
        run.finish()


def stage_settings(config: RunConfig, node: Node) -> dict[str, Any]:
    """Name, job type, tags and configuration of a stage's W&B run."""
    arm = "variant" if config.sweep is not None else "method"
    labels = {"experiment": config.name, arm: node.method, "round": node.round, "replicate": node.replicate}
    labels |= {"seed": config.seed}
    known = {key: value for key, value in labels.items() if value is not None}
    own = config.model_copy(update=dict(node.sections)).model_dump(mode="json")
    return {
        "name": node.name,
        "job_type": node.kind,
        "tags": [f"{key}:{value}"[:TAG_LETTERS] for key, value in known.items()],
        "config": own | {"stage": node.name, "kind": node.kind} | known,
    }


def verdict_summary(sweep: Line) -> Line:
    """Of a sweep.json by variant: truth, difference over the baseline with its ends, standing, number of alarms."""
    found: Line = {"baseline": sweep["baseline"]}
    for row in sweep["variants"]:
        name, verdict = row["variant"], row.get("verdict")
        found[f"{name}/truth"] = None if row["reward"] is None else row["reward"]["value"]
        found[f"{name}/alarms"] = len(row["alarms"])
        if verdict:
            ends = {"over_baseline": "value", "low": "low", "high": "high"}
            found |= {f"{name}/{key}": verdict["difference"][part] for key, part in ends.items()}
            found |= {f"{name}/standing": verdict["standing"], f"{name}/holds_for": verdict["scope"]}
    return found


def _start(config: RunConfig, folder: Path, settings: Line) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CONFIG_DIR", str(folder / "wandb"))
    import wandb

    # On a full disk each line of wandb's own log would print a traceback.
    logging.raiseExceptions = False
    return wandb.init(
        project=PROJECT,
        group=folder.name,
        dir=str(folder),
        mode=config.wandb,
        reinit="create_new",
        settings=wandb.Settings(console="off", disable_git=True, x_disable_meta=True, init_timeout=60),
        **settings,
    )
