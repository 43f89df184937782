"""Runs the stages of a graph: reuses stored ones, runs the ready ones side by side, stops cleanly, continues later.

Stages that share workers take turns at them; it is recorded how long the thread of a stage waited for its turns.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from envs.by_name import OwnCodeError
from rl_lab.common.errors import DiskError, RunError, UserError, disk_error
from rl_lab.common.files import read_json_lines
from rl_lab.common.machine import processor
from rl_lab.common.reading import read_object
from rl_lab.common.terminal import ProgressBars
from rl_lab.config.schema import RunConfig
from rl_lab.graph.nodes import Node
from rl_lab.graph.plan import Forecast, waits_for
from rl_lab.graph.run_folder import GATE_FILE, Line, RunFolder
from rl_lab.graph.stage import Stage, StageConfig, StageContext, StageStopped, labels
from rl_lab.graph.store import Store
from rl_lab.graph.trackers import result_line

_waits = threading.local()


def waited_s() -> float:
    """Seconds that this thread has waited for turns so far."""
    return getattr(_waits, "seconds", 0.0)


class Turns:
    """A lock whose waits are counted."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Until the body ends nobody else has a turn."""
        began = time.monotonic()
        with self._lock:
            _waits.seconds = waited_s() + time.monotonic() - began
            yield


STOP_SECONDS = 10.0
"""How long stages may take to notice that the run is being stopped."""


class StageError(RuntimeError):
    """A stage failed. Its traceback has been printed; what was finished is stored, and the run can be resumed."""


