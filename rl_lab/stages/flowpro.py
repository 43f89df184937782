"""The action side: demonstrations, imitation, and rounds of a method, each of collecting, optimising and evaluating.

Where a method is a policy gradient its rounds collect episodes with noise (`explore`) in the place of pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray

from algos.methods import ALIASES
from envs.by_name import DIGESTS
from envs.types import Episode
from rl_lab.common.files import read_json_lines, write_json_lines
from rl_lab.common.reading import read_object
from rl_lab.common.stats import wilson
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, Place, StageKind, recording_digest
from rl_lab.graph.stage import StageContext
from rl_lab.learner.actions import OptimisePlan, SFTPlan, starting_policy
from rl_lab.learner.policy_gradient import PolicyGradientPlan
from rl_lab.model.checkpoint import published, save_policy
from rl_lab.records.episodes import INDEX_FILE, write_episodes
from rl_lab.rollouts.collect import COUNTS_FILE, Request, collect_pairs, round_name, swap, write_collection
from rl_lab.rollouts.evaluation import evaluate_policy
from rl_lab.rollouts.policy_episodes import explore
from rl_lab.rollouts.recorded_demos import num_recorded, record_demos
from rl_lab.rollouts.simulator_errors import ErrorWatch, summary
from rl_lab.stages.action_rewards import add_ranking
from rl_lab.stages.base import BASE_POLICY, SIMULATORS, TrainingKind
from rl_lab.training.dataset import train
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import (
    ERRORS,
    MODE,
    REJECTED,
    Rejection,
    Unit,
    demonstrations_wanted,
    drawn_units,
    evaluation_groups,
)

ORDERS = (
    *(("collect", "optimise"), ("collect", "optimise", "evaluate")),
    *(("collect", "rank", "optimise"), ("collect", "rank", "optimise", "evaluate")),
)
"""Of the stages of a round."""

EXPERT_ONLY = 0.15
"""Times the seconds of a row, when the prefix is computed once for all steps."""

RESULTS_FILE = "results.jsonl"


class DemosKind(StageKind):
    """Successful episodes of the scripted expert, or those of files."""

    name = "demos"
    reads = ("env", "demos")
    simulates = of_actions = is_joint = True
    workers = SIMULATORS
    folder = "episodes"
    seconds_per_unit = 0.25
    box_seconds_per_unit = 1.0
    has_model = False

    def params(self, config: RunConfig) -> dict[str, Any]:
        """With the content of the files, which later stages have by their input; a mode without a share is none."""
        params = super().params(config)
        params["demos"]["modes"] = {mode: share for mode, share in config.demos.modes.items() if share}
        if config.demos.files is not None:
            named = [*config.demos.files.paths, *filter(None, [config.demos.files.index])]
            params["demos"]["files"]["paths"] = [recording_digest(Path(path)) for path in named]
        return params

    def has_episodes(self, config: RunConfig) -> bool:
        """Those of files are only read."""
        return config.demos.files is None

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        if config.demos.files is not None:
            return num_recorded(config.demos.files), "episodes"
        return config.demos.episodes * len(config.env.tasks) * len(config.env.variants), "episodes"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Episodes of the scripted expert, the same number of each task, variant and mode; or those of files."""
        if context.config.demos.files is not None:
            record_demos(cluster, context)
            return
        noise_m, parts = context.config.demos.action_noise_m, demonstrations_wanted(context.config)
        total, kept = sum(wanted for _, wanted, _ in parts), list[Episode]()

        def submit(actor: Any, unit: Unit) -> ray.ObjectRef:
            return actor.demonstrate.remote(unit, noise_m)

        with cluster.simulation_pool() as pool:
            for spec, wanted, succeeds in parts:
                mode = f" in the mode {spec.expert_mode}" if spec.expert_mode else ""
                where = f"{spec.task} {spec.variant}{mode}"
                name = f"demos/{spec.expert_mode}" if spec.expert_mode else "demos"
                units = drawn_units("demos", spec, name, 4 * wanted, context.seed)
                good: list[Episode] = []
                rejected: list[Rejection] = []
                watch = ErrorWatch(where)
                for found in pool.map(submit, units, context.check_stop):
                    good += [one for one in found if isinstance(one, Episode) and one.success == succeeds]
                    for one in found:
                        watch.see(one.reason if isinstance(one, Rejection) and one.is_error else None)
                    rejected += [one for one in found if isinstance(one, Rejection)]
                    context.progress(len(kept) + min(len(good), wanted), total, where)
                    if len(good) >= wanted:
                        break
                if rejected:
                    reasons = summary(one.reason for one in rejected)
                    context.say(f"{where}: passed over {len(rejected)} seeds: {reasons}")
                if len(good) < wanted:
                    watch.end()
                    last = f"; last: {rejected[-1].reason}" if rejected else ""
                    did = "solved" if succeeds else "failed in"
                    raise RuntimeError(f"the expert {did} {len(good)} of {4 * wanted} episodes of {where}{last}")
                kept += good[:wanted]
        write_episodes(context.out, kept)

    def finding(self, out: Path) -> str:
        """How many demonstrations show another mode than the expert's own, if any do."""
        rows = read_json_lines(out / INDEX_FILE, missing_ok=True)
        modes = Counter((row["extra"][MODE], row["success"]) for row in rows if MODE in row.get("extra", {}))
        said = [f"{count} {mode}, {'solved' if good else 'failed'}" for (mode, good), count in modes.items()]
        return f"{len(rows)} episodes, of them {'; '.join(said)}" if said else ""


