"""What a run is going to do and what it is going to cost, before anything is started."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rl_lab.config.action import FilesConfig
from rl_lab.config.schema import RunConfig
from rl_lab.runner import joint_costs
from rl_lab.runner.graph import Node
from rl_lab.runner.store import Store

CORES = 2
"""The estimate is for a machine with so many."""
SECONDS_PER_UNIT = {"demos": 0.25, "collect": 1.0, "evaluate": 0.2, "report": 15.0, "questions": 0.015, "examine": 0.03}
SECONDS_PER_UNIT |= {"development": 0.015, "traces": 0.01, "gate": 1.0, "join": 1.0, "teacher": 1.0, "given": 1.0}
SECONDS_PER_UNIT |= {"record": 0.25, "candidates": 0.25, "rank": 0.02}
SECONDS_PER_UNIT |= {"outcome_labels": 5.0, "outcome_model": 30.0}
"""An expert episode, a preference pair, a policy episode, the page, a question, an answer (at an examination in groups
of few); an answer in large groups, a decision, a copy; a policy episode with pictures, a state with its chunks."""
SECONDS_PER_ROW = {"sft": 0.005, "optimise": 0.0065, "cold_start": 0.006, "grpo": 0.012}
SECONDS_PER_ROW |= {"reward_model": 0.003, "outcome_member": 0.006, "rft": 0.006, "imitate": 0.006, "distill": 0.016}
"""A row of a batch through one training step, everything trainable; measured, like the above, with the nano preset in
the main experiment, where a second stage runs beside most."""
SECONDS_PER_STAGE = 5.0
"""Processes that start, weights that are loaded."""
ONE = {"gate": "decision", "join": "model", "teacher": "model", "given": "model", "report": "page"}
ONE |= {"outcome_labels": "table", "outcome_model": "model"}
EXPERT_ONLY = 0.15
"""Times that, when the prefix is computed once for all steps."""
PRESET_FACTOR = {"nano": 1, "small": 6, "mini": 25, "mot-2b": 1000}
"""Times the seconds of steps with a policy, by parameter count; only nano was measured."""


def units(node: Node, config: RunConfig) -> tuple[int, str]:
    """How many units of work a stage is, and what they are."""
    questions, exam = config.questions, config.examine
    if node.kind == "demos" and config.demos.files is not None:
        return _num_recorded(config.demos.files), "episodes"
    if node.kind in ("demos", "evaluate"):
        episodes = config.demos.episodes if node.kind == "demos" else config.eval.episodes
        return episodes * len(config.env.tasks) * len(config.env.variants), "episodes"
    if node.kind == "questions":
        return questions.train + questions.cold_start + questions.held_out, "questions"
    if node.kind == "development":
        return questions.development, "questions"
    if node.kind == "examine":
        development = questions.development * exam.samples * ("development" in node.inputs)
        return questions.held_out * (exam.samples + exam.blank_samples) + development, "answers"
    if node.kind == "traces":
        return (config.traces.items or questions.train) * config.traces.samples, "answers"
    if node.kind == "record":
        return config.record.episodes, "episodes"
    if node.kind in ("candidates", "rank"):
        return config.candidates.states, "states"
    if node.kind in ONE:
        return 1, ONE[node.kind]
    if node.kind in joint_costs.KINDS:
        return joint_costs.joint_units(node, config)
    return (config.collect.pairs, "pairs") if node.kind == "collect" else (_training(node, config).steps, "steps")


def _num_recorded(files: FilesConfig) -> int:
    """Episodes in the files of demonstrations."""
    from rl_lab.formats.recordings import find_recordings  # here, because it imports the readers of all formats

    return len(find_recordings(**files.reading(), image_size=1)[0])


def _training(node: Node, config: RunConfig) -> Any:
    """The section with the steps of a stage that trains."""
    name = {"grpo": "rl", "outcome_member": "outcome", "reward_model": "reward_models"}.get(node.kind, node.kind)
    return node.sections.get(name, getattr(config, name))


def _seconds_per_unit(node: Node, config: RunConfig) -> float:
    if node.kind in SECONDS_PER_UNIT:
        return SECONDS_PER_UNIT[node.kind]
    if node.kind == "grpo":
        rows = config.curriculum.batch_size * config.grpo.num_generations
    else:
        training = _training(node, config)
        rows = training.batch_size * getattr(training, "num_generations", 1)
        rows *= training.members if node.kind == "reward_model" else 1
    share = EXPERT_ONLY if node.kind == "optimise" and config.optimise.train == ("expert",) else 1.0
    return share * rows * SECONDS_PER_ROW[node.kind]


def seconds(node: Node, config: RunConfig) -> float:
    """Rough wall time of a stage."""
    model: Any = node.sections.get("model", config.model)
    factor = PRESET_FACTOR[model.preset] if node.kind not in ("demos", "questions", "development", *ONE) else 1
    if node.kind in joint_costs.KINDS:
        work = joint_costs.joint_seconds(node, config, SECONDS_PER_UNIT, SECONDS_PER_ROW)
    else:
        work = units(node, config)[0] * _seconds_per_unit(node, config)
    return SECONDS_PER_STAGE + work * factor


def wall_seconds(nodes: Sequence[Node], costs: Mapping[str, float]) -> float:
    """Of the whole graph: its longest path, or all its work shared by the cores."""
    finish: dict[str, float] = {}
    for node in nodes:
        needed = [*node.inputs.values(), *([node.when[0]] if node.when else [])]
        finish[node.name] = costs[node.name] + max((finish[name] for name in needed), default=0.0)
    return max(max(finish.values()), sum(costs.values()) / CORES)


def condition(node: Node) -> str:
    """Of a gate what it asks for, of what follows one when it runs; in words, empty for other nodes."""
    if node.kind == "gate":
        gate = node.params["gate"]
        otherwise = gate["otherwise"]
        rest = otherwise if isinstance(otherwise, str) else f"[{', '.join(otherwise)}]"
        return f"  passes on a rise above {gate['rise']:g} ({100 * gate['confidence']:g} % interval), else {rest}"
    if node.when is None:
        return ""
    return f"  if {node.when[0]} {'passes' if node.when[1] else 'does not pass'}"


def plan_table(config: RunConfig, nodes: Sequence[Node], hashes: Mapping[str, str], store: Store) -> str:
    """One row a stage: name, hash, work, rough minutes, and whether a stored result is reused; then the wall time."""
    rows, costs, seen = [], {}, set()
    for node in nodes:
        digest = hashes.get(node.name, "")
        reused = bool(digest) and (digest in seen or store.has(digest))
        seen.add(digest)
        costs[node.name] = cost = 0.0 if reused else seconds(node, config)
        amount = " ".join(map(str, units(node, config)))
        note = f"{'  reused' if reused else ''}{condition(node)}"
        rows.append(f"  {node.name:28} {digest[:12]:12}  {amount:>14}  {cost / 60:7.1f} min{note}")
    total = wall_seconds(nodes, costs) / 60
    note = "" if config.model.preset == "nano" else "; only nano was measured"
    return "\n".join([*rows, f"  about {total:.0f} min on two CPU cores, if nothing else runs{note}"])
