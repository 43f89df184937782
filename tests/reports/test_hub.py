"""Uploads to a stand-in of the hub on this machine, by huggingface_hub's own calls."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from rl_lab.common.errors import UserError
from rl_lab.config.hub import HubConfig
from rl_lab.reports.hub import check_hub, push
from rl_lab.stages.kinds import expand, load_config
from tests.support.experiments import main, write_small

STAGE = "rpro.2.optimise"


class Hub(BaseHTTPRequestHandler):
    """Answers what an upload asks, and keeps what it was sent."""

    calls: list[tuple[str, str]]
    files: dict[str, bytes]
    made: list[dict]
    refuses = ""

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        self.calls.append((self.path, self.headers["Authorization"]))
        if self.refuses and self.refuses in self.path:
            return self.answer({"error": "You may not."}, 403)
        repository = "me/robot"
        if self.path == "/api/repos/create":
            self.made.append(json.loads(body))
            return self.answer({"url": f"{self.server.url}/{repository}"})
        if "/preupload/" in self.path:
            names = [row["path"] for row in json.loads(body)["files"]]
            return self.answer({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        for line in map(json.loads, body.splitlines() if "/commit/" in self.path else ()):
            if line["key"] == "file":
                self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.answer({"commitUrl": f"{self.server.url}/{repository}/commit/1", "commitOid": "1"})

    def do_GET(self):  # noqa: N802
        if "/repos/" in self.path or "/models/" in self.path or "/datasets/" in self.path:
            # Once a day the library also asks, without a token, about things that are no repository.
            self.calls.append((self.path, self.headers["Authorization"]))
        self.answer({"sha": "0", "id": "me/robot", "siblings": []}, 404 if self.refuses == "create" else 200)

    def answer(self, content, code=200):
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(monkeypatch):
    """The class that answers, with what it was sent."""
    handler = type("Answers", (Hub,), {"calls": [], "files": {}, "made": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # what HF_ENDPOINT sets
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "secret")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def nodes(tmp_path):
    return expand(load_config(write_small(tmp_path), []))


def folder(tmp_path: Path, kind: str, stage: str) -> Path:
    made = tmp_path / "run" / kind / stage
    made.mkdir(parents=True)
    (made / "README.md").write_text("card")
    (made / "weights").write_bytes(b"\0\1")
    return made


def test_a_model_goes_there_with_its_card(hub, nodes, tmp_path, capsys):
    folder(tmp_path, "checkpoints", STAGE)
    push(HubConfig(push="me/robot", stage=STAGE), tmp_path / "run", nodes)
    (made,) = hub.made
    assert (made["organization"], made["name"], made["visibility"]) == ("me", "robot", "private")
    assert hub.files == {"README.md": b"card", "weights": b"\0\1"}
    assert all(token == "Bearer secret" for _, token in hub.calls)
    assert capsys.readouterr().err.endswith("/me/robot\n")


def test_data_become_a_data_set(hub, nodes, tmp_path):
    folder(tmp_path, "pairs", "rpro.1.collect")
    push(HubConfig(push="me/robot", stage="rpro.1.collect", private=False), tmp_path / "run", nodes)
    assert [(made["type"], made["visibility"]) for made in hub.made] == [("dataset", "public")]
    assert hub.files and any(path.startswith("/api/datasets/me/robot/commit/") for path, _ in hub.calls)


@pytest.mark.parametrize("refused", ["create", "commit", "card"])
def test_an_upload_that_fails_is_one_warning_with_the_command_for_it(hub, nodes, tmp_path, capsys, refused):
    made = folder(tmp_path, "checkpoints", STAGE)
    hub.refuses = refused
    if refused == "card":
        (made / "README.md").unlink()
    push(HubConfig(push="me/robot", stage=STAGE), tmp_path / "run", nodes)
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: nothing was uploaded to me/robot: ")
    assert line.endswith(f"hf upload me/robot {made} . --repo-type model --private")
    assert "secret" not in line and not hub.files


def test_a_finished_run_is_uploaded_and_stays_finished_where_that_fails(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    assert main("small.yaml", "hub.push=me/robot", f"hub.stage={STAGE}") == 0
    assert "has no card; `python -m rl_lab.report runs/small-" in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"push": "robot"}, "hub.push: 'robot' has no owner; give OWNER/NAME"),
        ({"push": "me/a robot"}, "hub.push: 'me/a robot' is no repository; give OWNER/NAME"),
        ({"stage": "rpro.3.optimise"}, "hub.stage: 'rpro.3.optimise' is no stage of this run that makes a model or"),
        ({"stage": "base.evaluate"}, "hub.stage: 'base.evaluate' is no stage"),
    ],
)
def test_what_could_not_be_uploaded_is_refused_before_anything_runs(hub, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    write_small(tmp_path)
    given = {"push": "me/robot", "stage": STAGE} | settings
    with pytest.raises(UserError) as error:
        main("small.yaml", *(f"hub.{key}={value}" for key, value in given.items()))
    assert message in str(error.value) and not (tmp_path / "runs").exists() and not hub.calls


def test_without_a_token_nothing_begins(hub, nodes, tmp_path, monkeypatch):
    settings = HubConfig(push="me/robot", stage=STAGE)
    check_hub(settings, nodes)
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"hub.push: there is no token; run `hf auth login`"):
        check_hub(settings, nodes)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        check_hub(settings, nodes)
