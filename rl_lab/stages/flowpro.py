"""The action side: demonstrations, imitation, and rounds of a method, each of collecting, optimising and evaluating."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from algos.methods import ALIASES, find_method
from rl_lab.config.actions import FilesConfig, RankingConfig
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, Place, StageKind, recording_digest
from rl_lab.stages.action_rewards import MODELS, add_candidates, add_rank, add_sweep
from rl_lab.stages.base import BASE_POLICY, SIMULATORS, TrainingKind

EXPERT_ONLY = 0.15
"""Times the seconds of a row, when the prefix is computed once for all steps."""


class DemosKind(StageKind):
    """Successful episodes of the scripted expert, or those of files."""

    name = "demos"
    reads = ("env", "demos")
    simulates = of_actions = is_joint = True
    workers = SIMULATORS
    folder = "episodes"
    seconds_per_unit = 0.25
    has_model = False

    def params(self, config: RunConfig) -> dict[str, Any]:
        """With the content of the files, which later stages have by their input."""
        params = super().params(config)
        if config.demos.files is not None:
            named = [*config.demos.files.paths, *filter(None, [config.demos.files.index])]
            params["demos"]["files"]["paths"] = [recording_digest(Path(path)) for path in named]
        return params

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        if config.demos.files is not None:
            return _num_recorded(config.demos.files), "episodes"
        return config.demos.episodes * len(config.env.tasks) * len(config.env.variants), "episodes"


def _num_recorded(files: FilesConfig) -> int:
    """Episodes in the files of demonstrations."""
    from rl_lab.records.sources import find_recordings  # here, because it imports the readers of all formats

    return len(find_recordings(**files.reading(), image_size=1)[0])


class SFTKind(TrainingKind):
    """Flow matching on the demonstrations, from the configured preset or checkpoint."""

    name = "sft"
    after = ("demos",)
    reads = ("env", "model", "demos", "sft")
    of_actions = True
    seconds_per_row = 0.005


class GivenKind(StageKind):
    """The configured checkpoint as the policy that rounds begin with; without the stage sft it takes its place."""

    name = "given"
    reads = ("model",)
    folder = "checkpoints"
    makes = "model"


class EvaluateKind(StageKind):
    """Success of a policy on the evaluation seeds of every task and variant."""

    name = "evaluate"
    start = BASE_POLICY
    reads = ("env", "eval")
    simulates = of_actions = is_joint = True
    workers = SIMULATORS
    folder = "episodes"
    seconds_per_unit = 0.2

    def needs(self, graph: Expansion) -> tuple[str, ...]:
        """In a joint run the demonstrations."""
        return ("demos",) if graph.config.is_joint else ()

    def expand(self, graph: Expansion, step: Step) -> None:
        """Of the policy that everything starts from; what is trained has its own, see there."""
        policy = graph.base.inputs() if graph.config.is_joint else {"policy": "sft"}
        if policy:
            graph.add("base.evaluate", "evaluate", policy)

    def examined(self, config: RunConfig) -> set[Place]:
        """Those of the evaluation seeds."""
        from rl_lab.workers.simulation import evaluation_groups  # here, because it imports the simulator's workers

        units = [unit for units, _ in evaluation_groups(config, config.seed) for unit in units]
        return {(unit.env.task, unit.env.variant, seed) for unit in units for seed in unit.seeds}

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        return config.eval.episodes * len(config.env.tasks) * len(config.env.variants), "episodes"


class CollectKind(StageKind):
    """Preference pairs from a policy's failures."""

    name = "collect"
    reads = ("env", "collect")
    simulates = of_actions = True
    workers = SIMULATORS
    folder = "pairs"

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Pairs."""
        return config.collect.pairs, "pairs"


class OptimiseKind(TrainingKind):
    """One round of a method on its pairs, older pairs and demonstrations."""

    name = "optimise"
    reads = ("env", "demos", "optimise")
    of_actions = True
    seconds_per_row = 0.0065

    def rows(self, node: Node, config: RunConfig) -> float:
        """Fewer by the prefix that is computed once."""
        share = EXPERT_ONLY if config.optimise.train == ("expert",) else 1.0
        return share * super().rows(node, config)


class RoundsKind(StageKind):
    """A repeated block: all rounds of every method, each from the same policy; or the variants of a sweep."""

    name = "repeat"
    after = ("demos",)
    start = BASE_POLICY

    def expand(self, graph: Expansion, step: Step) -> None:
        """Collect, optimise, evaluate."""
        assert step.rounds is not None
        config = graph.config
        if config.sweep is not None and config.sweep.rankings:
            add_sweep(graph, add_optimise)
            return
        for method in config.methods:
            policy, pairs = "sft", dict[str, str]()
            for number in range(1, step.rounds.repeat + 1):
                policy = _round(graph, step.rounds.of, method, number, policy, pairs)

    def finish(self, graph: Expansion) -> None:
        """Nothing comes behind."""
        if graph.last != self.name:
            raise ValueError("stages: the repeated stages must come last")


def _round(graph: Expansion, of: tuple[Any, ...], method: str, number: int, policy: str, pairs: dict[str, str]) -> str:
    """One round of one method, whose pairs join those of earlier ones. Its policy."""
    prefix, acts = f"{method}.{number}", {"policy": policy}
    labels: dict[str, Any] = {"method": method, "round": number}
    if find_method(method).needs_collection:
        node = graph.add(f"{prefix}.collect", "collect", acts, more={"round": number}, **labels)
        pairs[f"pairs.{len(pairs) + 1}"] = node.name
    inputs = acts | {"sft": "sft", "demos": "demos"} | pairs
    ranking = None
    if "rank" in of and find_method(method).rows == "tuples":
        ranking = graph.config.ranking
        candidates = add_candidates(graph, prefix, policy, **labels)
        inputs["ranked"] = add_rank(graph, prefix, candidates, MODELS, **labels)
    trained = add_optimise(graph, prefix, method, inputs, ranking, **labels)
    if "evaluate" in of:
        graph.add(f"{prefix}.evaluate", "evaluate", {"policy": trained}, **labels)
    return trained


def add_optimise(
    graph: Expansion,
    prefix: str,
    row: str,
    inputs: Mapping[str, str],
    ranking: RankingConfig | None,
    more: Mapping[str, Any] | None = None,
    **labels: Any,
) -> str:
    """The node that trains by the method `row`; only the settings that it uses enter its params."""
    method, objective, buffers = find_method(row), graph.config.objective(row), graph.config.buffers
    shares = buffers.mix_first if labels["round"] == 1 else buffers.mix_later
    mix = shares if ranking is None else ranking.mix(shares)
    own: dict[str, Any] = {"method": ALIASES.get(row, row), "round": labels["round"]} | dict(more or {})
    if method.needs_reference:
        own["objective"] = objective.model_dump(mode="json")
    if method.needs_collection:
        own["mix"] = list(mix)
    return graph.add(f"{prefix}.optimise", "optimise", inputs, more=own, objective=objective, mix=mix, **labels).name
