"""Synthetic run folders."""

import pytest

from tests.support.language_run_folders import SCHEMES, build_language_run
from tests.support.run_folders import as_study, build_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory):
    """A complete run; tests that write copy it first."""
    return build_run(tmp_path_factory.mktemp("runs") / "finished", n=30)


@pytest.fixture(scope="session")
def language_run(tmp_path_factory):
    """A complete run on language; tests that write copy it first."""
    return build_language_run(tmp_path_factory.mktemp("runs") / "language")


@pytest.fixture(scope="session")
def scheme_study(tmp_path_factory):
    """A complete study of four curricula; tests that write copy it first."""
    path = build_language_run(tmp_path_factory.mktemp("runs") / "schemes", schemes=SCHEMES, seeds=3)
    return as_study(path, compare="curriculum.scheme", methods=[*SCHEMES], control="uniform")
