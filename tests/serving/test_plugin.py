"""`vllm.LLM(DIR)` and `vllm serve DIR` know the lab's checkpoints, wherever they are started."""

import base64
import io
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from rewards.config import JudgeConfig
from rewards.judge import Judge, JudgedAnswer
from rl_lab.workers.engine import ENVIRONMENT
from tests.support.models import Drawer, make_processor, save_policy_of, training_token_logprobs

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

ROOT = Path(__file__).resolve().parents[2]
QUIET = ENVIRONMENT | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ASK = """
import sys
import numpy as np
from vllm import LLM, SamplingParams

llm = LLM(sys.argv[1], max_model_len=512, dtype="float32")
picture = np.zeros((64, 96, 3), np.uint8)
prompt = {"prompt_token_ids": [1, 3, 6, 9, 12, 7, 200], "multi_modal_data": {"image": [picture]}}
(answer,) = llm.generate([prompt], SamplingParams(max_tokens=3, ignore_eos=True))
print("ANSWER", len(answer.prompt_token_ids), len(answer.outputs[0].token_ids))
"""


def environment(**more):
    """This process's, without the paths that would make the packages importable from anywhere."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | QUIET | more


@pytest.mark.parametrize("kind, started_in", [("vlm", ROOT), ("policy", Path("/"))])
def test_plain_vllm_knows_the_checkpoint_from_the_repository_and_from_elsewhere(
    kind, started_in, vlm, folder, tmp_path
):
    checkpoint = folder if kind == "vlm" else save_policy_of(vlm, "nano", tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(checkpoint)],
        cwd=started_in,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # 64 x 96 pixels are 2 rows of 3 patches and a separator, in the place of one token; a policy's are at most 64 x 64.
    assert f"ANSWER {14 if kind == 'vlm' else 8 + 1} 3" in done.stdout


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_healthy(url, server, seconds=600):
    """Poll a server's health page; fails when the server ends or never answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, f"vllm serve ended with code {server.returncode}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"vllm serve gave no answer in {seconds} s")


def _check_judge(config):
    """Random weights have no opinion, but the server holds them to the form of a verdict; else the sample is masked."""
    questions = [JudgedAnswer("How many blocks are red?", "two", answer) for answer in ("two", "a sofa", "it is two")]
    rewards, verdicts, failures = Judge(config)([questions[0], None, *questions[1:]])
    assert rewards[1] is None and verdicts[1] is None
    failed = {failure.sample for failure in failures}
    for sample in (0, 2, 3):
        assert (rewards[sample] is None) == (sample in failed), (rewards, failures)
    given = [reward for reward in rewards if reward is not None]
    assert given and all(0 <= reward <= 1 for reward in given), failures


def test_a_server_answers_an_image_chat_request_of_a_plain_openai_client(vlm, folder, tmp_path):
    from openai import BadRequestError, OpenAI

    port = _free_port()
    options = [
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--max-model-len",
        "1024",
        "--dtype",
        "float32",
        "--served-model-name",
        "lab",
        "--structured-outputs-config",
        '{"backend": "xgrammar", "disable_any_whitespace": true}',  # random weights would write blanks for ever
    ]
    log = (tmp_path / "server.log").open("w")
    server = subprocess.Popen(
        [Path(sys.executable).with_name("vllm"), "serve", folder, *options],
        cwd=tmp_path,
        env=environment(VLLM_ENABLE_V1_MULTIPROCESSING="1", VLLM_CPU_NUM_OF_RESERVED_CPU="0"),
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}", server)
        client = OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        picture, file = Image.fromarray(Drawer().picture(64, 96)), io.BytesIO()
        picture.save(file, "PNG")
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "Where is the block?"}]
        messages = [{"role": "user", "content": content}]
        more = {"return_token_ids": True}
        answer = client.chat.completions.create(
            model="lab", messages=messages, max_tokens=8, temperature=1.0, logprobs=True, extra_body=more
        )
        processor = make_processor(vlm)
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(images=[picture], text=text)
        assert answer.prompt_token_ids == inputs["input_ids"][0].tolist()
        choice = answer.choices[0]
        logprobs = training_token_logprobs(vlm, inputs, choice.token_ids)
        assert [token.logprob for token in choice.logprobs.content] == pytest.approx(logprobs.tolist(), abs=1e-4)
        video = [{"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}]
        with pytest.raises(BadRequestError, match="(?i)video"):
            client.chat.completions.create(model="lab", messages=[{"role": "user", "content": video}], max_tokens=1)
        _check_judge(
            JudgeConfig(base_url=f"http://127.0.0.1:{port}/v1", model="lab", max_tokens=400, retries=1, timeout_s=120)
        )
    finally:
        server.terminate()
        server.wait(60)
        print((tmp_path / "server.log").read_text()[-3000:])