class SFTKind(TrainingKind):
    """Flow matching on the demonstrations, from the configured preset or checkpoint."""

    name = "sft"
    after = ("demos",)
    reads = ("env", "model", "demos", "sft")
    of_actions = True
    seconds_per_row = 0.005

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Flow matching on the demonstrations, from the configured preset or checkpoint."""
        config = context.config
        plan = SFTPlan(config.model, config.sft, context.inputs["demos"], config.demos.stride, context.seed)
        train(cluster, context, plan)


class GivenKind(StageKind):
    """The configured checkpoint as the policy that rounds begin with; without the stage sft it takes its place."""

    name = "given"
    named_in = ()
    reads = ("model",)
    folder = "checkpoints"
    makes = "model"

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """The configured checkpoint as the policy that rounds begin with, with what the lab knows about it."""
        start = starting_policy(context.config.model, context.seed, stride=1)
        assert start.processor is not None, "checked before the run"
        save_policy(context.out, start.policy, start.processor, replace(start.info, weight_version=1))


class EvaluateKind(StageKind):
    """Success of a policy on the evaluation seeds of every task and variant."""

    name = "evaluate"
    named_in = ("stages", "repeat")
    start = BASE_POLICY
    reads = ("env", "eval")
    simulates = of_actions = is_joint = True
    workers = SIMULATORS
    folder = "episodes"
    seconds_per_unit = 0.2
    box_seconds_per_unit = 1.3

    def needs(self, graph: Expansion) -> tuple[str, ...]:
        """In a joint run the demonstrations."""
        return ("demos",) if graph.config.is_joint else ()

    def expand(self, graph: Expansion, step: Step) -> None:
        """Of the policy that everything starts from; what is trained has its own, see there."""
        policy = graph.base.inputs() if graph.config.is_joint else {"policy": "sft"}
        if policy:
            graph.add("base.evaluate", "evaluate", policy)

    def params(self, config: RunConfig) -> dict[str, Any]:
        """Of ways to execute chunks that are the same without latency, one."""
        params = super().params(config)
        if config.eval.latency == 0 and config.eval.join in ("jump", "stitch"):
            params["eval"]["join"] = "wait"
        return params

    def examined(self, config: RunConfig) -> set[Place]:
        """Those of the evaluation seeds."""
        units = [unit for units, _ in evaluation_groups(config, config.seed) for unit in units]
        return {(unit.env.task, unit.env.variant, seed) for unit in units for seed in unit.seeds}

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        return config.eval.episodes * len(config.env.tasks) * len(config.env.variants), "episodes"

    def finding(self, out: Path) -> str:
        """Successes with their interval."""
        rate = self.measured(out)
        if not rate:
            return ""
        solved, ends = round(rate["success"] * rate["episodes"]), (rate["success_low"], rate["success_high"])
        return f"{solved} of {rate['episodes']}, {100 * ends[0]:.0f} to {100 * ends[1]:.0f} %"

    def measured(self, out: Path) -> dict[str, float]:
        """The success rate, the ends of its interval, and episodes."""
        solved = [bool(row.get("success")) for row in read_json_lines(out / RESULTS_FILE, missing_ok=True)]
        if not solved:
            return {}
        rate = wilson(sum(solved), len(solved))
        return {"success": rate.value, "success_low": rate.low, "success_high": rate.high, "episodes": len(solved)}

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Success of the policy on the evaluation seeds of every task and variant."""
        snapshot = published(context.inputs["policy"], context.config.policy_code)
        with cluster.simulation_pool() as pool:
            found = evaluate_policy(
                pool,
                cluster.share(snapshot),
                context.config,
                context.seed,
                context.scratch,
                check_stop=context.check_stop,
                progress=context.progress,
            )
        write_json_lines(context.out / RESULTS_FILE, found.rows)
        if found.rejected:
            reasons = summary(row[REJECTED] for row in found.rejected)
            context.say(f"passed over {len(found.rejected)} seeds: {reasons}")
            write_json_lines(context.out / "rejected.jsonl", found.rejected)


