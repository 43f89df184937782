"""The driver's part of the cold start: which rows it learns from and measures on, and what of that is kept and told."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from algos.mixing import mix_counts
from rl_lab.common.files import read_json_lines, write_whole
from rl_lab.common.reading import read_object
from rl_lab.config.language import ColdStartConfig
from rl_lab.config.section import ModelConfig
from rl_lab.graph.stage import StageContext
from rl_lab.graph.store import METRICS_FILE
from rl_lab.learner.cold_start import ColdStartPlan, Source, fitting
from rl_lab.model.checkpoint import model_processor
from rl_lab.records.item_files import SolutionFile
from rl_lab.records.types import SOURCES_FILE


def check_ratios(settings: ColdStartConfig, sources: Sequence[str]) -> None:
    """ValueError unless the ratios, if there are any, are of these sources, and give each a row of every batch."""
    ratios = settings.ratios
    if not ratios:
        return
    if not sources:
        raise ValueError("cold_start.ratios mixes questions.cold_start_sources, which are not given; name some")
    if set(ratios) != set(sources):
        raise ValueError(
            f"cold_start.ratios names {', '.join(ratios)}, but questions.cold_start_sources are {', '.join(sources)}; "
            "give each source one ratio"
        )
    rows = mix_counts(settings.batch_size, [ratios[name] for name in sources], [1] * len(sources))
    none = next((name for name, number in zip(sources, rows, strict=True) if not number), None)
    if none is not None:
        raise ValueError(
            f"cold_start.batch_size is {settings.batch_size}, of which {none} would have no row by cold_start.ratios; "
            "raise one of them"
        )


def cold_start_plan(
    model: ModelConfig, settings: ColdStartConfig, questions: Path, seed: int, context: StageContext
) -> ColdStartPlan:
    """The plan of a stage on the output of a `questions` stage; what each source gives is kept beside the model.

    UserError where all rows of a source are too long.
    """
    processor = model_processor(model)

    def found(kind: str) -> tuple[Source, ...]:
        paths = sorted(questions.glob(f"{kind}*.arrow"))
        sources = [Source(path, path.stem.partition(".")[2]) for path in paths]
        return tuple(fitting(source, settings.max_length, processor, context.progress) for source in sources)

    learned, measured = found("cold_start"), found("validation")
    if settings.max_length is not None or learned[0].name or measured:
        rows = {"learned": list(map(_row, learned)), "measured": list(map(_row, measured))}
        for row, number in zip(rows["learned"], _rows_of_a_step(settings, rows["learned"]), strict=True):
            row["in_batch"] = number
        write_whole(context.out / SOURCES_FILE, json.dumps({"max_length": settings.max_length} | rows, indent=1) + "\n")
    return ColdStartPlan(model, settings, learned, seed, measured)


def _row(source: Source) -> dict[str, Any]:
    rows = len(SolutionFile(source.path)) - source.overlong
    return {"name": source.name or "cold start", "rows": rows, "overlong": source.overlong, "tokens": source.tokens}


def _rows_of_a_step(settings: ColdStartConfig, learned: Sequence[dict[str, Any]]) -> list[float]:
    """Of every source: by the ratios, or on average where all rows are read in common passes."""
    sizes = [row["rows"] for row in learned]
    if settings.ratios:
        return mix_counts(settings.batch_size, [settings.ratios[row["name"]] for row in learned], sizes).tolist()
    return [settings.batch_size * size / sum(sizes) for size in sizes]


def left_out(out: Path) -> str:
    """Rows that were too long, in words; "" for none."""
    path = out / SOURCES_FILE
    found = read_object(path) if path.exists() else {}
    rows = [*found.get("learned", ()), *found.get("measured", ())]
    overlong = sum(row["overlong"] for row in rows)
    total = overlong + sum(row["rows"] for row in rows)
    return f"{overlong} of {total} rows left out as longer than {found['max_length']} tokens" if overlong else ""


def validated(out: Path) -> str:
    """The loss of validation before and after, and the accuracy, in words; "" without any."""
    lines = read_json_lines(out / METRICS_FILE, missing_ok=True)
    measured = [line for line in lines if "validation/loss" in line]
    if not measured:
        return ""
    first, last = measured[0]["validation/loss"], measured[-1]["validation/loss"]
    return f"validation loss {first:.4g} to {last:.4g}, accuracy {100 * measured[-1]['validation/accuracy']:.1f} %"
