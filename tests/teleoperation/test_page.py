"""The page of corrections in a browser: no key is lost while another is on its way."""

import json
from importlib import resources

import pytest

from tests.support.pages import CHROMIUM, found_in_browser

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
STATUS = {"over": False, "kept": 0, "keys": [["a d", "left, right"]], "note": "", "ended": None}
SERVER = """
<script>
  window.asked = [];
  window.fetch = async (path, { body }) => {
    asked.push(JSON.parse(body).key);
    await new Promise((done) => setTimeout(done, 50));
    return { json: async () => (STATUS) };
  };
  HTMLImageElement.prototype.decode = async () => {};
</script>
"""
"""Takes a while over each key."""


@pytest.fixture
def page(tmp_path):
    """The page beside such a server."""
    text = resources.files("rl_lab.teleoperation").joinpath("page.html").read_text()
    path = tmp_path / "page.html"
    server = SERVER.replace("STATUS", json.dumps(STATUS))
    path.write_text(text.replace("<script>", f"{server}<script>", 1).replace("</html>", "</body></html>"))
    return path


def test_keys_wait_for_their_turn_and_a_held_key_does_not_run_on(page):
    found = found_in_browser(
        page,
        """
        const press = (key, repeat = false) => dispatchEvent(new KeyboardEvent("keydown", { key, repeat }));
        const pause = (ms) => new Promise((done) => setTimeout(done, ms));
        await pause(200);
        asked.length = 0;
        for (const key of "wda ") press(key);
        await pause(500);
        found.pressed = [...asked];
        press("f");
        for (let i = 0; i < 9; i++) press("f", true);
        await pause(500);
        found.held = asked.length - found.pressed.length;
        """,
    )
    assert found == {"pressed": ["w", "d", "a", " "], "held": 2}