class CollectKind(StageKind):
    """Preference pairs from a policy's failures."""

    name = "collect"
    named_in = ("repeat",)
    reads = ("env", "collect")
    simulates = of_actions = True
    workers = SIMULATORS
    folder = "pairs"
    box_seconds_per_unit = 3.6

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Pairs."""
        return config.collect.pairs, "pairs"

    def finding(self, out: Path) -> str:
        """Pairs, and what they took."""
        counts = _counts(out)
        spent = ", ".join(f"{counts[key]} {key}" for key in ("episodes", "interventions") if key in counts)
        noise = f"; {counts['swapped']} of them swapped" if "swapped" in counts else ""
        return f"{counts['pairs']} pairs from {spent}{noise}" if "pairs" in counts else ""

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Preference pairs from the policy's failures, shared evenly by tasks and variants."""
        snapshot = published(context.inputs["policy"], context.config.policy_code)
        name = round_name(snapshot.version)
        request = Request(name, context.seed, context.scratch, context.check_stop, context.progress)
        with cluster.simulation_pool() as pool:
            pairs, counts = collect_pairs(pool, cluster.share(snapshot), context.config, request)
        errors = [f"{number} x {key.removeprefix(ERRORS)}" for key, number in counts.items() if key.startswith(ERRORS)]
        if errors:
            context.say(f"errors of the simulator: {', '.join(errors)}")
        if not pairs:
            raise RuntimeError(
                f"no preference pair in {counts['episodes']} episodes: the policy no longer fails, or nothing it does "
                "can be corrected; raise collect.max_episodes or stop at the previous round"
            )
        pairs, swapped = swap(pairs, context.config.collect.swapped_share, context.seed, name)
        if swapped:
            counts["swapped"] = swapped
        write_collection(context.out, pairs, counts)


def _counts(out: Path) -> dict[str, Any]:
    """What a collection or an exploration took; {} where it has not ended."""
    path = out / COUNTS_FILE
    return read_object(path) if path.is_file() else {}


class ExploreKind(StageKind):
    """Groups of episodes of a policy with noise, which policy gradients learn from in the place of pairs."""

    name = "explore"
    named_in = ()
    reads = ("env", "explore")
    simulates = of_actions = True
    workers = SIMULATORS
    folder = "explorations"
    seconds_per_unit = 0.25

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Episodes."""
        return config.explore.groups * config.explore.episodes, "episodes"

    def finding(self, out: Path) -> str:
        """Successes, and what they took."""
        counts = _counts(out)
        return "{successes} of {episodes} episodes in {policy_steps} steps".format(**counts) if counts else ""

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Groups of episodes with the paths of all decisions, shared evenly by tasks and variants."""
        explore(cluster, context)


