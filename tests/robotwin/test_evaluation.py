"""`rl_lab.eval --out` on the fake RoboTwin, killed and called again: episodes that are done are not run again."""

import json
import sys
from contextlib import contextmanager

import pytest

from rl_lab import eval as command
from rl_lab.common.errors import UserError
from rl_lab.workers.simulation import REJECTED
from tests.support.models import save_nano_policy

UNSTABLE = 100_002
"""A seed that is passed over."""


class Killed(BaseException):
    pass


class Simulators:
    """In place of a cluster: says what it is asked for, and is killed after so many episodes."""

    def __init__(self, episodes):
        self.episodes, self.asked = episodes, []

    def share(self, snapshot):
        return snapshot

    @contextmanager
    def simulation_pool(self):
        yield self

    def map(self, submit, units, check_stop):
        for unit in units:
            if len(self.asked) == self.episodes:
                raise Killed
            (seed,) = unit.seeds
            self.asked.append((unit.env.task, unit.env.variant, seed))
            row = {"task": unit.env.task, "variant": unit.env.variant, "seed": seed}
            yield [row | ({REJECTED: "unstable"} if seed == UNSTABLE else {"success": seed % 2 == 1, "num_steps": 9})]

    def close(self):
        pass


@pytest.fixture
def evaluate(classic, tmp_path, monkeypatch):
    """A call of the command, killed after so many episodes; what it asked for."""
    monkeypatch.setenv("ROBOTWIN_ROOT", str(classic))
    monkeypatch.setenv("ROBOTWIN_PYTHON", sys.executable)
    checkpoint = save_nano_policy(tmp_path / "checkpoint")
    settings = ["env.tasks=[push_block,home_block]", "env.variants=[demo_clean,demo_randomized]", "eval.episodes=3"]

    def call(out, episodes=10**6, *overrides):
        simulators = Simulators(episodes)
        monkeypatch.setattr(command, "Cluster", lambda *_: simulators)
        arguments = [str(checkpoint), *settings, *overrides, "--out", str(tmp_path / out)]
        try:
            command.main(arguments)
        except Killed:
            assert simulators.asked and not (tmp_path / out).exists()
        return simulators.asked

    return call


def test_an_evaluation_that_was_killed_goes_on_where_it_was(evaluate, tmp_path, capsys):
    whole = evaluate("whole.jsonl")
    assert len(whole) == 4 * 4 and not (tmp_path / "whole.jsonl.partial").exists()
    first, second, rest = evaluate("out.jsonl", 6), evaluate("out.jsonl", 3), evaluate("out.jsonl")
    assert first + second + rest == whole and len(rest) == 16 - 6 - 3
    assert (tmp_path / "out.jsonl").read_text() == (tmp_path / "whole.jsonl").read_text()
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(rows) == 4 * 3 and UNSTABLE not in [row["seed"] for row in rows]
    said = capsys.readouterr()
    assert "goes on with the episodes in" in said.err and not (tmp_path / "out.jsonl.partial").exists()
    table = [line.split() for line in said.out.splitlines()]
    assert ["task", "demo_clean", "demo_randomized"] in table and ["mean", "66.7", "66.7"] in table


def test_episodes_of_another_evaluation_are_refused(evaluate, classic):
    evaluate("out.jsonl", 2)
    with pytest.raises(UserError, match=r"out.jsonl.partial has episodes of another .* other settings or other code"):
        evaluate("out.jsonl", 9, "eval.execute=5")
    with (classic / "envs/push_block.py").open("a") as file:
        file.write("# changed\n")
    with pytest.raises(UserError, match="delete it, or give another --out"):
        evaluate("out.jsonl")
