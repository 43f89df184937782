"""A joint run: demos, questions, development (questions of the short examinations), warm_start, base.examine,
base.evaluate; then of every arm its joint, examine and evaluate.

Arms: together; sequence; grpo_alone and rpro_alone (`isolated`); variants of these. All start from the same policy.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any

from algos.methods import find_method
from rl_lab.common.errors import UserError
from rl_lab.common.seeding import evaluation_seeds, integer
from rl_lab.config.joint import check_settings
from rl_lab.config.load import with_changes
from rl_lab.config.pipeline import Step
from rl_lab.config.schema import RunConfig
from rl_lab.graph.expand import Expansion
from rl_lab.graph.nodes import Node, Place
from rl_lab.graph.stage import StageContext
from rl_lab.learner.actions import SFTPlan
from rl_lab.learner.joint import JointPlan
from rl_lab.learner.warm_start import WarmStartPlan
from rl_lab.rollouts.answering import engines, policy_folder
from rl_lab.stages.base import BASE_POLICY, ENGINES, SIMULATORS, TrainingKind, run_online
from rl_lab.stages.flowpro import CollectKind, EvaluateKind, OptimiseKind, SFTKind
from rl_lab.stages.grpo import GRPOKind
from rl_lab.stages.language import ColdStartKind
from rl_lab.training.dataset import train
from rl_lab.training.interleaved import JointRun
from rl_lab.training.state import JointState
from rl_lab.workers.cluster import Cluster
from rl_lab.workers.simulation import env_specs


def variant(config: RunConfig, name: str) -> RunConfig | None:
    """The settings of an arm that is a variant, as those of a run with it alone; None for the others. ValueError where
    they cannot be."""
    if name not in config.joint.variants:
        return None
    order, changes = config.joint.order(name), config.joint.variants[name].changes
    alone: dict[str, Any] = {"arms": [order], "variants": {}, "guard": None}
    alone |= {} if order == "together" else {"lead": 0}
    text = ", ".join(f"{key}={json.dumps(value)}" for key, value in changes.items())
    where = f"joint.variants.{name}" + (f" with {text}" if text else "")
    try:
        return with_changes(config, {"joint": config.joint.model_dump(mode="json") | alone}, changes, where)
    except UserError as error:
        raise ValueError(str(error)) from error


class WarmStartKind(TrainingKind):
    """Imitation of worked solutions and of demonstrations, interleaved: a policy with both skills to begin with."""

    name = "warm_start"
    after = ("demos", "questions")
    reads = ("env", "model", "demos", "sft", "cold_start")
    is_joint = makes_joint = True
    section = "sft"

    def fits(self, config: RunConfig) -> None:
        """What only the stage cold_start does is not asked of it."""
        if config.questions.sources() or config.cold_start.max_length is not None:
            raise ValueError(
                "questions.cold_start_sources, validation_sources and cold_start.max_length are for the stage "
                "cold_start, not for warm_start; leave them out"
            )

    def finish(self, graph: Expansion) -> None:
        """There is something for the policy to do."""
        if "joint" not in graph.done:
            raise ValueError("stages: warm_start makes a policy for joint, which is not there; add joint")

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Steps of both."""
        return config.cold_start.steps + config.sft.steps, "steps"

    def work_seconds(self, node: Node, config: RunConfig) -> float:
        """Of both."""
        parts = ((config.cold_start, ColdStartKind), (config.sft, SFTKind))
        return sum(part.steps * part.batch_size * kind.seconds_per_row for part, kind in parts)

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """Imitation of worked solutions and of demonstrations, interleaved."""
        config, inputs = context.config, context.inputs
        actions = SFTPlan(config.model, config.sft, inputs["demos"], config.demos.stride, context.seed)
        plan = WarmStartPlan(actions, config.cold_start, inputs["questions"] / "cold_start.arrow")
        train(cluster, context, plan)


