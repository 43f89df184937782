"""Files that were shortened or changed after they were written: found, named, and made again to the same bits."""

import json
from pathlib import Path

import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.learner.state import SavedStates
from rl_lab.rollouts.collect import kept
from tests.support.experiments import FakeStages, main, write_small
from tests.support.stage_runs import FakeRun


def shorten(path: Path) -> None:
    """Keep the first half of a file, whatever its permissions."""
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[: len(content) // 2])


def change(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, questions, policy):
    """A run of GRPO on plain objects that nothing happened to, by its staleness."""
    folder = tmp_path_factory.mktemp("unbroken")
    runs = {s: FakeRun(folder / str(s), questions, policy, f"rl.staleness={s}").start() for s in (0, 1)}
    return {staleness: run.outcome() for staleness, run in runs.items()}


@pytest.fixture
def killed(tmp_path, questions, policy):
    """Such runs, killed after step 5 with the states of steps 2 and 4."""

    def make(staleness: int = 0) -> FakeRun:
        run = FakeRun(tmp_path / "run", questions, policy, f"rl.staleness={staleness}")
        run.killed(5)
        assert states(run).steps() == [2, 4]
        return run

    return make


def states(run: FakeRun) -> SavedStates:
    return SavedStates(run.path / "work" / "scratch")


@pytest.mark.parametrize("harm", [shorten, change])
@pytest.mark.parametrize("name", ["learner.pt", "pool.sqlite", "progress.json", "digests.json", "weights-4/weight"])
def test_a_damaged_state_is_named_and_the_one_before_gives_the_same_bits(killed, unbroken, capsys, name, harm):
    run = killed(staleness=1)
    harm(states(run).path(4) / name)
    run.start()
    said = capsys.readouterr().err
    assert f"step-4/{name}" in said or (name == "digests.json" and "step-4/" in said), said
    assert "damaged" in said and "Traceback" not in said
    assert run.outcome() == unbroken[1]


def test_a_lost_file_of_a_state_is_damage_too(killed, unbroken, capsys):
    run = killed()
    (states(run).path(4) / "learner.pt").unlink()
    run.start()
    assert "learner.pt is missing" in capsys.readouterr().err
    assert run.outcome() == unbroken[0]


def test_with_all_states_damaged_the_stage_begins_anew_and_says_so(killed, unbroken, capsys):
    run = killed()
    for step in (2, 4):
        shorten(states(run).path(step) / "learner.pt")
    run.start()
    assert "step-4/learner.pt" in (said := capsys.readouterr().err) and "step-2/learner.pt" in said
    assert run.outcome() == unbroken[0]


@pytest.mark.parametrize("step", [1, 3, 5])
def test_a_damaged_file_of_rollouts_is_named_and_made_again(killed, unbroken, capsys, step):
    run = killed()
    shorten(run.out / "rollouts" / f"step-{step:08d}.parquet")
    run.start()
    assert f"step-{step:08d}.parquet is damaged" in capsys.readouterr().err
    assert run.outcome() == unbroken[0]


def test_a_damaged_pool_is_put_back_from_the_state(killed, unbroken, capsys):
    run = killed()
    for path in run.out.glob("pool.sqlite*"):
        path.write_bytes(b"no database at all" * 100)
    run.start()
    assert "pool.sqlite is damaged" in capsys.readouterr().err
    assert run.outcome() == unbroken[0]


@pytest.mark.parametrize("name", ["work/out/metrics.jsonl", "work/out/held_out.jsonl", "metrics.jsonl"])
def test_a_last_line_that_was_cut_short_is_written_again(killed, unbroken, name):
    run = killed()
    path = run.path / name
    path.write_bytes(path.read_bytes()[:-7])
    run.start()
    assert run.outcome() == unbroken[0]


def test_lines_that_the_state_should_have_are_missed(killed, capsys):
    run = killed()
    path = run.out / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    run.start()
    assert "metrics.jsonl has no line after step 2, though the state of step 4 is whole" in capsys.readouterr().err


def test_a_damaged_unit_of_simulation_runs_again_with_those_behind_it(tmp_path):
    ran: list[int] = []

    def run(units):
        for unit in units:
            ran.append(unit)
            yield unit

    def results() -> list[int]:
        write = lambda folder, result: (folder / "result").write_text(json.dumps([result] * 20))  # noqa: E731
        read = lambda folder: json.loads((folder / "result").read_text())[0]  # noqa: E731
        return list(kept(tmp_path / "units", [0, 1, 2, 3], run, write, read))

    assert results() == results() == [0, 1, 2, 3] == ran
    shorten(tmp_path / "units" / "unit-0002" / "result")
    assert results() == [0, 1, 2, 3] and ran[4:] == [2, 3]


@pytest.fixture
def finished(tmp_path, monkeypatch) -> Path:
    """The run folder of a finished run of plain functions."""
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    assert main("small.yaml", "--run-dir", "run") == 0
    return tmp_path / "run"


def stored(run: Path, name: str) -> Path:
    content = json.loads((run / "stages.json").read_text())
    return Path(content["store"]) / next(row["hash"] for row in content["nodes"] if row["name"] == name)


@pytest.mark.parametrize("file", ["result", "metrics.jsonl", "stage.json"])
def test_a_damaged_stage_in_the_store_is_named_and_run_again_and_no_other(finished, capsys, file):
    before = stored(finished, "sft") / file
    whole = before.read_bytes()
    shorten(before)
    stages = FakeStages()
    assert main("--resume", "run", stages=stages) == 0
    assert stages.ran == ["sft"]
    said = capsys.readouterr().err
    assert f"{before} is damaged" in said and "its stage is run again" in said
    assert file != "result" or before.read_bytes() == whole
    assert [path.name for path in before.parent.parent.iterdir() if path.name.startswith(".")] == []
    again = FakeStages()
    assert main("small.yaml", "--run-dir", "second", stages=again) == 0 and again.ran == []


def test_lines_lost_from_the_metrics_of_a_run_come_back_from_the_store(finished):
    path = finished / "metrics.jsonl"
    lines = read_json_lines(path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:4]) + '{"node": "sft", "st')
    assert main("--resume", "run") == 0
    key = lambda line: (line["node"], line["step"])  # noqa: E731
    assert sorted(read_json_lines(path), key=key) == sorted(lines, key=key)
