"""A joint run as nodes: demos, questions, development (questions of the short examinations), warm_start, base.examine,
base.evaluate; then of every arm its joint, examine and evaluate.

Arms: together; sequence; grpo_alone and rpro_alone (`isolated`). All start from the same policy with the same budgets.
"""

from __future__ import annotations

from collections.abc import Iterator

from rl_lab.config.schema import RunConfig
from rl_lab.runner.graph import Node, stage_params

ISOLATED = ("grpo_alone", "rpro_alone")


def arms(config: RunConfig) -> list[str]:
    """Names of the arms, in the order in which they run."""
    return [name for arm in config.joint.arms for name in (ISOLATED if arm == "isolated" else (arm,))]


def joint_nodes(config: RunConfig) -> Iterator[Node]:
    """The nodes of a joint run, every node after its inputs."""
    policy = {"policy": "warm_start"} if "warm_start" in config.stages else {}
    for stage in ("demos", "questions", "development"):
        yield Node(stage, stage, stage_params(config, stage))
    if policy:
        both = {"demos": "demos", "questions": "questions"}
        yield Node("warm_start", "warm_start", stage_params(config, "warm_start"), both)
    yield from _measured(config, "base", policy, None)
    for arm in arms(config):
        objective = config.objective("rpro")
        params = stage_params(config, "joint") | {"arm": arm, "objective": objective.model_dump(mode="json")}
        del params["joint"]["arms"]
        inputs = {role: role for role in ("demos", "questions", "development")} | policy
        yield Node(f"{arm}.joint", "joint", params, inputs, arm, round=1, replicate=1, objective=objective)
        yield from _measured(config, arm, {"policy": f"{arm}.joint"}, 1)


def _measured(config: RunConfig, name: str, policy: dict[str, str], number: int | None) -> Iterator[Node]:
    """Held-out reward and success of a model, as far as the stages name them."""
    method = None if number is None else name
    if "examine" in config.stages:
        inputs = {"questions": "questions", **policy}
        params = stage_params(config, "examine")
        yield Node(f"{name}.examine", "examine", params, inputs, method, number, number)
    if "evaluate" in config.stages and policy:
        yield Node(f"{name}.evaluate", "evaluate", stage_params(config, "evaluate"), policy, method, number)
