"""What a run is going to do and what it is going to cost, before anything is started."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rl_lab.config.action import FilesConfig
from rl_lab.config.schema import RunConfig
from rl_lab.runner import joint_costs
from rl_lab.runner.graph import Node
from rl_lab.runner.schedule import wall_seconds
from rl_lab.runner.store import Store

CORES = 2
"""The estimate is for a machine with so many."""
SECONDS_PER_UNIT = {"demos": 0.25, "collect": 1.0, "evaluate": 0.2, "report": 15.0, "questions": 0.02, "examine": 0.01}
SECONDS_PER_UNIT |= {"development": 0.02, "traces": 0.01, "gate": 1.0, "join": 1.0, "teacher": 1.0, "given": 1.0}
SECONDS_PER_UNIT |= {"record": 0.25, "candidates": 0.25, "rank": 0.02}
SECONDS_PER_UNIT |= {"outcome_labels": 5.0, "outcome_model": 30.0}
"""An expert episode, a preference pair, a policy episode, the page, a question, an answer; a decision, a copy; a policy
episode with pictures, a state with its chunks."""
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
PARAMETERS = {"nano": 2.7e6, "small": 12.4e6, "mini": 50.9e6, "mot-2b": 4.5e9}
"""Of each preset. Seconds of a step with a model grow with them: a teacher of preset small took 4.3 times nano's."""
MEASURED = ("nano", "small")
CPU_PARAMETERS = 100e6
"""Larger models need a GPU, and no time is estimated: a step of a batch takes minutes on two cores, a stage days."""


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


def _parameters(model: Any) -> float:
    """Of a preset, or of a checkpoint by the headers of its files."""
    if model.path is None:
        return PARAMETERS[model.preset]
    from rl_lab.model.weights import checkpoint_shapes  # here, because it imports torch

    return float(sum(math.prod(shape) for shape in checkpoint_shapes(Path(model.path)).values()))


def _own_examinations(node: Node, config: RunConfig) -> float:
    """Seconds of the examinations of held-out questions, one answer each, while a stage trains."""
    if node.kind not in ("grpo", "distill", "imitate"):
        return 0.0
    training = _training(node, config)
    times = training.steps // training.examine_every if training.examine_every else 0
    return times * config.questions.held_out * SECONDS_PER_UNIT["examine"]


def seconds(node: Node, config: RunConfig) -> float:
    """Rough wall time of a stage on two CPU cores; infinite for a model that needs a GPU."""
    factor = 1.0
    if node.kind not in ("demos", "questions", "development", *ONE):
        size = _parameters(node.sections.get("model", config.model))
        factor = math.inf if size > CPU_PARAMETERS else size / PARAMETERS["nano"]
    if node.kind in joint_costs.KINDS:
        work = joint_costs.joint_seconds(node, config, SECONDS_PER_UNIT, SECONDS_PER_ROW)
    else:
        work = units(node, config)[0] * _seconds_per_unit(node, config) + _own_examinations(node, config)
    return SECONDS_PER_STAGE + work * factor


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
        time = f"{cost / 60:7.1f} min" if cost < math.inf else "needs a GPU"
        rows.append(f"  {node.name:28} {digest[:12]:12}  {amount:>14}  {time}{note}")
    total = wall_seconds(nodes, costs, min(CORES, config.workers.stages)) / 60
    if total == math.inf:
        largest = f"models of more than {CPU_PARAMETERS / 1e6:.0f} million parameters are not estimated on a CPU"
        return "\n".join([*rows, f"  needs a GPU: {largest}"])
    note = "" if config.model.preset in MEASURED else "; only nano and small were measured"
    return "\n".join([*rows, f"  about {total:.0f} min on two CPU cores, if nothing else runs{note}"])
