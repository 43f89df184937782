"""What a run records about what it ran on: versions, a commit, devices, and what stood in for what."""

from __future__ import annotations

from typing import Any

from envs.by_name import digest
from rl_lab.common.machine import devices, git_commit, installed_versions
from rl_lab.config.robotwin import box_robot_row, describe_robotwin
from rl_lab.config.schema import RunConfig

STAND_INS = (
    ("code_weight", "a teacher's codebook of visual codes", "k-means over patches of the pictures"),
    ("global_weight", "a teacher's global feature", "principal components of the pictures' thumbnails"),
)
"""Weight of an auxiliary loss, what its teacher would give, and what does instead."""


def describe(config: RunConfig) -> dict[str, Any]:
    """The content of environment.json."""
    hardware = devices()
    own = {key: {"source": source, "digest": digest(source)} for key, source in config.own_code.items()}
    robotwin = describe_robotwin(config) if config.runs_episodes and config.env.backend == "robotwin" else {}
    return {
        "versions": installed_versions(),
        "commit": git_commit(),
        "devices": hardware,
        "seeds": {"run": config.seed, "evaluation": config.eval.seeds},
        "backend": config.env.backend if config.runs_episodes else "none",
        **({"robotwin": robotwin} if robotwin else {}),
        **({"own_code": own} if own else {}),
        "substitutions": box_robot_row(robotwin) + substitutions(config, hardware["gpus"]),
    }


def substitutions(config: RunConfig, gpus: list[str]) -> list[dict[str, str]]:
    """What stands in for what, as {wanted, used, why}; the report names it with its verdict."""
    rows = []
    if config.placement.device == "cpu" or not gpus:
        why = "placement is cpu" if config.placement.device == "cpu" else "torch sees no GPU"
        rows.append({"wanted": "GPU", "used": "CPU", "why": why})
    if config.learns_actions and config.env.backend == "tabletop":
        why = (
            "embedded MuJoCo tasks with RoboTwin's names; scores are tabletop's own and not comparable with RoboTwin's"
        )
        rows.append({"wanted": "RoboTwin", "used": "tabletop", "why": why})
    if config.model.reads_truth:
        why = "a study: its policy reads the simulator's truth and sees nothing; its numbers hold for none that sees"
        rows.append({"wanted": "pictures and words", "used": "the simulator's truth", "why": why})
    elif config.model.code is not None:
        name = config.model.code.rpartition(":")[2]
        rows.append({"wanted": "MoT-2B", "used": f"{name}, the user's own", "why": "model.code names another policy"})
    elif config.model.path is None and config.model.preset != "mot-2b":
        why = "same architecture at another size, random weights before the first training stage"
        rows.append({"wanted": "MoT-2B", "used": config.model.preset, "why": why})
    if config.learns_language and not config.questions.files():
        why = "questions over pictures of the tabletop scenes, with ground truth from the simulator"
        rows.append({"wanted": "embodied question sets", "used": "generated questions", "why": why})
    if config.reads("sft") and config.sft.probe_weight > 0:
        why = "an auxiliary loss on simulator ground truth in SFT; at evaluation the policy has images only"
        rows.append({"wanted": "spatial pre-training of the vision tower", "used": "privileged probe loss", "why": why})
    trained = {name: getattr(config, name) for name in ("sft", "cold_start", "rl") if config.reads(name)}
    for weight, wanted, used in STAND_INS:
        where = ", ".join(name for name, settings in trained.items() if weight in settings.auxiliary)
        if where:
            rows.append({"wanted": wanted, "used": used, "why": f"an auxiliary loss in {where} without a teacher"})
    if config.collects_pairs:
        kind = config.collect.corrector.kind
        who = {"scripted_expert": "the scripted expert", "policy": "a teacher policy", "recorded": "recorded commands"}
        who["own"] = f"the user's own {(config.collect.corrector.code or '').rpartition(':')[2]}"
        by = "from simulator ground truth" if config.collect.detector is None else "by the user's own detector"
        why = f"failures are detected {by}, and corrected by {who[kind]}"
        if kind == "scripted_expert":
            why += ", which reads it too"
        rows.append({"wanted": "human operator", "used": f"detector and {who[kind]}", "why": why})
    return rows
