import importlib
import inspect
import sys
import types

import pytest

from rl_lab import bench
from rl_lab.common.errors import UserError


@pytest.fixture
def counting(monkeypatch):
    """A benchmark `count` that returns its options as rows."""
    module = types.ModuleType("counting")
    module.run = lambda rows=2, name="x": [{"name": name, "row": i, "rate": 1234.5678} for i in range(rows)]
    monkeypatch.setitem(sys.modules, "counting", module)
    monkeypatch.setitem(bench.BENCHMARKS, "count", "counting")


def test_a_table_is_printed_under_hardware_and_versions(counting, capsys):
    assert bench.main(["count", "rows=3", "name=y"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "cores" in lines[0] and "torch" in lines[1]
    assert lines[2].split() == ["name", "row", "rate"]
    assert set(lines[3]) == {"-", " "}, "a ruled line"
    assert [line.split() for line in lines[4:]] == [["y", str(i), "1235"] for i in range(3)]


@pytest.mark.parametrize("arguments", [["nothing"], ["count", "row=3"], ["count", "rows"], ["count", "rows=[1"]])
def test_unknown_benchmarks_and_options_are_bad_input(counting, arguments):
    with pytest.raises(UserError):
        bench.main(arguments)


@pytest.mark.parametrize("name", bench.BENCHMARKS)
def test_every_benchmark_has_a_run_function_whose_options_have_defaults(name):
    parameters = inspect.signature(importlib.import_module(bench.BENCHMARKS[name]).run).parameters.values()
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters)


OPTIONS = [
    (name, key)
    for name, module in bench.BENCHMARKS.items()
    for key in inspect.signature(importlib.import_module(module).run).parameters
]


@pytest.mark.parametrize(
    "value", ["", "x y", "0", "-1", "1e400", ".nan", "99999999999", "[]", "[0]", "{}", "true", "!!int x"]
)
@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_no_option_of_a_benchmark_takes_what_it_cannot_mean(name, key, value):
    if (key, value) in {
        ("compile", "true"),
        ("folder", "x y"),
        ("folder", ""),
        ("picture_side", ""),
        ("seed", "0"),
        ("seed", "99999999999"),
    }:
        return  # what they are for
    with pytest.raises(UserError, match=key):
        bench.main([name, f"{key}={value}"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["pool", "items=10", "batch=20"],
        ["rft", "candidates=100", "per_step=200"],
        ["rft", "folder=nowhere"],
        ["rollout", "batches=[4, 8]", "group=3"],
        ["scaling", "answers=6"],
    ],
)
def test_options_that_do_not_go_together_are_bad_input(arguments):
    with pytest.raises(UserError, match="[0-9a-z]+ is|folder nowhere"):
        bench.main(arguments)
