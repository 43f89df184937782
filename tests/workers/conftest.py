import pytest
import ray

from rl_lab.workers import connection


@pytest.fixture(scope="module")
def cluster():
    """A Ray of two cores, for the tests of a file."""
    connection.start(2, 100 << 20)
    yield
    ray.shutdown()
