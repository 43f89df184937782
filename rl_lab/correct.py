"""python -m rl_lab.correct CKPT FILE [key=value ...] --out CORRECTIONS [--port 8766]

Lets a person correct the failures of a policy with the keyboard, in a page on this machine (open the address that is
printed). The failures are those that the first round of experiment FILE will meet with this checkpoint: the same
episodes, bit for bit. Each correction that reaches success is a line of CORRECTIONS at once, and is not asked for
again; give it to the run with `collect.corrector='{kind: recorded, path: CORRECTIONS}'`. Ends when no failure is left,
or by Ctrl-C. Exit code: 0 ended, 2 bad input.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np

from envs.robotwin.connection import SeedRejectedError
from envs.rollback import Place, until_failure
from envs.rollout import run_lockstep
from envs.types import SimulatorError
from rl_lab.common.arguments import as_path, check_output
from rl_lab.common.errors import CommandParser, UserError, run_command
from rl_lab.config.environments import check_keys, environment_layout
from rl_lab.config.robotwin import check_robotwin, find_robotwin
from rl_lab.config.schema import RunConfig
from rl_lab.model.checkpoint import published
from rl_lab.rollouts.collect import collection_units, round_name
from rl_lab.stages.kinds import load_config
from rl_lab.teleoperation.server import PageServer
from rl_lab.teleoperation.session import CorrectionSession, FailedEpisode, correction_line
from rl_lab.workers.policy import LocalPolicy, check_acting, read_corrections
from rl_lab.workers.simulation import Environments

DEFAULT_PORT = 8766


def failed_episodes(folder: Path, config: RunConfig, done: set[tuple[str, str, int]]) -> Iterator[FailedEpisode]:
    """Failures of a checkpoint in the episodes that a round collects from, except those of these tasks and seeds.

    Episodes run in the units of a collection, since the policy's batches are part of its bits.
    """
    snapshot = published(folder, config.policy_code)
    policy = LocalPolicy.from_snapshot(snapshot, seed=config.seed)
    memory = policy.info.memory
    environments = Environments(find_robotwin(config.workers) if config.env.backend == "robotwin" else None)
    try:
        available = collection_units(config, round_name(snapshot.version), config.seed)
        for unit in (unit for _, units in available for unit in units):
            places = [(unit.env.task, unit.env.variant, seed) for seed in unit.seeds]
            if done.issuperset(places):
                continue
            envs = environments.of(unit.env, len(unit.seeds))
            rollouts = [
                until_failure(env, seed, config.collect, memory) for env, seed in zip(envs, unit.seeds, strict=True)
            ]
            try:
                ended = run_lockstep(rollouts, policy.act)
            except (SeedRejectedError, SimulatorError):
                continue
            for env, place, (trace, failure) in zip(envs, places, ended, strict=True):
                if failure is not None and place not in done:
                    yield FailedEpisode(env, place[2], trace, failure)
    finally:
        environments.close()


def _append(path: Path, place: Place, actions: np.ndarray) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(correction_line(place, actions))
        file.flush()
        os.fsync(file.fileno())
    print(f"kept {place[0]} {place[1]}, seed {place[2]}, from step {place[3]}: {len(actions)} steps", flush=True)


def _check(folder: Path, experiment: Path, config: RunConfig, out: Path) -> set[tuple[str, str, int]]:
    """Everything fits; the episodes that are corrected already."""
    if config.env.backend == "robotwin":
        check_robotwin(config)
    if not config.collects_pairs:
        raise UserError(
            f"{experiment} has no rounds in which failures are corrected; give one whose stages repeat "
            "[collect, optimise], such as experiments/flowpro_robotwin.yaml"
        )
    layout = environment_layout(config.env)
    if config.env.is_own:
        check_keys(config.env)
    check_acting(folder, config.env.image_size, config.collect.execute, "CKPT", layout, config.policy_code)
    if out.is_dir() or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out} is a folder, or its folder does not exist; give a file in an existing folder")
    check_output(out, folder, experiment)
    return {place[:3] for place in read_corrections(out, layout)} if out.exists() and out.stat().st_size else set()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input."""
    parser = CommandParser(__doc__)
    parser.add_argument("checkpoint", type=as_path, metavar="CKPT", help="a checkpoint folder of a policy")
    parser.add_argument("experiment", type=as_path, metavar="FILE", help="the experiment whose first round it is")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--out", type=as_path, required=True, metavar="CORRECTIONS", help="lines are appended")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0 takes a free one")
    options = parser.parse_intermixed_args(arguments)
    config = load_config(options.experiment, options.overrides)
    done = _check(options.checkpoint, options.experiment, config, options.out)

    print("running the policy until it fails; the page opens then", flush=True)
    failures = failed_episodes(options.checkpoint, config, done)
    session = CorrectionSession(failures, partial(_append, options.out), config.collect)
    try:
        server = PageServer(session, options.port)
    except (OSError, OverflowError) as error:
        raise UserError(f"port {options.port} cannot be used: {error}; give another --port, or 0") from error
    with server:
        print(f"open {server.address}", flush=True)
        with suppress(KeyboardInterrupt):
            server.run()
    print(f"{session.kept} corrections kept in {options.out}")
    return 0


if __name__ == "__main__":
    run_command(main)
