"""A cold start on several sources: ratios, rows that are too long, rows that are never learned, in both backends."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from rl_lab.common.errors import UserError
from rl_lab.config.language import ColdStartConfig
from rl_lab.config.section import ModelConfig
from rl_lab.learner.cold_start import ColdStartPlan, SourceRows
from rl_lab.learner.language import LanguagePlan
from rl_lab.learner.plans import Training
from rl_lab.learner.rft import RFTPlan, write_traces
from rl_lab.model.checkpoint import load_training_state, model_processor, save_training_state
from rl_lab.records.item_files import ItemFile, SolutionFile, item_row, write_rows
from rl_lab.records.token_batches import chat_batch, chat_length
from rl_lab.records.types import SOURCES_FILE
from rl_lab.stages.kinds import resolve_config
from rl_lab.stages.preflight import check_settings
from rl_lab.stages.trl import trl_sft
from rl_lab.training.cold_start import cold_start_plan, left_out
from tests.support.questions import make_item

SETTINGS = ColdStartConfig(
    steps=4, batch_size=4, warmup=1, ratios={"long": 1.0, "short": 3.0}, max_length=40, validate_every=2
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two sources and one of validation; every third row of `long` has too many words."""
    found = tmp_path_factory.mktemp("sets")
    long = [make_item(i, i % 2, prompt="why? " * (30 if i % 3 == 0 else 1)) for i in range(6)]
    write_rows(found / "cold_start.long.arrow", map(item_row, long))
    write_rows(found / "cold_start.short.arrow", (item_row(make_item(i)) for i in range(10, 15)))
    write_rows(found / "validation.short.arrow", (item_row(make_item(i)) for i in range(20, 23)))
    return found


def context(out: Path, lines: list[dict[str, Any]]) -> Any:
    """As much of a stage's as the driver's part asks for."""
    log = lambda step, **metrics: lines.append({"step": step, **metrics})  # noqa: E731
    return SimpleNamespace(out=out, log=log, progress=lambda *told: None, say=print, config=None)


def planned(folder: Path, out: Path, **changes: Any) -> ColdStartPlan:
    settings = SETTINGS.model_copy(update=changes)
    return cold_start_plan(ModelConfig(), settings, folder, 3, context(out, []))


def steps(training: Training, until: int) -> list[dict[str, float]]:
    return [training.run_step() for _ in range(until - training.step)]


def test_rows_that_are_too_long_are_counted_before_training_from_the_sizes_of_their_pictures(folder, tmp_path):
    processor, file = model_processor(ModelConfig()), SolutionFile(folder / "cold_start.long.arrow")
    for row in range(len(file)):
        batch = chat_batch([file[row].chat()], processor)
        outline = file.outline(row)
        assert chat_length(outline.messages, outline.images, processor) == int(batch.attention_mask.sum())
    plan = planned(folder, tmp_path)
    assert [(source.name, source.rows, source.overlong) for source in plan.sources] == [
        ("long", (1, 2, 4, 5), 2),
        ("short", (0, 1, 2, 3, 4), 0),
    ]
    kept = json.loads((tmp_path / SOURCES_FILE).read_text())
    assert [(row["overlong"], row["in_batch"]) for row in kept["learned"]] == [(2, 1), (0, 3)]
    assert kept["measured"][0]["rows"] == 3
    assert left_out(tmp_path) == "2 of 14 rows left out as longer than 40 tokens"
    with pytest.raises(UserError, match=r"max_length is 5, but all 6 rows of cold_start.long are longer .*raise it"):
        planned(folder, tmp_path, max_length=5)


def test_every_batch_has_the_ratios_and_every_source_its_own_passes(folder, tmp_path):
    plan = planned(folder, tmp_path, steps=10)
    data = plan.data(model_processor(ModelConfig()))
    flat = np.array(data.order)
    assert flat.shape == (10, 4) and ((flat < 4).sum(1) == 1).all(), "one row of long, three of short"
    assert np.ptp(np.bincount(flat[flat < 4])) <= 1 and np.ptp(np.bincount(flat[flat >= 4] - 4)) == 0
    batch = data.batch(0)
    assert batch.source.tolist() == [0, 1, 1, 1] and batch.names == ("long", "short")
    together = planned(folder, tmp_path, ratios={}, steps=9).data(model_processor(ModelConfig()))
    assert np.bincount(np.array(together.order).ravel()).tolist() == [4] * 9, "in common passes all rows alike"


def test_the_rows_of_a_step_are_separate_documents(folder, tmp_path):
    plan = planned(folder, tmp_path)
    start = plan.start()
    rows = SourceRows(plan.sources, start.processor)
    together = rows.batch([0, 5, 2])
    packed = start.model.token_logprobs(together).logprobs
    for place, number in enumerate([0, 5, 2]):
        batch = rows.batch([number])
        alone = start.model.token_logprobs(batch).logprobs[batch.completion_mask]
        torch.testing.assert_close(packed[place][together.completion_mask[place]], alone, rtol=1e-4, atol=1e-5)


