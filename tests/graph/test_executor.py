import json
import os
import threading

import pytest

from rl_lab.common.errors import RunError, UserError
from rl_lab.common.files import read_json_lines
from rl_lab.common.machine import processor
from rl_lab.config.schema import RunConfig
from rl_lab.graph.executor import StageError
from rl_lab.graph.run_folder import RunFolder
from rl_lab.graph.stage import StageContext
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import FakeStages, executor, run, statuses, write_small


@pytest.fixture
def config(tmp_path) -> RunConfig:
    return load_config(write_small(tmp_path))


def test_every_stage_runs_once_and_its_output_appears_in_the_run_folder(tmp_path, config):
    stages = FakeStages()
    folder = run(config, stages, tmp_path / "run")
    assert sorted(stages.ran) == sorted(node.name for node in expand(config) if node.kind != "report")
    assert set(statuses(folder).values()) == {"done"}
    for place in ("episodes/demos", "checkpoints/sft", "pairs/rpro.2.collect", "episodes/continued_sft.2.evaluate"):
        assert [path.name for path in (folder.path / place).iterdir()] == ["result"]
    assert (folder.path / "report.html").exists()
    assert not (folder.path / "work").exists()


def test_independent_stages_run_side_by_side_but_no_more_than_allowed(tmp_path, config):
    both = threading.Barrier(2, timeout=60)
    stages = FakeStages()
    functions = stages.functions()

    def meet(context: StageContext) -> None:
        if context.node.round == 1 and context.node.kind == "optimise":
            both.wait()
        stages.run(context)

    folder = RunFolder.create(tmp_path / "run", config.name)
    meeting = executor(config, stages, folder, tmp_path / "store")
    meeting.stages = functions | {"optimise": meet}
    meeting.run()
    assert stages.most_active <= config.workers.stages


def test_waiting_for_shared_workers_is_no_time_of_a_stage(tmp_path, config, monkeypatch):
    monkeypatch.setattr("rl_lab.graph.executor.waited_s", lambda: 1000.0)
    folder = run(config, FakeStages(), tmp_path / "run")
    assert all(-1000 <= row["seconds"] < -900 for row in folder.read_stages()[1])


def test_a_stage_says_the_processor_that_it_ran_on(tmp_path, config):
    rows = run(config, FakeStages(), tmp_path / "run").read_stages()[1]
    assert {row["processor"] for row in rows if row["kind"] != "report"} == {processor()}
    assert f"{len(os.sched_getaffinity(0))} cores" in processor()


def test_a_second_run_reuses_everything_and_copies_the_metrics(tmp_path, config):
    first = run(config, FakeStages(), tmp_path / "a")
    again = FakeStages()
    second = run(config, again, tmp_path / "b")
    assert again.ran == []
    assert all(row["reused"] for row in second.read_stages()[1] if row["kind"] != "report")
    lines = [sorted(map(json.dumps, read_json_lines(folder.metrics_path))) for folder in (first, second)]
    assert lines[0] == lines[1]


def test_another_method_reuses_demos_sft_and_the_first_collection_under_its_own_name(tmp_path, config):
    run(config, FakeStages(), tmp_path / "a")
    stages = FakeStages()
    folder = run(load_config(write_small(tmp_path), ["method=dagger"]), stages, tmp_path / "b")
    assert sorted(stages.ran) == [
        *("dagger.1.evaluate", "dagger.1.optimise", "dagger.2.collect", "dagger.2.evaluate", "dagger.2.optimise")
    ]
    collected = [line for line in read_json_lines(folder.metrics_path) if line["node"] == "dagger.1.collect"]
    assert [line["method"] for line in collected] == ["dagger"] * 3


def test_methods_that_share_a_collection_run_it_once(tmp_path):
    stages = FakeStages(steps=10)
    folder = run(load_config(write_small(tmp_path), ["controls=[dagger]"]), stages, tmp_path / "run")
    assert sum(name.endswith("1.collect") for name in stages.ran) == 1
    assert (folder.path / "pairs" / "dagger.1.collect" / "result").exists()


def test_a_failing_stage_stops_the_run_and_the_next_one_continues_it(tmp_path, config, capsys):
    unbroken = run(config, FakeStages(), tmp_path / "unbroken" / "run")
    stages = FakeStages()
    stages.fail_at = "rpro.1.optimise"
    folder = RunFolder.create(tmp_path / "run", config.name)
    with pytest.raises(StageError, match="rpro.1.optimise failed: no luck"):
        executor(config, stages, folder, tmp_path / "store").run()
    assert "RuntimeError: no luck" in capsys.readouterr().err
    assert statuses(folder)["rpro.1.optimise"] == "failed"
    assert statuses(folder)["rpro.1.evaluate"] == "pending"
    finished = {name for name, status in statuses(folder).items() if status == "done"}
    assert {"demos", "sft"} <= finished

    stages = FakeStages()
    resumed = executor(config, stages, folder, tmp_path / "store")
    assert resumed.continue_from(folder.read_stages()[1]) == []
    resumed.run()
    assert not finished & set(stages.ran)
    both = [folder, unbroken]
    lines = [sorted((line["node"], line["step"]) for line in read_json_lines(f.metrics_path)) for f in both]
    assert lines[0] == lines[1]
    results = [(f.path / "episodes" / "rpro.2.evaluate" / "result").read_text() for f in both]
    assert results[0] == results[1]


