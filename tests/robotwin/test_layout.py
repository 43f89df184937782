"""Both layouts are known; what is neither, or both, is named."""

import sys

import pytest

from envs.robotwin import layout
from envs.robotwin.connection import RoboTwin
from tests.robotwin.fake import CONFIG_FOLDERS, TASKS, make_checkout


def test_both_layouts_are_detected_and_read(checkout):
    found = layout.detect(str(checkout))
    assert found.name in CONFIG_FOLDERS and found.configs == str(checkout / CONFIG_FOLDERS[found.name][1])
    assert found.tasks() == sorted(TASKS)
    assert found.task_configs() == ["demo_clean", "demo_pandas", "demo_randomized", "demo_two_kinds"]
    assert found.step_limits() == {"push_block": 40, "trouble_block": 40}


def test_an_unknown_layout_is_named_with_what_is_there(classic):
    (classic / "script").rename(classic / "tools")
    with pytest.raises(ValueError, match=r"classic lacks script; 2026-07 lacks scripts, .*has: assets, .*tools"):
        layout.detect(str(classic))


def test_a_mixture_of_both_is_refused(classic):
    (classic / "scripts").mkdir()
    (classic / "env_cfg").mkdir()
    (classic / "task_config").rename(classic / "env_cfg" / "task_config")
    make_checkout(classic.parent / "other", "classic")
    (classic.parent / "other" / "task_config").rename(classic / "task_config")
    with pytest.raises(ValueError, match="both RoboTwin layouts"):
        layout.detect(str(classic))


def test_no_folder_and_no_such_config(classic):
    with pytest.raises(ValueError, match="is not a folder"):
        layout.detect(str(classic / "nowhere"))
    for name in ("demo_messy", "../secret"):
        with pytest.raises(ValueError, match="it has demo_clean, demo_pandas, demo_randomized"):
            layout.detect(str(classic)).read_config(name)


@pytest.fixture
def runtime():
    root = layout.find_installed()
    if root is None:
        pytest.skip("RoboTwin's runtime is not installed: ./setup.sh robotwin")
    return layout.detect(root)


def test_the_installed_runtime_is_a_layout_of_its_own(runtime):
    assert (runtime.name, runtime.is_installed, runtime.import_paths) == (layout.PYPI, True, [])
    assert len(runtime.tasks()) == 50 and set(runtime.tasks()) == set(runtime.step_limits())
    assert runtime.task_configs() == ["demo_clean", "demo_randomized"]


def test_a_checkout_that_is_named_comes_before_the_runtime(runtime, classic, monkeypatch):
    monkeypatch.delenv("ROBOTWIN_PYTHON", raising=False)
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
    assert RoboTwin.from_environment() == RoboTwin(sys.executable, runtime.root)
    monkeypatch.setenv("ROBOTWIN_ROOT", "")
    with pytest.raises(ValueError, match="ROBOTWIN_PYTHON and ROBOTWIN_ROOT not set"):
        RoboTwin.from_environment()
    monkeypatch.setenv("ROBOTWIN_ROOT", str(classic))
    monkeypatch.setenv("ROBOTWIN_PYTHON", "python3")
    assert RoboTwin.from_environment() == RoboTwin("python3", str(classic))
