import pytest

from tests.support.pools import write_run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A finished run; tests must not change it."""
    return write_run(tmp_path_factory.mktemp("runs") / "frontier")
