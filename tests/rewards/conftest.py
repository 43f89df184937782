import pytest

from tests.support.judges import FakeJudge


@pytest.fixture
def serve():
    """Judges that reply as their scripts say, closed after the test."""
    servers = []

    def start(script):
        servers.append(FakeJudge(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
