"""python -m rl_lab.eval CKPT [FILE] [key=value ...] [--out FILE]

Evaluates a checkpoint folder and prints a line for each task and variant. The `env`, `eval` and `workers` sections and
the seed come from the experiment FILE, else they are the defaults (hand-over, 100 held-out seeds); overrides are for
example `env.tasks=[lift_pot] eval.seeds=development`. With several tasks or variants the table of RoboTwin's papers
follows. FILE needs no stages: none are run. With --out episodes are kept in FILE.partial while it runs, and the same
command goes on after a kill, task by task and seed by seed. Exit code: 0 done, 2 bad input.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rl_lab.common.arguments import as_path, check_output
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.common.files import folder_digests, write_json_lines, write_whole
from rl_lab.common.stats import wilson
from rl_lab.common.terminal import columns
from rl_lab.config.environments import check_own_environment, environment_layout
from rl_lab.config.robotwin import check_robotwin
from rl_lab.config.schema import RunConfig
from rl_lab.graph.store import code_versions
from rl_lab.model.checkpoint import published
from rl_lab.reports.benchmark import benchmark_lines, success_table
from rl_lab.rollouts.evaluation import evaluate_policy
from rl_lab.stages.kinds import KINDS, load_config, resolve_config
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.policy import check_acting

DEFAULTS: dict[str, Any] = {"name": "eval", "stages": ["demos"]}

IDENTITY_FILE = "evaluation.json"
"""What the episodes beside it are of."""


def _config(options: Any) -> RunConfig:
    has_file = bool(options.arguments) and "=" not in options.arguments[0]
    overrides = options.arguments[has_file:]
    if has_file:
        return load_config(as_path(options.arguments[0]), overrides, DEFAULTS)
    return resolve_config(DEFAULTS, "command line", overrides)


def _check(folder: Path, config: RunConfig) -> None:
    """The checkpoint loads and fits the environment, and RoboTwin is there if it is asked."""
    if config.env.backend == "robotwin":
        check_robotwin(config)
    if config.env.is_own:
        check_own_environment(config)
    layout = environment_layout(config.env)
    check_acting(folder, config.env.image_size, config.eval.execute, "CKPT", layout, config.policy_code)


@contextmanager
def _scratch(out: Path | None, folder: Path, config: RunConfig) -> Iterator[Path]:
    """Where finished units are kept until all are done: beside `out`, so that the same command finds them, else nowhere
    for long. UserError if those beside `out` are of another evaluation."""
    if out is None:
        with tempfile.TemporaryDirectory() as scratch:
            yield Path(scratch)
        return
    kept = out.with_name(f"{out.name}.partial")
    identity = {"checkpoint": folder_digests(folder), "seed": config.seed, "code": code_versions()}
    text = json.dumps(identity | {"settings": KINDS["evaluate"].params(config)}, indent=1) + "\n"
    if kept.exists():
        if not (kept / IDENTITY_FILE).is_file() or (kept / IDENTITY_FILE).read_text() != text:
            raise UserError(
                f"{kept} has episodes of another checkpoint, other settings or other code; delete it, or give another "
                "--out"
            )
        print(f"goes on with the episodes in {kept}", file=sys.stderr)
    else:
        kept.mkdir()
        write_whole(kept / IDENTITY_FILE, text)
    yield kept
    shutil.rmtree(kept)


def evaluate(folder: Path, config: RunConfig, scratch: Path) -> list[dict[str, Any]]:
    """One row an episode (see `envs.types.Episode`), in the order of tasks, variants and seeds; `scratch` keeps those
    that are done."""
    cluster = Cluster(config.workers_needed, config.placement)
    try:
        snapshot = cluster.share(published(folder, config.policy_code))
        with cluster.simulation_pool() as pool, tqdm() as bar:

            def progress(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            return evaluate_policy(pool, snapshot, config, config.seed, scratch, progress=progress).rows
    finally:
        cluster.close()


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Success with its interval, mean steps of successes, and how the arms moved, by task and variant."""
    lines = []
    for key in dict.fromkeys((row["task"], row["variant"]) for row in rows):
        mine = [row for row in rows if (row["task"], row["variant"]) == key]
        solved = [row["num_steps"] for row in mine if row["success"]]
        rate = wilson(len(solved), len(mine))
        steps = f"{sum(solved) / len(solved):.0f}" if solved else ""
        interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"
        moved = [_mean_extra(mine, "jerk"), _mean_extra(mine, "stalled_steps")]
        lines.append([f"{key[0]} {key[1]}", str(len(mine)), f"{100 * rate.value:.0f} %", interval, steps, *moved])
    return columns(["task", "n", "success", "95 % interval", "steps", "jerk (m/s3)", "stalled steps"], lines)


def _mean_extra(rows: Sequence[dict[str, Any]], name: str) -> str:
    """Mean of what an episode says beside its labels, "" where none does."""
    values = [row["extra"][name] for row in rows if name in row.get("extra", {})]
    return f"{sum(values) / len(values):.3g}" if values else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=as_path, metavar="CKPT", help="a checkpoint folder")
    parser.add_argument("arguments", nargs="*", metavar="[FILE] key=value", help="experiment and overrides")
    parser.add_argument("--out", type=as_path, metavar="FILE", help="write one JSON line an episode; must not exist")
    options = parser.parse_intermixed_args(arguments)
    config = _config(options)
    if options.out and (options.out.exists() or not options.out.parent.is_dir()):
        raise UserError(f"--out {options.out} exists or its folder does not; give a new file in an existing folder")
    if options.out:
        check_output(options.out, options.checkpoint)
    _check(options.checkpoint, config)
    with _scratch(options.out, options.checkpoint, config) as scratch:
        rows = evaluate(options.checkpoint, config, scratch)
        if options.out:
            write_json_lines(options.out, rows)
    study = ", a study with the simulator's truth" if config.model.reads_truth else ""
    print(f"{config.env.backend}, {config.eval.seeds} seeds, {config.eval.instructions} instructions{study}")
    print(_table(rows))
    outcomes = ((row["task"], row["variant"], row["success"]) for row in rows)
    for text in benchmark_lines([{"method": None, "round": 0} | success_table(outcomes)]):
        print(f"\n{text}")
    return 0


if __name__ == "__main__":
    run_command(main)