class OptimiseKind(TrainingKind):
    """One round of a method on its pairs, older pairs and demonstrations."""

    name = "optimise"
    named_in = ("repeat",)
    reads = ("env", "demos", "optimise")
    of_actions = True
    seconds_per_row = 0.0065

    def rows(self, node: Node, config: RunConfig) -> float:
        """Fewer by the prefix that is computed once."""
        share = EXPERT_ONLY if config.optimise.train == ("expert",) else 1.0
        return share * super().rows(node, config)

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """One round of a method on this round's pairs, older pairs and demonstrations, or on this round's episodes."""
        node, inputs = context.node, context.inputs
        assert node.round is not None and node.mix is not None
        shared: dict[str, Any] = {
            "method": node.params["method"],
            "round": node.round,
            "settings": context.config.optimise,
            "objective": context.objective,
            "policy": inputs["policy"],
            "seed": context.seed,
            "code": context.config.policy_code,
        }
        if "explored" in inputs:
            train(cluster, context, PolicyGradientPlan(explored=inputs["explored"], **shared))
            return
        plan = OptimisePlan(
            mix=node.mix,
            sft=inputs["sft"],
            demos=inputs["demos"],
            stride=context.config.demos.stride,
            pairs=tuple(context.pairs),
            ranked=inputs.get("ranked"),
            **shared,
        )
        train(cluster, context, plan)


class RoundsKind(StageKind):
    """A repeated block: all rounds of every method, each from the same policy."""

    name = "repeat"
    named_in = ()
    after = ("demos",)
    start = BASE_POLICY

    def expand(self, graph: Expansion, step: Step) -> None:
        """Collect, optimise, evaluate."""
        assert step.rounds is not None
        for method in graph.config.methods:
            policy, pairs = "sft", dict[str, str]()
            for number in range(1, step.rounds.repeat + 1):
                policy = _round(graph, step.rounds.of, method, number, policy, pairs)

    def finish(self, graph: Expansion) -> None:
        """Nothing comes behind."""
        if graph.last != self.name:
            raise ValueError("stages: the repeated stages must come last")


def _round(graph: Expansion, of: tuple[Any, ...], method: str, number: int, policy: str, pairs: dict[str, str]) -> str:
    """One round of one method, whose pairs join those of earlier ones; of policy gradients on this round's episodes
    alone. Its policy."""
    prefix, acts = f"{method}.{number}", {"policy": policy}
    labels: dict[str, Any] = {"method": method, "round": number}
    row = graph.config.row(method)
    if row.needs_collection:
        node = graph.add(f"{prefix}.collect", "collect", acts, more={"round": number}, **labels)
        pairs[f"pairs.{len(pairs) + 1}"] = node.name
    inputs = acts | {"sft": "sft", "demos": "demos"} | pairs
    if row.sampler is not None:
        inputs = acts | {"explored": _add_explore(graph, prefix, policy, **labels)}
    if "rank" in of and row.rows == "tuples":
        inputs["ranked"] = add_ranking(graph, prefix, policy, **labels)
    trained = _add_optimise(graph, prefix, method, inputs, **labels)
    if "evaluate" in of:
        graph.add(f"{prefix}.evaluate", "evaluate", {"policy": trained}, **labels)
    return trained


def _add_explore(graph: Expansion, prefix: str, policy: str, **labels: Any) -> str:
    """Episodes of a policy that explores as its method asks for."""
    objective, row = graph.config.objective(labels["method"]), graph.config.row(labels["method"])
    more = {"round": labels["round"], "sampler": row.sampler}
    more |= objective.model_dump(mode="json", include={"noise", "noise_bounds"})
    return graph.add(f"{prefix}.explore", "explore", {"policy": policy}, more=more, objective=objective, **labels).name


def _add_optimise(graph: Expansion, prefix: str, row: str, inputs: Mapping[str, str], **labels: Any) -> str:
    """The node that trains by the method `row`; only the settings that it uses enter its params."""
    method, objective, buffers = graph.config.row(row), graph.config.objective(row), graph.config.buffers
    shares = buffers.mix_first if labels["round"] == 1 else buffers.mix_later
    mix = graph.config.ranking.mix(shares) if "ranked" in inputs else shares
    own: dict[str, Any] = {"method": ALIASES.get(row, row), "round": labels["round"]}
    if method.has_settings or method.code is not None:
        own["objective"] = objective.model_dump(mode="json", context=DIGESTS)
    if method.needs_collection:
        own["mix"] = list(mix)
    return graph.add(f"{prefix}.optimise", "optimise", inputs, more=own, objective=objective, mix=mix, **labels).name
