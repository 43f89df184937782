import pytest


@pytest.fixture(autouse=True)
def no_robotwin(monkeypatch):
    """The machine's RoboTwin, if it has one, decides on no test."""
    monkeypatch.delenv("ROBOTWIN_ROOT", raising=False)
