"""Cards of the models and data of a run: README.md in their folders, in the format of Hugging Face's hub.

A card says what was made from what, by which settings, what it measured with which interval, and what stood in for
what. It lies in the run folder only: what is stored knows nothing of the stages behind it. It can be shared: of paths
it has the last name. It has no licence: whoever shares a model or data chooses one.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData

from rl_lab.common.errors import UserError
from rl_lab.common.files import CARD_FILE, read_json_lines, write_whole
from rl_lab.common.reading import read_object
from rl_lab.reports.estimates import REWARD, SUCCESS, Estimate
from rl_lab.reports.numbers import OVERALL
from rl_lab.reports.run import LoadedRun, StageRow

LANGUAGE_MODEL = "hunyuan_vl_mot"
"""What config.json calls one; `rl_lab.model` says so too, and brings transformers."""
DATA = {
    "demos": "Demonstrations, an `.npz` an episode",
    "collect": "Preference pairs: what a policy did before a failure, and the correction, an `.npz` a pair",
    "rank": "Pairs of ranked chunks, an `.npz` a pair",
    "questions": "Questions over pictures with their answers, as Arrow",
}
"""Kinds of stages whose output is data to learn from, in words."""
SETTINGS = {
    "optimise": ("optimise", "objectives", "buffers"),
    "collect": ("collect", "env"),
    "rank": ("ranking", "candidates"),
    "demos": ("demos", "env"),
    "grpo": ("rl", "grpo", "curriculum", "rewards"),
    "teacher": ("teacher", "cold_start"),
    "warm_start": ("sft", "cold_start"),
    "joint": ("joint", "rl", "grpo", "optimise", "objectives"),
}
"""Sections of the configuration that a kind of stage is about, where there are others than that of its name."""


def write_cards(run: LoadedRun, table: Sequence[Estimate]) -> list[Path]:
    """A card for every model and all data of the run's finished stages; `table` is what it measured.

    Those of damaged folders become `problems` of the run.
    """
    written = []
    for stage in run.own_stages:
        for folder in run.path.glob(f"*/{glob.escape(stage.name)}") if stage.status == "done" else ():
            try:
                card = _card(run, stage, folder, table)
            except UserError as error:
                run.problems.append(str(error))
                continue
            if card is not None:
                write_whole(folder / CARD_FILE, str(card))
                written.append(folder / CARD_FILE)
    return written


def _card(run: LoadedRun, stage: StageRow, folder: Path, table: Sequence[Estimate]) -> ModelCard | DatasetCard | None:
    if (folder / "lab.json").is_file():
        return model_card(run, stage, folder, table)
    return data_card(run, stage, folder) if stage.kind in DATA else None


def model_card(run: LoadedRun, stage: StageRow, folder: Path, table: Sequence[Estimate]) -> ModelCard:
    """The card of a checkpoint."""
    on_language = read_object(folder / "config.json").get("model_type") == LANGUAGE_MODEL
    numbers = _measured(run, stage.name, table)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if on_language else "robotics",
        tags=["rl-lab", str(stage.kind)],
        model_name=f"{run.name} {stage.name}",
        eval_results=[_result(run, one) for one in numbers if one.scope == OVERALL] or None,
    )
    what = "A vision-language model" if on_language else "A policy of chunks of commands"
    use = (
        'AutoModelForImageTextToText.from_pretrained("FOLDER", trust_remote_code=True)'
        if on_language
        else "python -m rl_lab.eval FOLDER"
    )
    rows = [[_of(one), one.scope, one.n, one.write(one.value), one.ends()] for one in numbers]
    measured = _table(("measured", "on", "n", "value", "95 % interval"), rows) or "This run has not measured it."
    return ModelCard(
        _text(
            data,
            f"# {run.name}: {stage.name}",
            f"{what}, made by the stage `{stage.kind}` of the experiment `{run.name}` of rl-lab. Where `rl_lab` is "
            f"installed: `{use}`.",
            "## Numbers",
            measured,
            *_origin(run, stage),
        )
    )


def data_card(run: LoadedRun, stage: StageRow, folder: Path) -> DatasetCard:
    """The card of data that a stage made."""
    tags = ["rl-lab", str(stage.kind)]
    category = "visual-question-answering" if stage.kind == "questions" else "robotics"
    data = DatasetCardData(task_categories=[category], tags=tags, pretty_name=f"{run.name} {stage.name}")
    rows = len(read_json_lines(folder / "index.jsonl", missing_ok=True))
    counts = folder / "collection.json"
    known = read_object(counts) if counts.is_file() else {}
    numbers = {"rows": rows} | {key: value for key, value in known.items() if isinstance(value, int)}
    return DatasetCard(
        _text(
            data,
            f"# {run.name}: {stage.name}",
            f"{DATA[str(stage.kind)]}, made by the experiment `{run.name}` of rl-lab.",
            _table(("count", "number"), [[key, value] for key, value in numbers.items() if value]),
            *_origin(run, stage),
        )
    )


def _origin(run: LoadedRun, stage: StageRow) -> list[str]:
    """Sections of every card: what it was made from, what stood in, by which settings."""
    stages = {one.name: one for one in run.own_stages}
    names, waiting = {stage.name}, [stage]
    while waiting:
        new = [stages[name] for name in (waiting.pop().inputs or {}).values() if name in stages and name not in names]
        names |= {one.name for one in new}
        waiting += new
    made = [
        [one.name, one.kind, ", ".join(dict.fromkeys((one.inputs or {}).values())), f"`{str(one.hash)[:12]}`"]
        for one in run.own_stages
        if one.name in names
    ]
    rows = run.environment.get("substitutions", [])
    stand_ins = [[_without_folders(row[key]) for key in ("wanted", "used", "why")] for row in rows]
    sections = SETTINGS.get(str(stage.kind), (str(stage.kind),))
    settings = {key: run.config[key] for key in ("seed", *sections) if run.config.get(key) is not None}
    model = run.config.get("model") or {}
    settings |= {"model": {key: value for key, value in model.items() if value is not None}} if model else {}
    settings = _without_folders(settings)
    versions = run.environment.get("versions", {})
    known = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return [
        "## Made from",
        _table(("stage", "kind", "from", "hash"), made),
        "## What stood in for what",
        _table(("wanted", "used", "why"), stand_ins) or "Nothing, as far as the run folder says.",
        "## Settings",
        f"```yaml\n{yaml.safe_dump(settings, sort_keys=False, width=100)}```",
        f"Commit {run.environment.get('commit') or 'unknown'}; {known or 'versions unknown'}.",
    ]


def _without_folders(value: Any) -> Any:
    """Settings or a text with the last name of each path from / or ~ on: folders of a machine say nothing to others."""
    if isinstance(value, dict):
        return {key: _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_folders(inner) for inner in value]
    if not isinstance(value, str):
        return value
    if re.match(r"~?[\w.-]*/", value) and value[0] in "/~":  # all of it is one, blanks included
        return value.rstrip("/").rpartition("/")[2]
    return re.sub(r"(?<![\w/:.~-])[~/][^\s,;'\"`|)]*/([^\s/]+)/?", r"\1", value)


def _measured(run: LoadedRun, node: str, table: Sequence[Estimate]) -> list[Estimate]:
    """What the stages that evaluated or examined this model found: success, rewards."""
    by = {stage.name for stage in run.own_stages if (stage.inputs or {}).get("policy") == node}
    policies = {(one.method, one.round) for one in run.evaluations if one.node in by}
    models = {one.scheme for one in run.examinations if one.node in by}
    return [
        one
        for one in table
        if one.over is None
        and ((one.how == SUCCESS and (one.model, one.round) in policies) or (one.how == REWARD and one.model in models))
    ]


def _of(estimate: Estimate) -> str:
    """What an estimate is of, in words; of several training seeds it is about all of them."""
    what = "success rate, %" if estimate.how == SUCCESS else "held-out reward"
    return what if (estimate.replicates or 1) == 1 else f"{what}, mean of {estimate.replicates} training seeds"


def _result(run: LoadedRun, estimate: Estimate) -> EvalResult:
    """A number as hubs read it."""
    on_episodes = estimate.how == SUCCESS
    env = run.config.get("env", {})
    backend = _without_folders(env.get("backend"))
    name = f"{backend}/{', '.join(env.get('tasks', []))}" if on_episodes else "held-out questions"
    return EvalResult(
        task_type="robotics" if on_episodes else "visual-question-answering",
        dataset_type="rl-lab",
        dataset_name=name,
        metric_type="success_rate" if on_episodes else "reward",
        metric_value=round(estimate.value, 4),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown; empty without rows."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    lines = [head, ["---"] * len(head), *cells] if cells else []
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(data: ModelCardData | DatasetCardData, *parts: str) -> str:
    return "\n\n".join([f"---\n{data.to_yaml()}\n---", *filter(None, parts)]) + "\n"
