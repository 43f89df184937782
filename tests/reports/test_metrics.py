"""`metrics.jsonl` survives what happens to runs."""

import json

import numpy as np

from rl_lab.common.files import append_json_line
from rl_lab.reports.metrics import curve, define, read_metrics


def test_records_come_back_in_order_and_numpy_scalars_become_numbers(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_json_line(path, {"node": "sft", "step": 1, "loss": np.float32(0.5)})
    append_json_line(path, {"node": "sft", "step": 2, "loss": 0.25, "method": None})
    assert read_metrics(path) == [
        {"node": "sft", "step": 1, "loss": 0.5},
        {"node": "sft", "step": 2, "loss": 0.25, "method": None},
    ]


def test_an_absent_file_has_no_records(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_a_step_that_was_repeated_after_a_resume_counts_once_with_its_last_values(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0},
        {"step": 1, "loss": 3.0},
        {"step": 1, "flow/probe": 1.0},
    ]
    path.write_text("".join(json.dumps({"node": "sft", **row}) + "\n" for row in rows))
    assert curve(read_metrics(path), "sft", "loss") == ([1, 2], [3, 4])
    assert curve(read_metrics(path), "sft", "flow/probe") == ([1], [1])


def test_alarms_do_not_replace_values_of_their_step_and_curves_skip_what_is_not_finite(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for row in ({"loss": 1.0}, {"alarm": "collapse"}):
        append_json_line(path, {"node": "a", "step": 1, **row})
    append_json_line(path, {"node": "a", "step": 2, "loss": float("nan")})
    records = read_metrics(path)
    assert len(records) == 3
    assert curve(records, "a", "loss") == ([1], [1])


def test_names_and_families_of_names_are_defined_and_unknown_ones_are_not():
    assert "-log s(r_w - r_l)" in define("loss/preference")
    assert define("rows/demonstrations") == define("rows/new")
    assert define("mystery") is None