def test_a_stage_without_resume_from_starts_its_metrics_again(tmp_path, config):
    folder = RunFolder.create(tmp_path / "run", config.name)
    attempts = []

    def stage(context: StageContext) -> None:
        attempts.append(context.node.name)
        for step in range(3):
            context.log(step, attempt=len(attempts))
        if len(attempts) == 1:
            raise RuntimeError("no luck")

    only_demos = load_config(write_small(tmp_path), ["stages=[demos]"])
    for _ in range(2):
        again = executor(only_demos, FakeStages(), folder, tmp_path / "store")
        again.stages = {"demos": stage, "report": lambda context: None}
        again.continue_from(folder.read_stages()[1] if attempts else [])
        if not attempts:
            with pytest.raises(StageError):
                again.run()
        else:
            again.run()
    assert [(line["step"], line["attempt"]) for line in read_json_lines(folder.metrics_path)] == [
        (0, 2),
        (1, 2),
        (2, 2),
    ]


def test_other_code_runs_finished_stages_again_and_says_which(tmp_path, config):
    folder = run(config, FakeStages(), tmp_path / "run")
    stages = FakeStages()
    again = executor(config, stages, folder, tmp_path / "store", {"code": "2"})
    changed = again.continue_from(folder.read_stages()[1])
    assert changed == [node.name for node in expand(config) if node.kind != "report"]
    again.run()
    assert sorted(stages.ran) == sorted(changed)


def test_bad_input_found_by_a_stage_stays_bad_input(tmp_path, config):
    stages = FakeStages()
    stages.fail_at, stages.failure = "sft", UserError("model.path is no checkpoint; give another")
    with pytest.raises(UserError, match="sft: model.path is no checkpoint"):
        run(config, stages, tmp_path / "run")


def test_what_only_running_can_find_is_one_line_and_no_bad_input(tmp_path, config, capsys):
    stages = FakeStages()
    stages.fail_at, stages.failure = "sft", RunError("the policy must not act: its left x is 918")
    with pytest.raises(RunError, match="sft: the policy must not act: its left x is 918") as caught:
        run(config, stages, tmp_path / "run")
    assert caught.value.exit_code == 1
    assert "Traceback" not in capsys.readouterr().err


def test_a_stop_reaches_running_stages_and_leaves_a_resumable_run(tmp_path, config, monkeypatch):
    stages = FakeStages(steps=100_000)
    folder = RunFolder.create(tmp_path / "run", config.name)
    stopped = executor(config, stages, folder, tmp_path / "store")
    waits = iter(range(10_000))
    wait = stopped._wait

    def interrupt() -> None:
        if next(waits) == 1:
            raise KeyboardInterrupt
        wait()

    monkeypatch.setattr(stopped, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert stages.active == 0
    assert statuses(folder)["demos"] == "stopped"
    resumed = executor(config, stages, folder, tmp_path / "store")
    resumed.continue_from(folder.read_stages()[1])
    stages.steps = 3
    resumed.run()
    assert set(statuses(folder).values()) == {"done"}


def test_a_stage_cannot_read_settings_that_its_hash_does_not_cover(tmp_path, config):
    def demos(context: StageContext) -> None:
        assert context.config.demos.episodes == 25
        assert context.config.workers.simulation == 2
        print(context.config.eval)

    folder = RunFolder.create(tmp_path / "run", config.name)
    reading = executor(config, FakeStages(), folder, tmp_path / "store")
    reading.stages = {"demos": demos}
    with pytest.raises(StageError, match=r"demos reads config.eval; list it in reads of Demos"):
        reading.run()


def test_numbers_that_are_not_finite_become_null_in_the_metrics(tmp_path):
    config = load_config(write_small(tmp_path), ["stages=[demos]"])
    folder = RunFolder.create(tmp_path / "run", config.name)
    logging = executor(config, FakeStages(), folder, tmp_path / "store")
    logging.stages = {"demos": lambda c: c.log(1, loss=float("nan"), alarm="x"), "report": lambda c: None}
    logging.run()
    (line,) = read_json_lines(folder.metrics_path)
    assert (line["node"], line["step"], line["loss"], line["alarm"]) == ("demos", 1, None, "x")


def test_videos_of_a_stage_go_to_the_videos_folder(tmp_path):
    config = load_config(write_small(tmp_path), ["stages=[demos]"])
    folder = RunFolder.create(tmp_path / "run", config.name)

    def demos(context: StageContext) -> None:
        (context.out / "videos").mkdir()
        (context.out / "videos" / "a.mp4").write_text("film")

    filming = executor(config, FakeStages(), folder, tmp_path / "store")
    filming.stages = {"demos": demos, "report": lambda context: None}
    filming.run()
    assert (folder.path / "videos" / "demos" / "a.mp4").read_text() == "film"
    assert list((folder.path / "episodes" / "demos").iterdir()) == []


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path, config):
    folder = RunFolder.create(tmp_path / "run", config.name)
    executor(config, FakeStages(), folder, tmp_path / "store").run()
    folder.write("config.yaml", "")
    with pytest.raises(UserError, match="in use by another process"):
        RunFolder.reopen(folder.path)
    folder.close()
    RunFolder.reopen(folder.path).close()
