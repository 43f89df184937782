"""Which episodes are filmed under two policies, and what of the films is kept."""

import io
from contextlib import nullcontext
from types import SimpleNamespace

import av
import numpy as np
import pytest

from rl_lab.common.files import read_json_lines
from rl_lab.reports.pages.actions import videos
from rl_lab.reports.pages.run import write_report
from rl_lab.reports.run import load_run
from rl_lab.stages import report
from rl_lab.stages.report import Contrast, record_films, rescued
from rl_lab.workers.films import webm
from rl_lab.workers.simulation import Film, Unit
from tests.support.pages import CHROMIUM, found_in_browser
from tests.support.run_folders import build_run, write_jsonl

EPISODE = ("handover_block", "clean")
ENV = SimpleNamespace(task=EPISODE[0], variant=EPISODE[1])


def test_a_run_films_what_its_last_policy_solves_and_the_base_did_not(tmp_path):
    run = load_run(build_run(tmp_path / "run", n=40, methods={"base": [0.4], "rpro": [0.6, 0.8], "bc": [0.5] * 3}))
    (contrast,) = rescued(run)
    assert contrast.nodes == ("sft", "rpro.2.optimise")
    ends = {one.node: {episode.key: episode.success for episode in one.episodes} for one in run.evaluations}
    assert 0 < len(contrast.solved) <= report.RESCUED
    for key, solved in contrast.solved.items():
        assert solved and ends["rpro.2.evaluate"][key] and not ends["base.evaluate"][key]


@pytest.mark.parametrize("missing", ["base.evaluate", "rpro.1.evaluate"])
def test_a_run_without_one_of_both_evaluations_films_nothing(tmp_path, missing):
    path = build_run(tmp_path / "run", methods={"base": [0.4], "rpro": [0.9]})
    (path / "episodes" / missing / "results.jsonl").unlink()
    assert rescued(load_run(path)) == []


class Simulators:
    """The cluster and its pool; a policy, here its own name, fails on seeds that are listed for it."""

    def __init__(self, fails):
        self.fails, self.filmed = fails, []

    def simulation_pool(self):
        return nullcontext(self)

    def share(self, value):
        return value

    def map(self, submit, work, check_stop):
        return [submit(SimpleNamespace(film=SimpleNamespace(remote=self.film)), item) for item in work]

    def film(self, unit, seeds, policy, execute):
        self.filmed.append((policy, unit.seeds, seeds, execute))
        return [Film(*EPISODE, s, "dropped" if s in self.fails[policy] else None, policy.encode(), 10.0) for s in seeds]


@pytest.fixture
def context(tmp_path, monkeypatch):
    units = [Unit(ENV, (1, 2), 0), Unit(ENV, (3, 4), 0), Unit(ENV, (5, 6), 0)]
    monkeypatch.setattr(report, "evaluation_groups", lambda config, seed: [(units, 6)])
    monkeypatch.setattr(report, "published", lambda name, code: name)
    return SimpleNamespace(
        config=SimpleNamespace(eval=10, policy_code=None),
        inputs={name: name for name in ("a", "b", "c")},
        out=tmp_path,
        seed=0,
        check_stop=lambda: None,
        progress=lambda *_: None,
    )


def contrast(after, **solved):
    return Contrast("a", after, {(*EPISODE, int(name[1:])): end for name, end in solved.items()})


def test_each_policy_runs_once_the_units_that_hold_a_wanted_episode(context):
    cluster = Simulators({"a": {1, 3}, "b": {4}, "c": {4}})
    record_films(cluster, context, [contrast("b", s1=True, s4=False), contrast("c", s3=True, s4=False)])
    assert cluster.filmed[:2] == [("a", (1, 2), (1,), 10), ("a", (3, 4), (3, 4), 10)]
    assert sorted(policy for policy, *_ in cluster.filmed) == ["a", "a", "b", "b", "c"]
    rows = read_json_lines(context.out / "videos" / "b" / "index.jsonl")
    assert [(row["seed"], row["before_failure"], row["after_failure"]) for row in rows] == [
        (1, "dropped", None),
        (4, None, "dropped"),
    ]
    assert (context.out / "videos" / "b" / rows[0]["before"]).read_bytes() == b"a"
    assert (context.out / "videos" / "b" / rows[0]["after"]).read_bytes() == b"b"


def test_an_episode_that_ends_otherwise_than_when_it_was_evaluated_is_not_kept(context):
    record_films(
        Simulators({"a": {1}, "b": set(), "c": {1}}), context, [contrast("b", s2=True), contrast("c", s1=True)]
    )
    assert not (context.out / "videos").exists()


def test_the_page_of_a_run_names_policies_and_ends(tmp_path):
    path = build_run(tmp_path / "run", videos=0)
    row = {"task": EPISODE[0], "variant": EPISODE[1], "seed": 1, "before": "a.webp", "after": "b.webp"}
    row |= {"before_node": "sft", "after_node": "rpro.2.optimise", "before_failure": "off_table", "after_failure": None}
    write_jsonl(path / "videos" / "rpro.2.optimise" / "index.jsonl", [row])
    for name in ("a.webp", "b.webp"):
        (path / "videos" / "rpro.2.optimise" / name).write_bytes(b"film")
    page = str(videos(load_run(path)))
    assert "base policy: off table" in page and "RPRO, round 2: success" in page


def test_a_film_has_its_pictures_in_real_time():
    shades = [np.full((16, 24, 3), shade, np.uint8) for shade in (20, 120, 220)]
    with av.open(io.BytesIO(webm(shades, 12.5))) as file:
        shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)]
    assert [time for time, _ in shown] == [0, 0.08, 0.16]
    assert [round(picture.mean(), -1) for _, picture in shown] == [20, 120, 220]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_films_stand_still_until_they_are_played_and_are_stepped_together(tmp_path):
    path = build_run(tmp_path / "run", n=2, pairs=1, videos=1, steps=2)
    write_report(path)
    found = found_in_browser(
        path / "report.html",
        """
        const films = [...document.querySelectorAll("video")];
        const loaded = (film) => film.readyState || new Promise((done) => { film.onloadedmetadata = done; });
        await Promise.all(films.map(loaded));
        const [back, play, step] = document.querySelectorAll(".film button");
        const times = () => films.map((film) => Math.round(100 * film.currentTime) / 100);
        found.idle = films.map((film) => film.paused && !film.loop && film.controls && !film.error);
        step.click(); step.click(); found.two = times();
        back.click(); found.one = times();
        for (let i = 0; i < 20; i++) step.click();
        found.last = times(); found.lengths = films.map((film) => film.duration);
        """,
    )
    assert found["idle"] == [True, True]
    assert (found["two"], found["one"], found["last"]) == ([0.25] * 2, [0.15] * 2, [0.75] * 2)
    assert found["lengths"] == [pytest.approx(0.8, abs=0.01)] * 2