class Executor:
    """Brings every node of one run to an end.

    Stages run in threads of this process, at most `config.workers.stages` at once, and do their work in Ray actors.
    """

    def __init__(
        self,
        config: RunConfig,
        nodes: Sequence[Node],
        hashes: Mapping[str, str],
        versions: Mapping[str, str],
        stages: Mapping[str, Stage],
        store: Store,
        folder: RunFolder,
        track: Callable[[Line], None] = lambda line: None,
    ) -> None:
        self.config, self.nodes, self.hashes, self.versions = config, nodes, hashes, versions
        self.stages, self.store, self.folder, self.track = stages, store, folder, track
        made = [node for node in nodes if node.kind != "report"]
        first = {hashes[node.name]: node.name for node in reversed(made)}
        stored = {one.name for one in made if store.has(hashes[one.name]) or first[hashes[one.name]] != one.name}
        self.bars, self.forecast = ProgressBars(self._run_left), Forecast(config, nodes, stored)
        self.rows: dict[str, Line] = {
            node.name: {
                **{"name": node.name, "kind": node.kind, "method": node.method, "round": node.round},
                **({} if node.kind == "report" else {"inputs": node.inputs}),
                **{"hash": hashes.get(node.name), "status": "pending", "seconds": None, "reused": None},
            }
            for node in nodes
        }
        self._stop = threading.Event()
        self._ended: queue.Queue[tuple[Node, float, BaseException | None]] = queue.Queue()
        self._running: dict[str, threading.Thread] = {}
        self._failures: list[tuple[Node, BaseException]] = []
        self._keep_going = config.study is not None
        """Whether a stage that fails leaves the others running: worlds and methods of a study do not need each
        other."""
        self._missing = ("skipped", "failed") if self._keep_going else ("skipped",)
        """States of a stage without which the run goes on."""

    def continue_from(self, rows: Sequence[Line]) -> list[str]:
        """Take over the rows of an interrupted run: what it had finished stays, the metrics of the rest are dropped.

        Returns the names of stages that were finished but must run again: their settings, code or packages are others
        now, or the store has lost them.
        """
        finished = {
            row["name"]: row
            for row in rows
            if row["status"] == "done"
            and row["hash"] == self.hashes.get(row["name"], "")
            and self._is_stored(row["hash"])
        }
        self.rows |= finished
        for node in self.nodes:
            if node.name in finished:
                self._track_result(node)
        self.folder.keep_metrics(lambda line: str(line.get("node")) in finished)
        self._restore_metrics(finished)
        ended = [row["name"] for row in rows if row["status"] == "done" and row["hash"]]
        return [name for name in ended if name in self.rows and name not in finished]

    def _restore_metrics(self, names: Container[str]) -> None:
        """Take from the store what the run folder's metrics have lost of these nodes, to a power cut or a person."""
        have = Counter(str(line.get("node")) for line in read_json_lines(self.folder.metrics_path))
        for node in self.nodes:
            if node.name not in names or node.kind == "report":
                continue
            stored = self.store.metrics(self.hashes[node.name])
            if have[node.name] < len(stored):
                self.folder.keep_metrics(lambda line, lost=node.name: line.get("node") != lost)  # type: ignore[misc]
                self.folder.append_metrics([labels(node) | line for line in stored])

    def run(self) -> None:
        """Run everything that is not done. Raises UserError or StageError for the first stage that failed, after the
        others that were running have ended (in a study: all that did not need it, the report included), and
        KeyboardInterrupt after a clean stop."""
        self._write_rows()
        try:
            while self._start_ready() or self._running:
                if self._running:
                    self._wait()
        except KeyboardInterrupt:
            self._stop_stages()
            raise
        except Exception:  # the run folder or the store cannot be written
            self._stop_stages()
            if not self._failures:  # else the same has ended a stage, which says more about it
                raise
        finally:
            with contextlib.suppress(OSError):  # else a full disk would hide why the run ends
                self._write_rows()
        if self._failures:
            self._raise_failure()
        shutil.rmtree(self.folder.path / "work", ignore_errors=True)

    def _start_ready(self) -> bool:
        """Reuse or start whatever can be; whether anything was."""
        changed = False
        for node in self.nodes:
            if self.rows[node.name]["status"] == "pending" and self._is_left_out(node):
                changed = True
                self._skip(node)
        for node in self.forecast.nodes:
            if len(self._running) >= self.config.workers.stages or (self._failures and not self._keep_going):
                break
            if not self._is_ready(node):
                continue
            changed = True
            if node.kind != "report" and self._is_stored(self.hashes[node.name]):
                self._finish(node, None)
            else:
                self._start(node)
        return changed

    def _is_stored(self, digest: str) -> bool:
        """Whether the store has this stage, as it was stored; a damaged one is named, taken away and made again."""
        if not self.store.has(digest):
            return False
        damage = self.store.damage(digest)
        if damage is not None:
            self.bars.say(f"warning: {damage}; its stage is run again")
            self.store.discard(digest)
        return damage is None

    def _is_ready(self, node: Node) -> bool:
        """Pending, with its inputs and its gate done or skipped, and no twin of the same hash running."""
        if self.rows[node.name]["status"] != "pending":
            return False
        busy = {self.hashes.get(name) for name in self._running}
        all_ended = all(self.rows[name]["status"] in ("done", *self._missing) for name in waits_for(node))
        return all_ended and (node.kind == "report" or self.hashes[node.name] not in busy)

    def _is_left_out(self, node: Node) -> bool:
        """Whether the node's gate went the other way, or what it reads was skipped or failed.

        A join takes what there is, so it is left out only with all of its inputs, and a report never is.
        """
        if node.kind == "report":
            return False
        if node.when is not None and self._outcome(node.when[0]) not in (None, node.when[1]):
            return True
        missing = [self.rows[name]["status"] in self._missing for name in waits_for(node)]
        return any(missing) if node.kind != "join" else bool(missing) and all(missing)

    def _outcome(self, gate: str) -> bool | None:
        """Whether a gate was passed; None while nobody knows."""
        if self.rows[gate]["status"] != "done":
            return None
        return bool(self._decision(gate)["passed"])

    def _decision(self, gate: str) -> Line:
        return read_object(self.store.path(self.hashes[gate]) / GATE_FILE)

    def _skip(self, node: Node) -> None:
        self.rows[node.name]["status"] = "skipped"
        self._write_rows()
        failed = [name for name in node.inputs.values() if self.rows[name]["status"] == "failed"]
        why = "" if node.when is None else f", because {node.when[0]} was {'not ' if node.when[1] else ''}passed"
        self.bars.say(f"{node.name}: skipped{f', because {failed[0]} failed' if failed else why}")

    def _start(self, node: Node) -> None:
        self.rows[node.name]["status"] = "running"
        self._write_rows()
        context = self._context(node)
        self.folder.show_live(node, context.out)
        thread = threading.Thread(target=self._run_stage, args=(node, context), name=node.name, daemon=True)
        self._running[node.name] = thread
        thread.start()

    def _work(self, node: Node) -> Path:
        """Absolute, because workers of a cluster that was there before have another working directory."""
        return (self.folder.path / "work" / self.hashes[node.name]).absolute()

    def _context(self, node: Node) -> StageContext:
        is_report, config = node.kind == "report", node.config or self.config
        out = self.folder.path if is_report else self._work(node) / "out"
        scratch = self.folder.path / "work" / "report" if is_report else self._work(node) / "scratch"
        for folder in (out, scratch):
            folder.mkdir(parents=True, exist_ok=True)
        return StageContext(
            node=node,
            config=config if is_report else StageConfig(config, node.stage),
            inputs={
                role: self.store.path(self.hashes[name])
                for role, name in node.inputs.items()
                if self.rows[name]["status"] not in self._missing
            },
            out=out,
            scratch=scratch,
            seed=config.seed,
            _folder=self.folder,
            _bars=self.bars,
            _stop=self._stop,
            _track=self.track,
        )

    def _run_stage(self, node: Node, context: StageContext) -> None:
        """In the stage's thread: whatever happens, the main thread hears of it."""
        started = time.monotonic()
        failure: BaseException | None = None
        try:
            self.stages[node.kind](context)
        except BaseException as error:  # the main thread raises it
            failure = error
        self._ended.put((node, time.monotonic() - started - waited_s(), failure))

    def _wait(self) -> None:
        """Until one stage has ended; short waits keep the main thread open to signals."""
        try:
            node, seconds, failure = self._ended.get(timeout=0.2)
        except queue.Empty:
            return
        self._end(node, seconds, failure)

    def _end(self, node: Node, seconds: float, failure: BaseException | None) -> None:
        del self._running[node.name]
        self.bars.close(node.name)
        if failure is None:
            self._finish(node, round(seconds, 2))
            return
        self.rows[node.name]["status"] = "stopped" if isinstance(failure, StageStopped) else "failed"
        if self.rows[node.name]["status"] == "failed":
            self._failures.append((node, failure))
            self.bars.say(f"{node.name}: failed ({self._reason(failure)})")
        self._write_rows()

    def _finish(self, node: Node, seconds: float | None) -> None:
        """Store a stage that has ended, or take a stored one (seconds None), and show it in the run folder."""
        row = self.rows[node.name]
        if node.kind != "report":
            digest = self.hashes[node.name]
            if seconds is not None:
                record = {"kind": node.kind, "params": node.params, "seconds": seconds, "versions": dict(self.versions)}
                record |= {"seed": (node.config or self.config).seed, "processor": processor()}
                record |= {"inputs": {role: self.hashes[name] for role, name in node.inputs.items()}}
                self.store.publish(digest, self._work(node) / "out", record)
                shutil.rmtree(self._work(node))
            else:
                lines = [labels(node) | line for line in self.store.metrics(digest)]
                self.folder.append_metrics(lines)
            self.folder.show(node, self.store.path(digest))
            stored = self.store.record(digest)
            row |= {"seconds": stored["seconds"], "processor": stored.get("processor")}
        else:
            row["seconds"] = seconds
        row |= {"status": "done", "reused": seconds is None}
        self._track_result(node)
        self._write_rows()
        done = sum(row["status"] in ("done", "skipped") for row in self.rows.values())
        how = "reused" if seconds is None else f"done in {seconds:.0f} s"
        found = "" if node.kind == "report" else node.stage.finding(self.store.path(self.hashes[node.name]))
        self.bars.say(f"[{done}/{len(self.nodes)}] {node.name}: {found + '; ' if found else ''}{how}")
        if node.kind == "gate":
            self.bars.say(f"{node.name}: {self._decision(node.name)['reason']}")

    def _track_result(self, node: Node) -> None:
        """Tell trackers what a finished stage measured of a model."""
        measured = {} if node.kind == "report" else node.stage.measured(self.store.path(self.hashes[node.name]))
        if measured:
            self.track(result_line(node, measured))

    def progress(self) -> dict[str, dict[str, Any]]:
        """Of each running stage that has said so: `done` of `total`, and `left_s` where that can be told."""
        rates = dict(self.bars.running)
        return {
            name: {"done": done, "total": total, "left_s": rates[name][1] if name in rates else None}
            for name, (done, total) in dict(self.bars.counts).items()
        }

    def _run_left(self) -> str:
        """How long the whole run still takes, in words; "" while nobody can say."""
        over = {name: row for name, row in self.rows.items() if row["status"] in ("done", "skipped", "failed")}
        took = {name: row["seconds"] if row["reused"] is False else None for name, row in over.items()}
        left = self.forecast.left(took, self.bars.running)
        return "" if left is None else f"run: {left / 60:.0f} min left" if left >= 60 else "run: under 1 min left"

    def _stop_stages(self) -> None:
        """Ask running stages to stop and give them a moment, then let go of them."""
        self._stop.set()
        self.bars.say("stopping ...")
        deadline = time.monotonic() + STOP_SECONDS
        while self._running and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                self._wait()
        for name in self._running:
            self.rows[name]["status"] = "stopped"

    def _reason(self, failure: BaseException) -> str:
        """One line; what a worker raised comes with its traceback, which is printed at the end."""
        trouble = disk_error(failure, str(self.folder.path))
        return " ".join(str(trouble or getattr(failure, "cause", None) or failure).split())

    def _raise_failure(self) -> None:
        """The first failure; the tracebacks of all are printed."""
        troubles = [disk_error(failure, str(self.folder.path)) for _, failure in self._failures]
        for (_, failure), trouble in zip(self._failures, troubles, strict=True):
            if not isinstance(failure, UserError | OwnCodeError) and trouble is None:
                traceback.print_exception(failure, file=sys.stderr)
        node, failure = self._failures[0]
        if isinstance(failure, OwnCodeError):
            raise RunError(f"{node.name}: {getattr(failure, 'cause', None) or failure}") from failure
        if isinstance(failure, UserError):
            kind = RunError if failure.exit_code == RunError.exit_code else UserError
            raise kind(f"{node.name}: {failure}") from failure
        if troubles[0] is not None:
            raise DiskError(f"{node.name}: {troubles[0]}", troubles[0].exit_code) from failure
        more = f" (and {len(self._failures) - 1} more)" if len(self._failures) > 1 else ""
        raise StageError(f"stage {node.name} failed{more}: {failure}") from failure

    def _write_rows(self) -> None:
        self.folder.write_stages(list(self.rows.values()), self.store.root)
