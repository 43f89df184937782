"""What a stage sees of its run: inputs, configuration, an output folder, and how it reports and stops."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rl_lab.common.files import append_json_line, read_json_lines, write_json_lines
from rl_lab.common.seeding import integer
from rl_lab.common.terminal import ProgressBars
from rl_lab.config.actions import ObjectiveConfig
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import RUNTIME, Node, StageKind
from rl_lab.graph.run_folder import Line, RunFolder, plain_line
from rl_lab.graph.store import METRICS_FILE

STATES_OF_A_STAGE = 10
MOST_STEPS_LOST = 200
"""Where `checkpoint_every` is not given: states a stage, but no more steps between two than this."""


class StageStopped(Exception):  # noqa: N818 - not an error
    """The run is being stopped; raised inside stages by `log`, `progress` and `check_stop`."""


class StageConfig:
    """The sections of the configuration that a stage may read; others would escape its content hash."""

    def __init__(self, config: RunConfig, kind: StageKind) -> None:
        self._config, self._kind = config, kind

    @property
    def policy_code(self) -> str | None:
        """See `RunConfig`; its content is in the hash of the stage that makes the policy."""
        return self._config.policy_code

    def __getattr__(self, name: str) -> Any:
        if name not in (*self._kind.sections(self._config), *RUNTIME):
            raise AttributeError(
                f"stage {self._kind.name} reads config.{name}; list it in reads of {type(self._kind).__name__}"
            )
        return getattr(self._config, name)


def labels(node: Node) -> Line:
    """What identifies a node's lines in metrics.jsonl."""
    return {"node": node.name, "method": node.method, "round": node.round}


@dataclass
class StageContext:
    """All that a stage gets. A stage is `fn(context) -> None`: it reads `inputs` and `config`, and writes into `out`.

    `out` and `scratch` survive a kill: when the run is resumed, the stage is called again with what it had written, and
    continues from there. A stage that continues at a step calls `resume_from(step)` before its first `log`.
    """

    node: Node
    """name, kind, method, round; for `optimise` also objective (ObjectiveConfig) and mix (batch shares)."""
    config: Any
    """The sections that this kind may read (`StageKind.sections`, `RUNTIME`); for the report, the whole RunConfig."""
    inputs: dict[str, Path]
    """Role -> folder of a finished stage, read-only, without those that were skipped; see `Node.inputs`."""
    out: Path
    """Becomes the stage's stored output as it is; for the report, the run folder."""
    scratch: Path
    """For checkpoints and other partial results; deleted when the stage is done."""
    seed: int
    _folder: RunFolder
    _bars: ProgressBars
    _stop: threading.Event
    _track: Callable[[Line], None]
    _started: float = field(default_factory=time.monotonic)
    _resumed: bool = False

    @property
    def objective(self) -> ObjectiveConfig:
        """Settings of the method, in `optimise`."""
        assert self.node.objective is not None, f"{self.node.kind} has no objective"
        return self.node.objective

    def own_seed(self, name: str, *more: int) -> int:
        """Of a name and more numbers in the node's own random stream."""
        return integer(self.seed, name, *self.node.stream, *more)

    @property
    def pairs(self) -> list[Path]:
        """Folders of the preference pairs of rounds 1, 2, ..., this round's last; [] for methods that use none."""
        rounds = sum(role.startswith("pairs.") for role in self.inputs)
        return [self.inputs[f"pairs.{number}"] for number in range(1, rounds + 1)]

    def check_stop(self) -> None:
        """Raise StageStopped if the run is being stopped; call it at least every few seconds."""
        if self._stop.is_set():
            raise StageStopped

    def log(self, step: int, **metrics: float | int | str | None) -> None:
        """Append one line of metrics, with `time` in seconds since the stage began; also a `check_stop`."""
        if not self._resumed:
            self.resume_from(-1)
        line = plain_line({"step": step, "time": round(time.monotonic() - self._started, 3), **metrics})
        append_json_line(self._metrics_file, line)
        self._publish([line])
        self.check_stop()

    def checkpoint_every(self, steps: int) -> int:
        """Steps between the saved states of a stage of so many: as configured, else ten in a stage."""
        return self.config.checkpoint_every or max(1, min(MOST_STEPS_LOST, steps // STATES_OF_A_STAGE))

    def resume_from(self, step: int) -> list[Line]:
        """Keep the lines logged up to and including `step` before a kill, drop later ones; -1 drops all.

        Returns what is kept. Says so if the last lines before `step` are lost, which only damage to the file does.
        """
        if self._resumed:  # a second time in this process, after the learner died: the run's own lines are still there
            self._folder.keep_metrics(lambda line: line["node"] != self.node.name)
        self._resumed = True
        lines = read_json_lines(self._metrics_file, missing_ok=True)
        kept = [line for line in lines if line["step"] <= step]
        write_json_lines(self._metrics_file, kept)
        self._publish(kept)
        if kept:
            self._started = time.monotonic() - kept[-1]["time"]
        last = kept[-1]["step"] if kept else 0
        if last < step:
            self.say(f"{METRICS_FILE} has no line after step {last}, though the state of step {step} is whole")
        return kept

    def say(self, text: str) -> None:
        """Print a line that a person should read now, such as a warning."""
        self._bars.say(f"{self.node.name}: {text}")

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Show how far the stage is, with the remaining time; also a `check_stop`."""
        self._bars.update(self.node.name, done, total, text)
        self.check_stop()

    @property
    def _metrics_file(self) -> Path:
        return self.out / METRICS_FILE

    def _publish(self, lines: Sequence[Line]) -> None:
        labelled = [labels(self.node) | line for line in lines]
        self._folder.append_metrics(labelled)
        for line in labelled:
            self._track(line)


Stage = Callable[[StageContext], None]