class JointKind(TrainingKind):
    """One arm: GRPO and RPRO on one learner."""

    name = "joint"
    after = ("demos", "questions")
    start = BASE_POLICY
    reads = (
        *("model", "engine", "grpo", "rl", "curriculum", "rewards", "truth", "examine"),
        *("env", "demos", "collect", "optimise", "buffers", "eval", "joint"),
    )
    is_joint = makes_joint = is_live = simulates = True
    workers = SIMULATORS | ENGINES
    folder = "joint"
    section = "optimise"

    def expand(self, graph: Expansion, step: Step) -> None:
        """Of every arm the training, and the held-out reward and success as far as the stages name them."""
        joint, start = graph.config.joint, graph.base.inputs()
        for arm in joint.names:
            settings = variant(graph.config, arm)
            objective = (settings or graph.config).objective((settings or graph.config).joint.method)
            inputs = {role: role for role in ("demos", "questions", "development")} | start
            more = {"arm": joint.order(arm), "objective": objective.model_dump(mode="json")}
            labels: dict[str, Any] = {"method": arm, "round": 1}
            own = labels | {"objective": objective, "config": settings}
            policy = {"policy": graph.add(f"{arm}.joint", "joint", inputs, more=more, **own).name}
            if "examine" in graph.names:
                asked = {"questions": "questions"} | policy
                graph.add(f"{arm}.examine", "examine", asked, **labels)
            if "evaluate" in graph.names:
                graph.add(f"{arm}.evaluate", "evaluate", policy, **labels)

    def finish(self, graph: Expansion) -> None:
        """What all arms need comes first, whatever the order of the file."""
        first = ("demos", "questions", "development", "warm_start", "examine", "evaluate")
        graph.nodes.sort(key=lambda node: len(first) if node.method else first.index(node.kind))

    def examined(self, config: RunConfig) -> set[Place]:
        """Those of its short examinations."""
        seeds = evaluation_seeds("development", config.joint.exam_episodes)
        return {(spec.task, spec.variant, seed) for spec in env_specs(config, "seen") for seed in seeds}

    def fits(self, config: RunConfig) -> None:
        """See `rl_lab.config.joint`."""
        check_settings(config)

    def params(self, config: RunConfig) -> dict[str, Any]:
        """Without the other arms."""
        params = super().params(config)
        params["joint"] = {key: value for key, value in params["joint"].items() if key not in ("arms", "variants")}
        return params

    def units(self, node: Node, config: RunConfig) -> tuple[int, str]:
        """Turns of both objectives."""
        return sum(_turns(node, config).values()), "turns"

    def work_seconds(self, node: Node, config: RunConfig) -> float:
        """Of turns, pairs and examinations."""
        turns, joint = _turns(node, config), config.joint
        scenes = len(config.env.tasks) * len(config.env.variants)
        exams = 1 + sum(turns.values()) / joint.exam_every
        seconds = exams * joint.exam_episodes * scenes * EvaluateKind.seconds_per_unit
        if "grpo" in turns:
            rows = turns["grpo"] * config.curriculum.batch_size * config.grpo.num_generations
            seconds += rows * GRPOKind.seconds_per_row
        if "rpro" in turns:
            rows = joint.rounds * config.optimise.steps * config.optimise.batch_size
            pairs = joint.rounds * config.collect.pairs * find_method(joint.method).needs_collection
            seconds += rows * OptimiseKind.seconds_per_row + pairs * CollectKind.seconds_per_unit
        return seconds

    def run(self, cluster: Cluster, context: StageContext) -> None:
        """One arm in a learner process; if that dies, it goes on from the last checkpoint."""
        plan, policy = _plan(context), policy_folder(context)
        with cluster.simulation_pool(context.say) as simulations, engines(cluster, context) as answering:
            run_online(
                cluster,
                context,
                plan,
                partial(JointRun, context, policy, answering, simulations),
                answering,
                simulations,
                state=JointState,
            )


def _turns(node: Node, config: RunConfig) -> dict[str, int]:
    blocks = -(-config.optimise.steps // config.joint.block)
    turns = {"grpo": config.rl.steps, "rpro": config.joint.rounds * blocks}
    arm = node.params["arm"]
    return {part: count for part, count in turns.items() if arm in (f"{part}_alone", "together", "sequence")}


def _plan(context: StageContext) -> JointPlan:
    config, arm = context.config, context.node.params["arm"]
    return JointPlan(
        policy=policy_folder(context),
        demos=context.inputs["demos"],
        stride=config.demos.stride,
        parts=(arm.removesuffix("_alone"),) if arm.endswith("_alone") else ("grpo", "rpro"),
        grpo=config.grpo,
        rl=config.rl,
        method=config.row(config.joint.method),
        rpro=context.objective,
        optimise=config.optimise,
        buffers=config.buffers,
        rounds=config.joint.rounds,
        cosine_every=config.joint.cosine_every,
        seed=integer(context.seed, "joint"),
        questions=context.inputs["questions"] / "train.arrow",
    )
