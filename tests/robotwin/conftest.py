"""Fake checkouts and environments on them, closed after each test."""

import pytest

from envs.robotwin import layout
from envs.robotwin.connection import RoboTwin, RoboTwinError, RoboTwinServer
from envs.robotwin.env import RoboTwinEnv
from tests.robotwin.fake import CONFIG_FOLDERS, make_checkout, server


@pytest.fixture(scope="module")
def runtime():
    """A server of RoboTwin's installed runtime; skipped where that or a Vulkan driver is missing."""
    if layout.find_installed() is None:
        pytest.skip("RoboTwin's runtime is not installed: ./setup.sh robotwin")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ROBOTWIN_ROOT", "ROBOTWIN_PYTHON", "ROBOTWIN_ASSETS_ROOT"):
            patch.delenv(name, raising=False)
        server = RoboTwinServer(RoboTwin.from_environment())
        try:
            server.connection  # noqa: B018  (starts it)
        except RoboTwinError as error:
            pytest.skip(str(error))
        yield server
        server.close()


@pytest.fixture(params=list(CONFIG_FOLDERS))
def checkout(request, tmp_path):
    return make_checkout(tmp_path / "RoboTwin", request.param)


@pytest.fixture
def classic(tmp_path):
    return make_checkout(tmp_path / "RoboTwin", "classic")


@pytest.fixture
def make_env():
    made = []

    def make(root, task="push_block", timeouts=None, restarts=1, **options):
        its_server = server(root, restarts, **(timeouts or {}))
        made.append(RoboTwinEnv(task, server=its_server, **{"image_size": 32, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()
