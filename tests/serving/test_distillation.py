"""Distillation on a real engine: a teacher in an engine says what a live one says, and every stage of a run works."""

import json
from pathlib import Path

import pytest
import torch

from algos.batch import DistillationBatch, TokenBatch
from algos.distillation import Distillation, DistillationOptions, top_tokens
from rl_lab.common.files import read_json_lines
from rl_lab.records.rollouts import RolloutStore
from rl_lab.records.token_batches import imitation_batch
from rl_lab.records.types import Prompt
from rl_lab.reports.metrics import HEADER, define
from rl_lab.rollouts.teacher import TOKENS
from tests.support.models import Drawer, image_prompt, make_processor, make_vlm
from tests.support.processes import Run

pytest.importorskip("vllm", reason="vLLM is not installed (./setup.sh cpu)")

SMOKE = Path(__file__).resolve().parents[2] / "experiments" / "distillation_smoke.yaml"
TOP_K = 24


@pytest.fixture(scope="module")
def asked(vlm):
    """Prompts with and without a picture, and answers of different length that somebody wrote."""
    draw, ids = Drawer(3), vlm.config.special_token_ids
    prompts = [
        Prompt(draw.words(9)),
        Prompt([*draw.words(3), *image_prompt(ids), *draw.words(5)], (draw.picture(64, 64),)),
        Prompt([*image_prompt(ids), *image_prompt(ids)], (draw.picture(64, 96), draw.picture(40, 40))),
    ]
    return prompts, [draw.words(7), draw.words(12), draw.words(1)]


@pytest.fixture(scope="module")
def batch(vlm, asked) -> TokenBatch:
    prompts, answers = asked
    return imitation_batch(prompts, list(enumerate(answers)), make_processor(vlm))


@pytest.fixture
def scores(engines, folder, asked):
    """What the engine says about the answers."""
    engine = engines.get(folder, max_logprobs=TOP_K)
    read = [Prompt([*prompt.tokens, *answer], prompt.images) for prompt, answer in zip(*asked, strict=True)]
    return engine.score(read, [len(answer) for answer in asked[1]], TOP_K)


def test_an_engine_and_a_live_teacher_find_the_same_tokens_likely(vlm, asked, batch, scores):
    with torch.no_grad():
        live = vlm.next_tokens(batch)
        wanted = top_tokens(live.logits(live.features).log_softmax(-1), TOP_K)
    assert [score.tokens.shape for score in scores] == [(len(answer), TOP_K) for answer in asked[1]]
    logprobs = torch.cat([torch.from_numpy(score.logprobs) for score in scores])
    tokens = torch.cat([torch.from_numpy(score.tokens) for score in scores]).long()
    torch.testing.assert_close(logprobs, wanted.logprobs, atol=1e-4, rtol=0)
    assert (tokens == wanted.tokens).float().mean() > 0.99, "only what is equally likely may change places"


def test_the_loss_is_that_of_a_live_teacher(vlm, batch, scores):
    student, options = make_vlm(seed=5).requires_grad_(True), DistillationOptions(top_k=TOP_K)
    shape = (*batch.input_ids.shape, TOP_K)
    tokens, logprobs = torch.zeros(shape, dtype=torch.long), torch.zeros(shape)
    tokens[batch.completion_mask] = torch.cat([torch.from_numpy(score.tokens) for score in scores]).long()
    logprobs[batch.completion_mask] = torch.cat([torch.from_numpy(score.logprobs) for score in scores])
    known = {name: getattr(batch, name) for name in TokenBatch.__dataclass_fields__}
    stored = DistillationBatch(**known, teacher_tokens=tokens, teacher_logprobs=logprobs)
    generator = torch.Generator()
    live, _ = Distillation(options, teacher=vlm).loss(student, batch, generator)
    found, _ = Distillation(options).loss(student, stored, generator)
    assert found.item() == pytest.approx(live.item(), abs=1e-4) and live.item() > 0.01


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """The finished run folder of the smoke experiment, its teacher in an engine."""
    folder = tmp_path_factory.mktemp("distillation")
    (folder / "smoke.yaml").write_text(SMOKE.read_text())
    settings = ("distill.scored_by=engine", "distill.top_k=8", "distill.num_generations=2", "distill.reward_weight=0.1")
    run = Run(folder, "smoke.yaml", *settings)
    run.finish()
    return run.path


@pytest.mark.slow
def test_every_stage_runs_with_a_teacher_in_an_engine_and_rewards(done):
    nodes = json.loads((done / "stages.json").read_text())["nodes"]
    assert {node["status"] for node in nodes} == {"done"}
    lines = [line for line in read_json_lines(done / "metrics.jsonl") if line["node"] == "distill"]
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    for line in lines[1:]:
        assert line["distill/divergence"] > 0 and 0 < line["distill/covered"] < 1
        assert line["mismatch/max"] < 1e-4, "student and its engine agree"
    names = {name for line in read_json_lines(done / "metrics.jsonl") for name in line} - set(HEADER)
    assert not [name for name in names if define(name) is None]
    rows = RolloutStore(done / "grpo" / "distill").read()
    assert all(len(row[TOKENS]) == 8 * len(row["tokens"]) for row in rows)


@pytest.mark.slow
def test_the_report_has_gap_tokens_and_seconds(done):
    summary = json.loads((done / "summary.json").read_text())["distillation"]
    assert set(summary["rewards"]) == {"student", "teacher", "distill", "imitate"}
    assert {entry["model"] for entry in summary["tokens"]} == {"distill", "imitate"}
    assert all(value > 0 for value in summary["seconds"].values())
    assert "Distillation" in (done / "report.html").read_text()
