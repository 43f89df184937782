"""python -m rl_lab.run FILE [key=value ...] [--run-dir DIR] [--resume DIR] [--dry-run | --plan] [--address HOST:PORT]

Runs an experiment: loads and checks its file, expands it into stages, reuses the stored ones and runs the others.
The first and the last line printed is the run folder. Exit code: 0 done, 1 failure, 2 bad input, 130 stopped.

What a file may say: `--keys` prints the keys of a file, `--keys sft` those of a section; docs/configuration.md has all
of them, docs/own-yaml.md begins with nothing. Each may be given as key=value too, such as sft.steps=100.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rl_lab.common.arguments import as_path
from rl_lab.common.errors import CommandParser, DiskError, RunError, UserError, disk_error, one_line, run_command
from rl_lab.common.files import read_json_lines
from rl_lab.common.reading import read_object
from rl_lab.config.language import JUDGE_URL
from rl_lab.config.load import dump_changes, dump_config
from rl_lab.config.reference import keys_text
from rl_lab.config.robotwin import backend_line
from rl_lab.config.schema import RunConfig
from rl_lab.graph.executor import Executor, StageError
from rl_lab.graph.heartbeat import Heartbeat
from rl_lab.graph.nodes import Node, stage_hashes
from rl_lab.graph.plan import plan_table
from rl_lab.graph.record import describe
from rl_lab.graph.run_folder import CONFIG_FILE, ENVIRONMENT_FILE, SUMMARY_FILE, RunFolder, check_unused
from rl_lab.graph.stage import Stage
from rl_lab.graph.store import Store, code_versions
from rl_lab.graph.trackers import Trackers
from rl_lab.reports.hub import push
from rl_lab.reports.pages.run import REPORT_FILE
from rl_lab.reports.study_power import expected_power, power_text
from rl_lab.stages.kinds import expand, load_config, stage_functions
from rl_lab.stages.needs import lacking_room, needs
from rl_lab.stages.preflight import check_machine, check_settings, lacking_here, lacking_machines, warnings
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.placement import declared_machines, placement_table
from rl_lab.workers.pool import workers_now

STORE = Path("runs") / ".stages"
StageFactory = Callable[[RunConfig], contextlib.AbstractContextManager[Mapping[str, Stage]]]


@dataclass(frozen=True)
class Graph:
    """The stages of a run, hashed once: the hashes read every file that the configuration names."""

    nodes: list[Node]
    versions: dict[str, str]
    hashes: dict[str, str]

    @classmethod
    def of(cls, config: RunConfig) -> Graph:
        """Expand a configuration."""
        nodes, versions = expand(config), code_versions()
        return cls(nodes, versions, stage_hashes(nodes, config.seed, versions))


def _parse(arguments: Sequence[str] | None) -> Any:
    parser = CommandParser(__doc__)
    parser.add_argument("arguments", nargs="*", metavar="FILE [key=value ...]", help="experiment and overrides")
    parser.add_argument("--run-dir", type=as_path, help="new folder for this run; default runs/NAME-TIMESTAMP")
    parser.add_argument("--resume", type=as_path, metavar="DIR", help="continue the run in this folder")
    parser.add_argument("--dry-run", action="store_true", help="print config, plan and estimated cost; write nothing")
    parser.add_argument("--plan", action="store_true", help="the same, with those settings only that are no defaults")
    parser.add_argument(
        "--cluster",
        type=declared_machines,
        metavar="MACHINESxGPUS[xCORES]",
        default=(),
        help="plan for machines that need not be there: 2x8 or 2x8x96, with --plan or --dry-run",
    )
    parser.add_argument(
        "--address", help="run on the Ray cluster at this address (as RAY_ADDRESS); auto: the local one"
    )
    parser.add_argument(
        "--keys", nargs="?", const="", metavar="SECTION", help="print what the keys of a file, or of a section, mean"
    )
    options = parser.parse_intermixed_args(arguments)
    has_file = bool(options.arguments) and "=" not in options.arguments[0]
    options.file = as_path(options.arguments[0]) if has_file else None
    options.overrides = options.arguments[has_file:]
    if options.resume and options.run_dir:
        raise UserError("--resume continues in its own folder; leave out --run-dir")
    options.plans = options.dry_run or options.plan
    if options.cluster and (not options.plans or options.address):
        raise UserError("--cluster is for --plan or --dry-run; a run, and a plan for real machines, take --address")
    if not options.file and not options.resume and options.keys is None:
        raise UserError("which experiment? Give a file such as experiments/flowpro_robotwin.yaml, or --resume DIR")
    return options


def _load(options: Any) -> RunConfig:
    """The config of the file, or of the folder to resume; both must agree where both are given."""
    if not options.resume:
        return load_config(options.file, options.overrides)
    with contextlib.closing(RunFolder.reopen(options.resume)) as folder:
        folder.read_stages()  # refused, if it is damaged, before anything is written
    config = load_config(options.resume / CONFIG_FILE)
    if options.file is None and options.overrides:
        raise UserError("a resumed run keeps its config; leave out the overrides")
    if options.file is not None and load_config(options.file, options.overrides) != config:
        raise UserError(f"{options.file} is not the config of {options.resume}; leave the file out to resume that run")
    return config


@contextlib.contextmanager
def real_stages(config: RunConfig, *folders: Path) -> Iterator[Mapping[str, Stage]]:
    """The stage functions with their Ray cluster, which is shut down at the end. All machines must see the folders."""
    # A stage that is still busy when the run has been stopped must not start a Ray of its own.
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    cluster = Cluster(config.workers_needed, config.placement)
    try:
        cluster.check_folders(folders)
        if config.judge is not None:
            os.environ[JUDGE_URL] = cluster.serve_judge(config.judge)
        yield stage_functions(cluster)
    finally:
        cluster.close()


def main(arguments: Sequence[str] | None = None, stages: StageFactory = real_stages) -> int:
    """Run the command; tests give other `stages`. Returns the exit code."""
    options = _parse(arguments)
    if options.keys is not None:
        print(keys_text(options.keys))
        return 0
    if options.address:
        os.environ["RAY_ADDRESS"] = options.address
    if options.run_dir:
        check_unused(options.run_dir)
    config = _load(options)
    if options.plans:
        return _plan(options, config)
    check_machine(config)
    graph, store = Graph.of(config), Store(STORE)
    lack = lacking_room(config, needs(config, graph.nodes, graph.hashes, store), store)
    if not options.resume:
        if lack is not None and stages is real_stages:
            raise UserError(lack)
        store.check_writable()
    with _use_folder(options, config) as folder:
        try:
            code = _run(folder, config, graph, stages, resumed=options.resume is not None)
        except KeyboardInterrupt:
            code = 130
        except RunError as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            code = 1
        except UserError:
            raise
        except Exception as error:
            trouble = disk_error(error, str(folder.path))
            if trouble is None:
                raise
            began = (folder.path / CONFIG_FILE).is_file()
            hint = f"then continue with: python -m rl_lab.run --resume {folder.path}" if began else "then start again"
            raise DiskError(f"{trouble}, {hint}", trouble.exit_code) from error
        if code != 0:
            print(f"continue with: python -m rl_lab.run --resume {folder.path}", file=sys.stderr)
    return code


def _plan(options: Any, config: RunConfig) -> int:
    """Print what a run would do, and all that is missing for it. Returns 2 if something is."""
    check_settings(config)
    graph, store, cluster = Graph.of(config), Store(STORE), options.cluster
    wanted = needs(config, graph.nodes, graph.hashes, store)
    room = None if cluster else lacking_room(config, wanted, store)
    print(dump_config(config) if options.dry_run else dump_changes(config))
    _say_backend(config)
    print(placement_table(config, cluster))
    print(plan_table(config, graph.nodes, graph.hashes, store))
    print(f"  {wanted}")
    here, missing = lacking_here(config), lacking_machines(config, cluster)
    _warn([*warnings(config), *([room] if room else [])])
    if cluster:  # its machines may have what this one lacks
        _warn([f"here, maybe not there: {line}" for line in here])
    else:
        missing = here + missing
    _tell_power(config)
    for line in missing:
        print(f"error: {line}", file=sys.stderr)
    return 2 if missing else 0


@contextlib.contextmanager
def _use_folder(options: Any, config: RunConfig) -> Iterator[RunFolder]:
    """The run folder, its path printed first and last."""
    folder = RunFolder.reopen(options.resume) if options.resume else RunFolder.create(options.run_dir, config.name)
    print(folder.path, flush=True)
    try:
        yield folder
    finally:
        print(folder.path, flush=True)
        folder.close()


def _begin(folder: RunFolder, config: RunConfig, *, resumed: bool) -> tuple[list[dict[str, Any]], Store]:
    """Write what a folder starts with, or read what an interrupted run left: its rows and its store."""
    path, rows = folder.read_stages()
    store = Store(path or STORE)
    if resumed:
        read_json_lines(folder.metrics_path, missing_ok=True)  # refused before anything is written
        store.check_writable()
    else:
        folder.write(CONFIG_FILE, dump_config(config))
    _warn(warnings(config))
    _tell_power(config)
    folder.keep_code(config.own_code.values())
    folder.write(ENVIRONMENT_FILE, json.dumps(describe(config), indent=1) + "\n")
    print(f"environment: {'; '.join(config.sources)}", file=sys.stderr)
    _say_backend(config)
    return rows, store


def _tell_power(config: RunConfig) -> None:
    """Before a study starts: what difference it can find, and how many training seeds a small one would need."""
    if config.study is not None:
        print(f"study: {power_text(expected_power(config.model_dump(mode='json')))}", file=sys.stderr)


def _say_backend(config: RunConfig) -> None:
    """Which simulator runs the episodes, and why."""
    if config.runs_episodes:
        print(f"simulator: {backend_line(config)}", file=sys.stderr)


def _warn(lines: Sequence[str]) -> None:
    for line in lines:
        print(f"warning: {line}", file=sys.stderr)


def _run(folder: RunFolder, config: RunConfig, graph: Graph, stages: StageFactory, *, resumed: bool) -> int:
    """Bring the stages to their end. Returns the exit code; KeyboardInterrupt after a clean stop."""
    rows, store = _begin(folder, config, resumed=resumed)
    make = partial(real_stages, config, folder.path, store.root) if stages is real_stages else partial(stages, config)
    with make() as functions, Trackers(config, folder.path, graph.nodes) as tracker, _stops_on_signals():
        executor = Executor(config, graph.nodes, graph.hashes, graph.versions, functions, store, folder, tracker.log)
        _tell_changes(folder, executor.continue_from(rows))
        signs = Heartbeat(folder.path, lambda: {"stages": executor.progress(), "workers": workers_now()})
        try:
            with signs:
                executor.run()
        except (StageError, UserError) as error:
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, StageError) else error.exit_code
    _tell_verdict(folder)
    if config.hub is not None:
        push(config.hub, folder.path, graph.nodes)
    return 0


def _tell_changes(folder: RunFolder, again: Sequence[str]) -> None:
    """What became of a run since it was interrupted, and which of its finished stages run `again` for it."""
    names = f"{', '.join(again)} run again"
    if folder.config_was_edited():
        _warn([f"{folder.path / CONFIG_FILE} was edited; {names if again else 'no finished stage depends on that'}"])
    elif again:
        _warn([f"code, packages or store changed since then; {names}"])


def _tell_verdict(folder: RunFolder) -> None:
    """What the finished run showed, in the sentences of its report, and where that lies."""
    path = folder.path / SUMMARY_FILE
    for sentence in read_object(path)["verdict"] if path.is_file() else ():
        print(sentence)
    report = folder.path / REPORT_FILE
    if report.is_file():
        print(f"report: {report}", file=sys.stderr)


@contextlib.contextmanager
def _stops_on_signals() -> Iterator[None]:
    """SIGINT and SIGTERM stop a run cleanly. Entered after Ray, which sets a handler of its own."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    # SIGINT as well: a shell starts background jobs with it ignored.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    run_command(main)