def test_validation_changes_nothing_and_a_resumed_run_has_the_bits_of_the_unbroken_one(folder, tmp_path):
    plan, blind = planned(folder, tmp_path), planned(folder, tmp_path, validate_every=0)
    whole = Training(plan)
    before = whole.validate()
    lines = steps(whole, 4)
    assert ["validation/loss" in line for line in lines] == [False, True, False, True]
    assert lines[-1]["validation/loss"] == lines[-1]["validation/short/loss"] < before["validation/loss"]
    assert {"source/long/loss", "source/short/loss"} <= lines[0].keys() and 0 <= before["validation/accuracy"] <= 1
    never = Training(ColdStartPlan(blind.model, blind.settings, blind.sources, blind.seed))
    bare = [{name: value for name, value in line.items() if "validation" not in name} for line in lines]
    assert steps(never, 4) == bare
    first = Training(plan)
    again = steps(first, 2)
    save_training_state(tmp_path / "state.pt", first.state_dict())
    second = Training(plan)
    second.load_state_dict(load_training_state(tmp_path / "state.pt"))
    assert again + steps(second, 4) == lines
    one, other = (each.learner.policy.state_dict() for each in (whole, second))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_trl_reads_the_same_rows_and_is_measured_on_the_same(folder, tmp_path):
    plan, lines = planned(folder, tmp_path), []
    ours = Training(plan)
    measured = [ours.validate(), *steps(ours, 4)]
    trl_sft(context(tmp_path / "out", lines), plan)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4] and (tmp_path / "out" / "model.safetensors").exists()
    for theirs, own in zip(lines, measured, strict=True):
        names = [name for name in theirs if name == "loss" or name.startswith("validation")]
        assert names and {name: theirs[name] for name in names} == pytest.approx(
            {name: own[name] for name in names}, rel=1e-4
        )


def test_a_batch_learned_in_parts_gives_the_step_of_the_whole_one(folder, tmp_path, policy):
    items = ItemFile(folder / "cold_start.short.arrow")
    traces = {"item": [items[row].id for row in range(4)], "tokens": [[500 + row, 700, 2] for row in range(4)]}
    write_traces(tmp_path / "traces.arrow", [pa.RecordBatch.from_pydict(traces)], items, tmp_path)

    def plans(at_once: int | None) -> list[LanguagePlan]:
        changed = SETTINGS.model_copy(update={"rows_at_once": at_once})
        cold = ColdStartPlan(ModelConfig(), changed, planned(folder, tmp_path).sources, 3)
        return [cold, RFTPlan(policy, changed, tmp_path / "traces.arrow", folder / "cold_start.short.arrow", 3)]

    for whole, parts in zip(plans(None), plans(3), strict=True):
        lines = [steps(Training(plan), 2) for plan in (whole, parts)]
        for one, other in zip(*lines, strict=True):
            assert one.keys() == other.keys() and one == pytest.approx(other, rel=2e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"cold_start": {"ratios": {"a": 1.0}}}, "ratios names a, but questions.cold_start_sources are a, b"),
        ({"cold_start": {"ratios": {"a": 1.0, "b": 0.01}, "batch_size": 8}}, "of which b would have no row"),
        ({"cold_start": {"ema": 0.9}}, "measures the last weights"),
        ({"questions": {"cold_start_file": "a.jsonl"}}, "make the file one of the sources"),
        ({"questions": {"cold_start_sources": {"a": {"tasks": ["cuont"]}}}}, "did you mean count"),
        ({"questions": {"train": 0}, "stages": ["questions", "cold_start", "examine"]}, "examine may ask them"),
        ({"questions": {"cold_start_sources": {"a.b": {}}}}, "a.b"),
        ({}, "questions.cold_start_sources.a.file: there is no"),
        ({"a.jsonl": "", "b.jsonl": ""}, "a.jsonl has no row"),
        ({"a.jsonl": '{"prompt": "?", "answer": "x"}\n', "b.jsonl": ""}, "it has no solution to imitate"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_line(tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    named = {"a": {"file": "a.jsonl", "tasks": ["count"]}, "b": {"file": "b.jsonl"}}
    sources = {"cold_start_sources": named, "validation_sources": {"a": {"rows": 5}}}
    values = {"name": "own", "stages": ["questions", "cold_start"], "questions": sources, "wandb": "disabled"}
    for name, change in overrides.items():
        if name.endswith(".jsonl"):
            (tmp_path / name).write_text(change)
        else:
            values[name] = values.get(name, {}) | change if isinstance(change, dict) else change
    with pytest.raises((UserError, ValueError), match=message) as error:
        check_settings(resolve_config(values, "test"))
    assert "\n" not in str(error.value)
