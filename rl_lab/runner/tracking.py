"""Weights & Biases, fed from the lines of metrics.jsonl. It may never slow down, change or break a run."""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from rl_lab.config.schema import RunConfig
from rl_lab.runner.run_folder import Line

FINISH_SECONDS = 20.0
LABELS = ("node", "method", "round", "replicate", "step")


class Tracker:
    """Sends metrics from a thread of its own; after its first failure it says so once and does nothing more.

    All files lie in the run folder; `offline`, the default, opens no connection and asks nothing.
    """

    def __init__(self, config: RunConfig, folder: Path) -> None:
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        if config.wandb != "disabled":
            arguments = (config, folder.absolute())
            self._thread = threading.Thread(target=self._send, args=arguments, name="wandb", daemon=True)

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

    def _send(self, config: RunConfig, folder: Path) -> None:
        try:
            run = _start(config, folder)
            known: set[str] = set()
            while (line := self._lines.get()) is not None:
                node = line["node"]
                if node not in known:
                    known.add(node)
                    run.define_metric(f"{node}/*", step_metric=f"{node}/step")
                values = {key: value for key, value in line.items() if key not in LABELS and value is not None}
                run.log({f"{node}/{key}": value for key, value in values.items()} | {f"{node}/step": line["step"]})
            run.finish()
        except Exception as error:  # whatever a tracking service does, the run goes on
            print(f"warning: wandb stopped: {type(error).__name__}: {error}", file=sys.stderr)


def _start(config: RunConfig, folder: Path) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CONFIG_DIR", str(folder / "wandb"))
    import wandb

    # On a full disk each line of wandb's own log would print a traceback.
    logging.raiseExceptions = False
    return wandb.init(
        project="rl-lab",
        name=folder.name,
        dir=str(folder),
        mode=config.wandb,
        config=config.model_dump(mode="json"),
        settings=wandb.Settings(console="off", disable_git=True, x_disable_meta=True, init_timeout=60),
    )
