"""A judge that the run serves itself: placed, asked, restarted where it was, gone with the cluster."""

import base64
import os
import urllib.error
import urllib.request

import psutil
import pytest

from rewards.config import JudgeConfig
from rewards.judge import Judge, JudgedAnswer
from rl_lab.common.errors import UserError
from rl_lab.config.language import JUDGE_MODEL, JUDGE_URL, JudgeServerConfig
from rl_lab.config.placement import Placement
from rl_lab.config.schema import WorkersConfig
from rl_lab.workers.cluster import Cluster
from tests.serving.language_runs import wait_until

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")


def servers():
    """Processes of `vllm serve` that this test's actor began, by port."""
    return [one for one in psutil.process_iter(["cmdline"]) if "--served-model-name" in (one.info["cmdline"] or [])]


def status(address, path="/health", login=None):
    """Of a request with this user and password, those of the address, or (an empty text) none; None without answer."""
    own, _, place = address.removeprefix("http://").removesuffix("/v1").rpartition("@")
    login = base64.b64encode((own if login is None else login).encode()).decode()
    request = urllib.request.Request(
        f"http://{place}{path}", headers={"Authorization": f"Basic {login}"} if login else {}
    )
    try:
        with urllib.request.urlopen(request, timeout=5) as reply:
            return reply.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


def answers(address):
    return status(address) == 200


def check_closed(address):
    """Nobody without the key is answered, on any path, and nothing of the server listens beyond this machine."""
    key = address.removeprefix("http://judge:").partition("@")[0]
    for path in ("/health", "/metrics", "/invocations", "/tokenize", "/v1/models", "/v1/chat/completions", "/nowhere"):
        assert status(address, path, "") == status(address, path, f"judge:{'0' * 64}") == 401
    members = [child for one in servers() for child in (one, *one.children(recursive=True))]
    found = [one.laddr.ip for member in members for one in member.net_connections("tcp") if one.status == "LISTEN"]
    assert found and {ip.removeprefix("::ffff:") for ip in found} == {"127.0.0.1"}
    assert not any(key in text for member in members for text in member.cmdline())


@pytest.mark.slow
def test_a_run_serves_its_judge_and_starts_it_again(folder, tmp_path, monkeypatch):
    placement = Placement.model_validate({"device": "cpu", "judges": {"cpus": 0.5}})
    cluster = Cluster(WorkersConfig(simulation=1), placement)
    try:
        with pytest.raises(UserError, match="judge: the judge of .* ended"):
            cluster.serve_judge(JudgeServerConfig(path=str(tmp_path)))
        settings = JudgeServerConfig(path=str(folder), max_model_len=1024, kv_cache_gib=0.25)
        address = cluster.serve_judge(settings)
        monkeypatch.setenv(JUDGE_URL, address)
        judge = Judge(JudgeConfig(base_url=f"${JUDGE_URL}", model=JUDGE_MODEL, max_tokens=400, timeout_s=120))
        rewards, _, failures = judge([JudgedAnswer("How many blocks are red?", "two", "two")] * 4)
        # Random weights have no opinion, but the server holds them to the form of a verdict.
        assert any(reward is not None and 0 <= reward <= 1 for reward in rewards), failures
        check_closed(address)
        first = servers()
        first[0].kill()
        wait_until(lambda: not answers(address))
        wait_until(lambda: answers(address))
    finally:
        cluster.close()
    wait_until(lambda: not servers())
    monkeypatch.delenv(JUDGE_URL)
    config = JudgeConfig(base_url=f"${JUDGE_URL}", model=JUDGE_MODEL, retries=0)
    with_reason = Judge(config)([JudgedAnswer("a", "b", "c")])[2]
    assert JUDGE_URL in str(with_reason[0]) and os.environ.get(JUDGE_URL) is None
