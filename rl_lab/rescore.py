"""python -m rl_lab.rescore RUN --reward FILE|METHOD [--node NODE]

Scores the stored rollouts of a run under another reward, without generating anything: how far the two rewards agree on
the order of the answers, and which answers flip. The reward is the section `rewards` of a YAML file, or a method of
the run's own study. In a run that ranked chunks of actions it is the section `ranking`: chunks are ranked again, and
episodes scored, by the run's own reward models. Writes rescored-NAME.json into the run folder and prints its table.
Calls of the reward that fail are counted and named. Exit code: 0 done, 1 where a training has no answer with a reward
under both, 2 bad input.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from envs.options import suggestion
from rewards.config import RewardConfig
from rewards.rubric import Rewards
from rl_lab.common.arguments import as_path
from rl_lab.common.errors import CommandParser, RunError, UserError, run_command
from rl_lab.common.files import write_whole
from rl_lab.common.reading import fit, read_as, read_yaml
from rl_lab.config.actions import RankingConfig
from rl_lab.graph.run_folder import CONFIG_FILE, STAGES_FILE, StagesFile
from rl_lab.records.item_files import ItemFile
from rl_lab.records.rollouts import questions_of
from rl_lab.reports.run import study_place
from rl_lab.rollouts.answering import make_rewards
from rl_lab.rollouts.rescore_actions import rescore_episodes, rescore_node
from rl_lab.rollouts.rescore_answers import OrderAgreement, rescore

FLIPS_SHOWN = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; UserError for bad input, RunError where a training has nothing to compare."""
    parser = CommandParser(__doc__)
    parser.add_argument("run", type=as_path, metavar="RUN", help="a run folder")
    parser.add_argument(
        "--reward", required=True, metavar="FILE|METHOD", help="YAML with `rewards`, or a method of its study"
    )
    parser.add_argument("--node", help="one training of the run; all without it")
    options = parser.parse_args(arguments)
    config = _config(options.run)
    if any(options.run.glob("pairs/*.rank")):
        return rescore_actions(options.run, options.reward, options.node, config)
    trainings = _trainings(options.run, options.node)
    given = _part(config, "examine").get("pass_threshold", 0.5)
    threshold = fit(given, float, f"{options.run / CONFIG_FILE}: examine.pass_threshold")
    name, settings, place = _reward(options.reward, options.run, config, "rewards", "rewards")
    questions = questions_of(options.run)
    if not questions.is_file():
        where = questions.relative_to(options.run)
        raise UserError(f"{options.run} has no {where}, which its answers are scored by; give a whole run")
    rewards = _checked(settings, place)
    try:
        found = {node.name: rescore(node, ItemFile(questions), rewards, threshold) for node in trainings}
    finally:
        rewards.close()
    empty = [_nothing(node, one) for node, one in found.items() if not one.answers]
    if len(empty) < len(found):
        target = options.run / f"rescored-{name}.json"
        write_whole(target, json.dumps({node: asdict(one) for node, one in found.items()}, indent=1) + "\n")
        lines = [line for node, one in found.items() if one.answers for line in _lines(node, one)]
        print("\n".join([*lines, str(target)]))
    if empty:
        raise RunError("; ".join(empty))
    return 0


def _config(run: Path) -> dict[str, Any]:
    path = run / CONFIG_FILE
    if not path.is_file():
        raise UserError(f"no run folder at {run}: {CONFIG_FILE} is missing; a run prints its path in its first line")
    return read_yaml(path)


def _part(config: dict[str, Any], key: str) -> dict[str, Any]:
    """A section of a run's configuration, {} where there is none."""
    part = config.get(key)
    if not isinstance(part, dict | None):
        raise UserError(f"{CONFIG_FILE}: {key} holds no keys with values; put back the file as the run wrote it")
    return part or {}


def rescore_actions(run: Path, given: str, node: str | None, config: dict[str, Any]) -> int:
    """The same for chunks of actions."""
    name, settings, place = _reward(given, run, config, "ranking", "rankings")
    new = _ranking(settings, place)
    stages = {row.name: row.model_dump() for row in read_as(run / STAGES_FILE, StagesFile).nodes}
    rankings = _part(_part(config, "study"), "rankings")
    seed = fit(config.get("seed", 0), int, f"{run / CONFIG_FILE}: seed")
    chunks = {}
    for folder in _rankings(run, node):
        row = stages.get(folder.name)
        if row is None or not (settings := rankings.get(str(row.get("method"))) or _part(config, "ranking")):
            raise UserError(f"{STAGES_FILE} and {CONFIG_FILE} of {run} say nothing of {folder.name}; give a whole run")
        world, number, _ = study_place(folder.name) if config.get("study") else ("", 1, "")
        old, prefix = _ranking(settings, f"{run / CONFIG_FILE}: {folder.name}"), f"{world}.{number}." if world else ""
        chunks[folder.name] = rescore_node(run, row, old, new, seed + number - 1, prefix)
    episodes = {kind: rescore_episodes(run, kind) for kind in new.learned}
    plain: dict[str, Any] = {"chunks": {one: asdict(found) for one, found in chunks.items()}, "episodes": {}}
    plain["episodes"] = {kind: {one: asdict(found) for one, found in rows.items()} for kind, rows in episodes.items()}
    target = run / f"rescored-{name}.json"
    write_whole(target, json.dumps(plain, indent=1) + "\n")
    lines = [line for one, found in chunks.items() for line in _chunk_lines(one, found)]
    lines += [
        f"{one} by {kind}: rank agreement with success {_number(found.rank_correlation)} over {found.episodes} "
        f"episodes, {len(found.flips)} on the other side"
        for kind, rows in episodes.items()
        for one, found in rows.items()
    ]
    print("\n".join([*lines, str(target)]))
    return 0


