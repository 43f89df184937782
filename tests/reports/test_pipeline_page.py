"""The report of a pipeline: its chain of models with differences and decisions, provenance, and what was skipped."""

import json
import re
from pathlib import Path

import pytest

from rl_lab.config.load import dump_config
from rl_lab.reports.kinds import ON_LANGUAGE
from rl_lab.reports.pages.pipeline import last_model, stopped_by
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from rl_lab.reports.summary import measure, summary_lines
from rl_lab.stages.kinds import KINDS
from tests.support.experiments import run
from tests.support.pages import Outline, visible
from tests.support.pipelines import FRONT, WHOLE, FakeModels, pipeline

STOP = f"[{FRONT}, grpo, examine, {{gate: {{otherwise: stop}}}}, rft, examine]"
BRANCH = f"[{FRONT}, grpo, examine, {{gate: {{otherwise: [rft, examine]}}}}]"


def report(folder: Path, stages: str, **gains: float):
    """Summary, page and run folder of a pipeline that was run with models that are numbers."""
    config = pipeline(folder, stages)
    made = run(config, FakeModels(**gains), folder / "run")
    made.write("config.yaml", dump_config(config))
    summary, path = write_report(made.path)
    return summary, path.read_text(), made.path


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    gains = {"grpo__1": 0.2, "rft__1": -0.1, "rft__2": 0.1, "teacher": 0.6, "distill": 0.15}
    return report(tmp_path_factory.mktemp("whole"), WHOLE, **gains)


def rows(summary) -> dict:
    return {row["model"]: row for row in summary["pipeline"]}


def test_every_model_is_a_row_with_what_it_was_made_from(whole):
    found = rows(whole[0])
    assert list(found) == ["base", "grpo.1", "rft.1", "grpo.2", "rft.2", "teacher", "distill", "imitate"]
    made_from = {name: (row["from_model"], row["traces_of"], row["taught_by"]) for name, row in found.items()}
    assert made_from == {
        "base": (None, None, None),
        "grpo.1": ("base", None, None),
        "rft.1": ("grpo.1", "grpo.1", None),
        "grpo.2": ("grpo.1", None, None),
        "rft.2": ("grpo.1", "grpo.1", None),
        "teacher": (None, None, None),
        "distill": ("rft.2", None, "teacher"),
        "imitate": ("rft.2", "teacher", None),
    }


def test_differences_are_to_the_base_and_to_the_model_that_the_gate_compared_with(whole):
    found = rows(whole[0])
    assert found["rft.1"]["before"] == "grpo.1" and found["rft.2"]["before"] == "grpo.1"
    assert found["rft.1"]["over_before"]["value"] == pytest.approx(-0.1)
    assert found["rft.2"]["over_base"]["value"] == pytest.approx(0.3)
    assert found["distill"]["over_before"]["value"] == pytest.approx(0.15)
    assert found["base"]["over_before"] is None


def test_decisions_say_what_goes_on(whole):
    found = rows(whole[0])
    assert [(name, row["gate"]["passed"], row["goes_on"]) for name, row in found.items() if row["gate"]] == [
        *(("grpo.1", True, "grpo.1"), ("rft.1", False, "grpo.1")),
        *(("grpo.2", False, "grpo.1"), ("rft.2", True, "rft.2")),
    ]
    assert last_model(whole[0]["pipeline"])["model"] == "distill"
    text = " ".join(whole[0]["verdict"])
    assert "The chain ends with distill: held-out reward 0.759" in text and "+0.450 over the base" in text
    assert "2 of 4 models passed their gate, on development questions: grpo.1, rft.2." in text


def test_tokens_and_seconds_of_fine_tuning_hold_those_of_its_traces(whole):
    found = rows(whole[0])
    assert (found["base"]["tokens_sampled"], found["grpo.1"]["tokens_sampled"]) == (0, 2000)
    assert found["rft.1"]["tokens_sampled"] == 2000 and found["imitate"]["tokens_sampled"] == 2000
    assert found["rft.1"]["seconds"] >= 0 and found["rft.1"]["steps"] == 20


def test_provenance_lists_every_model_with_node_hash_and_parents(whole):
    listed = json.loads((whole[2] / "provenance.json").read_text())
    stages = {row["name"]: row for row in json.loads((whole[2] / "stages.json").read_text())["nodes"]}
    assert [row["node"] for row in listed] == [row["node"] for row in whole[0]["pipeline"]]
    for row in listed:
        assert row["hash"] == stages[row["node"]]["hash"] and row["reused"] is False
        for parent in row["parents"].values():
            assert parent["hash"] == stages[parent["node"]]["hash"]
    assert listed[2]["parents"].keys() == {"questions", "traces", "policy"}
    assert (listed[1]["weight_version"], listed[1]["steps"]) == (3, 20)


def test_the_page_shows_chain_gates_and_provenance_and_every_model_among_the_held_out_ones(whole):
    text = visible(whole[1])
    for part in ("Chain of models", "GRPO, from base", "on traces of teacher", "towards teacher", "not passed: grpo.1"):
        assert part in text, part
    assert "Gates, on development questions" in text and "Provenance of every model" in text
    section = text[text.index("Paired differences of reward") :]
    assert all(name in section for name in ("grpo.1", "rft.2", "distill", "imitate", "teacher"))
    outline = Outline(whole[1])
    assert len(set(outline.identifiers)) == len(outline.identifiers)


def test_the_terminal_shows_the_chain(whole):
    lines = summary_lines(measure(load_run(whole[2]))).splitlines()
    row = next(line for line in lines if line.startswith("rft.1 "))
    assert re.search(r"grpo\.1: -0\.100 \[-0\.100, -0\.100\].*2,000.*grpo\.1 goes on", row)


def test_the_table_of_kinds_has_kinds_that_there_are_and_all_that_make_a_chain():
    assert ON_LANGUAGE.keys() <= KINDS.keys()
    chain = {name for name, reported in ON_LANGUAGE.items() if reported.means_chain}
    assert {name for name, kind in KINDS.items() if kind.makes_chain} - chain == {"outcome_model"}


def test_skipped_stages_are_shown_as_skipped_and_not_as_missing(tmp_path):
    summary, page, path = report(tmp_path, STOP, grpo=-0.1)
    found = rows(summary)
    assert found["rft"]["status"] == "skipped" and found["rft"]["held_out"] is None
    assert found["grpo"]["goes_on"] == "base" and summary["unfinished"] == []
    assert stopped_by(load_run(path)) == "grpo.gate"
    assert summary["verdict"][0].startswith("grpo.gate stopped the run")
    assert "The chain ends with base" in summary["verdict"][0]
    assert "not passed: stop" in visible(page) and "skipped" in visible(page)
    assert "incomplete" not in visible(page)


def test_a_branch_that_was_taken_is_part_of_the_chain(tmp_path):
    summary, page, _ = report(tmp_path, BRANCH, grpo=-0.1, grpo__else__rft=0.2)
    found = rows(summary)
    assert found["grpo.else.rft"]["from_model"] == "base" and found["grpo.else.rft"]["before"] == "base"
    assert last_model(summary["pipeline"])["model"] == "grpo.else.rft"
    assert "not passed: rft, examine" in visible(page)