def _chunk_lines(node: str, found: Any) -> list[str]:
    """What the terminal shows of one ranking."""
    return [
        f"{node}: {found.chunks} chunks in {found.states} states",
        f"  rank agreement: {_number(found.rank_correlation)} over all chunks (Spearman), "
        f"{_number(found.state_correlation)} within states (Kendall)",
        f"  another best chunk in {100 * found.best_changed:.0f} % of the states; of {found.pairs} pairs "
        f"{found.reversed} are reversed; the new reward makes {found.new_pairs}",
    ]


def _ranking(settings: dict[str, Any], place: str) -> RankingConfig:
    if not isinstance(settings, dict):
        raise UserError(f"{place}: ranking holds no keys with values; write it as in an experiment's file")
    try:
        return RankingConfig.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{place}: ranking.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _reward(given: str, run: Path, config: dict[str, Any], section: str, kind: str) -> tuple[str, dict[str, Any], str]:
    """Name and section of the new reward, and where the section stands."""
    known = _part(_part(config, "study"), kind)
    if given in known:
        return given, known[given], f"{run / CONFIG_FILE}: study.{kind}.{given}"
    path = Path(given)
    if not path.is_file():
        names = f"; methods of the run: {', '.join(known)}" if known else ""
        raise UserError(f"--reward {given} is neither a file nor a method of the run's study{names}")
    tree = read_yaml(path)
    if not isinstance(tree.get(section), dict):
        raise UserError(f"{path} has no section `{section}`; write it as in an experiment's file")
    return path.stem, tree[section], given


def _checked(settings: dict[str, Any], place: str) -> Rewards:
    try:
        made = make_rewards(RewardConfig.read(settings, "rewards"))
        made.start()
        return made
    except ValueError as error:
        raise UserError(f"{place}: {error}") from error


def _trainings(run: Path, node: str | None) -> list[Path]:
    """Folders of the trainings that answered questions."""
    found = sorted(path for path in (run / "grpo").glob("*") if (path / "rollouts").is_dir())
    if not found:
        raise UserError(
            f"{run} has stored no answers and ranked no chunks, so there is nothing to score again; give a run with "
            "grpo or distill, or with rank, among its stages"
        )
    return _chosen(run, found, node, "training")


def _rankings(run: Path, node: str | None) -> list[Path]:
    """Folders of the pairs that were made by ranking chunks."""
    found = sorted(run.glob("pairs/*.rank"))
    if not found:
        raise UserError(f"{run} has ranked no chunks; give a run with rank among its stages")
    return _chosen(run, found, node, "ranking")


def _chosen(run: Path, found: list[Path], node: str | None, kind: str) -> list[Path]:
    """The folder of one node, or all."""
    chosen = found if node is None else [path for path in found if path.name == node]
    if not chosen:
        raise UserError(f"{run} has no {kind} {node}{suggestion(str(node), [path.name for path in found])}")
    return chosen


def _number(value: float | None) -> str:
    return "constant" if value is None else f"{value:+.2f}"


def _nothing(node: str, found: OrderAgreement) -> str:
    """Why the answers of a training cannot be compared."""
    if found.first_failure is None:
        return f"{node}: no answer has a reward under both; {found.unscored} have one under one of them"
    calls = sum(found.failures.values())
    return f"{node}: no answer could be scored, {calls} calls failed, the first: {found.first_failure}; mend the reward"


def _lines(node: str, found: OrderAgreement) -> list[str]:
    """What the terminal shows of one training."""
    lines = [
        f"{node}: {found.answers} answers in {found.groups} groups"
        + (f" ({found.unscored} more have a reward under one only)" if found.unscored else ""),
        f"  rank agreement: {_number(found.rank_correlation)} over all answers (Spearman), "
        f"{_number(found.group_correlation)} within groups (Kendall)",
        f"  another best answer in {100 * found.best_changed:.0f} % of the groups; "
        f"{found.gained} answers pass that did not, {found.lost} no longer pass",
    ]
    if found.failures:
        counts = ", ".join(f"{count} of {name}" for name, count in found.failures.items())
        lines.insert(1, f"  failed calls: {counts}; the first: {found.first_failure}")
    for flip in found.flips[:FLIPS_SHOWN]:
        text = " ".join(flip.completion.split())[:60]
        lines.append(f"    {flip.item} step {flip.step} sample {flip.sample}: {flip.old:.2f} -> {flip.new:.2f}  {text}")
    return lines


if __name__ == "__main__":
    run_command(main)
