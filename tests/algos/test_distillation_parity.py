"""Distillation against TRL 1.16, loss and gradients, and parts of the vocabulary's logits against the whole.

On the lab's language models: `DistillationTrainer._compute_loss`, its default. On given tensors: the experimental
`GKDTrainer.generalized_jsd_loss`, and of `ServerDistillationTrainer` the forward divergence of stored top-k with and
without tail, and its divergences with a tail bucket, which it uses with top-1 only.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from trl import DistillationConfig, DistillationTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.server_distillation import ServerDistillationTrainer
from trl.experimental.server_distillation.server_distillation_trainer import _add_tail_bucket, _jsd_divergence

from algos.batch import TokenBatch
from algos.distillation import Distillation, DistillationOptions, Divergence, Tail, compare, stored_top_tokens
from rl_lab.model import backbone
from rl_lab.model.tokenizer import load_tokenizer
from tests.support.models import gradients_of, make_policy, vlm_from_policy

CLOSE: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-5}
KINDS = [("forward_kl", 0.0), ("reverse_kl", 1.0), ("jsd", 0.5), ("jsd", 0.1), ("jsd", 0.9)]
"""Our name, and TRL's beta."""
kinds = pytest.mark.parametrize("kind, beta", KINDS)


def options_of(kind: str, beta: float, **values: Any) -> DistillationOptions:
    return DistillationOptions(divergence=kind, beta=beta if kind == "jsd" else 0.5, **values)


def rows() -> tuple[list[list[int]], list[list[int]]]:
    draw = torch.Generator().manual_seed(0)
    prompts = [[100 + row] * (3 + row % 3) for row in range(5)]
    return prompts, [torch.randint(200, 3000, (2 + row,), generator=draw).tolist() for row in range(5)]


def our_batch() -> TokenBatch:
    prompts, answers = rows()
    ids = torch.zeros(
        len(prompts), max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True)), dtype=torch.long
    )
    valid, learned = torch.zeros_like(ids, dtype=torch.bool), torch.zeros_like(ids, dtype=torch.bool)
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        middle, end = len(prompt), len(prompt) + len(answer)
        ids[index, :end] = torch.tensor(prompt + answer)
        valid[index, :end], learned[index, middle:end] = True, True
    return TokenBatch(input_ids=ids, attention_mask=valid, completion_mask=learned)


def trl_inputs() -> dict[str, Tensor]:
    prompts, answers = rows()
    sides: dict[str, Tensor] = {}
    for name, texts, left in (("prompt", prompts, True), ("completion", answers, False)):
        width = max(map(len, texts))
        pads = [[0] * (width - len(text)) for text in texts]
        ones = [[1] * len(text) for text in texts]
        join = (lambda pad, text: pad + text) if left else (lambda pad, text: text + pad)
        sides[f"{name}_ids"] = torch.tensor([join(pad, text) for pad, text in zip(pads, texts, strict=True)])
        sides[f"{name}_mask"] = torch.tensor([join(pad, one) for pad, one in zip(pads, ones, strict=True)])
    return sides


def model(seed: int) -> Any:
    return vlm_from_policy(make_policy(seed)).eval()


def make_trainer(student: nn.Module, teacher: nn.Module, folder: Path, **options: Any) -> Any:
    args = DistillationConfig(
        str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none", **options
    )
    data = Dataset.from_list([{"prompt": "where"}] * 8)
    return DistillationTrainer(
        student,  # type: ignore[arg-type]
        teacher_model=teacher,  # type: ignore[arg-type]
        args=args,
        train_dataset=data,
        processing_class=load_tokenizer(),
    )


@kinds
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_loss_and_gradients_are_the_distillation_trainers(
    kind: str, beta: float, temperature: float, tmp_path: Path
) -> None:
    student, teacher = model(0), model(1)
    trainer = make_trainer(student, teacher, tmp_path, beta=beta, temperature=temperature)
    objective = Distillation(options_of(kind, beta, temperature=temperature, average="token"), teacher=teacher)
    theirs = trainer._compute_loss(student, trl_inputs(), None)[0]
    expected = gradients_of(student, theirs)
    ours, metrics = objective.loss(student, our_batch(), torch.Generator())
    torch.testing.assert_close(ours, theirs, **CLOSE)
    assert metrics["distill/divergence"].item() == pytest.approx(theirs.item(), rel=1e-4) and theirs.item() > 1e-3
    found = gradients_of(student, ours)
    for name, value in found.items():
        other = expected.get(name, torch.zeros_like(value))
        torch.testing.assert_close(value, other, atol=1e-6, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


@kinds
@pytest.mark.parametrize("top_k", [None, 5])
def test_logits_made_in_parts_give_the_same_loss_metrics_and_gradients(
    kind: str, beta: float, top_k: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher, batch = model(0), model(1), our_batch()
    objective = Distillation(options_of(kind, beta, top_k=top_k), teacher=teacher)
    whole, metrics = objective.loss(student, batch, torch.Generator())
    expected = gradients_of(student, whole)
    vocab, seen = student.config.vlm_sizes.vocab, []
    monkeypatch.setattr(backbone, "LOGITS_AT_ONCE", 2 * 3 * vocab)
    monkeypatch.setattr(
        student.model, "logits", lambda hidden, make=student.model.logits: seen.append(len(hidden)) or make(hidden)
    )
    parts, same = objective.loss(student, batch, torch.Generator())
    torch.testing.assert_close(parts, whole, **CLOSE)
    for name in metrics:
        torch.testing.assert_close(same[name], metrics[name], **CLOSE)
    found = gradients_of(student, parts)
    assert max(seen) == 3 and sum(seen) == 2 * batch.num_tokens, "each part is made once more going backward"
    assert found.keys() == expected.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-3)


def test_the_model_tells_the_same_distributions_at_once_and_compared() -> None:
    student, batch = model(0), our_batch()
    given = student.next_tokens(batch)
    logits = given.logits(given.features)
    assert logits.shape == (batch.num_tokens, given.vocab)

    def own(some: Tensor, target: Tensor) -> tuple[Tensor]:
        return (some.log_softmax(-1).gather(1, target[:, None])[:, 0],)

    (found,) = student.compare_tokens(batch, own, batch.input_ids[batch.completion_mask])
    expected = student.token_logprobs(batch).logprobs
    torch.testing.assert_close(found, expected, **CLOSE)
    torch.testing.assert_close(own(logits, batch.input_ids[batch.completion_mask])[0], expected[batch.completion_mask])


def test_the_policy_compares_with_the_same_weights() -> None:
    policy, batch = make_policy(0).eval(), our_batch()
    objective = Distillation(DistillationOptions(), teacher=model(1))
    loss, _ = objective.loss(policy, batch, torch.Generator())
    torch.testing.assert_close(loss, objective.loss(model(0), batch, torch.Generator())[0], **CLOSE)


def tensors(vocab: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [B, S, V] of student and teacher, and labels."""
    draw = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(4, 6, vocab, generator=draw) for _ in range(2))
    labels = torch.randint(0, vocab, (4, 6), generator=draw)
    return student, teacher, labels.masked_fill(torch.rand(4, 6, generator=draw) < 0.3, -100)


@kinds
@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0])
def test_the_divergence_is_gkds(kind: str, beta: float, temperature: float) -> None:
    student, teacher, labels = tensors()
    theirs = GKDTrainer.generalized_jsd_loss(student, teacher, labels, beta, temperature)
    options, mask = options_of(kind, beta, temperature=temperature), labels != -100
    ours = compare(student[mask], (teacher[mask] / temperature).log_softmax(-1), options).divergence.mean()
    torch.testing.assert_close(ours, theirs, **CLOSE)


@pytest.mark.parametrize("tail", get_args(Tail))
@pytest.mark.parametrize("k", [2, 10])
def test_stored_top_k_are_the_servers(tail: str, k: int) -> None:
    student, teacher, labels = tensors()
    top, mask = teacher.log_softmax(-1).topk(k), labels != -100
    top.values[0, 0, -1] = -torch.inf
    server = SimpleNamespace(
        loss_add_tail=tail == "bucket", _reduce_divergence_loss=ServerDistillationTrainer._reduce_divergence_loss
    )
    result = {"topk_logprobs": top.values, "topk_token_ids": top.indices}
    function: Any = ServerDistillationTrainer._compute_server_forward_kl_loss
    theirs = function(server, result, student.log_softmax(-1), labels)
    options = DistillationOptions(top_k=k, tail=tail)
    ours = compare(student[mask], stored_top_tokens(top.indices[mask], top.values[mask]), options).divergence.mean()
    torch.testing.assert_close(ours, theirs, **CLOSE)


@kinds
def test_divergences_over_buckets_are_the_servers(kind: str, beta: float) -> None:
    student, teacher = (logits.flatten(0, 1) for logits in tensors()[:2])
    top, every = teacher.log_softmax(-1).topk(6), torch.ones(24, 6, dtype=torch.bool)
    own, support = _add_tail_bucket(student.log_softmax(-1).gather(1, top.indices), every)
    given, _ = _add_tail_bucket(top.values, every)
    theirs = _jsd_divergence(own, given, beta, support).sum(-1)
    found = compare(student, stored_top_tokens(top.indices, top.values), options_of(kind, beta, top_k=6)).divergence
    torch.testing.assert_close(found, theirs, **CLOSE)
    by_model = compare(student, teacher.log_softmax(-1), options_of(kind, beta, top_k=6)).divergence
    torch.testing.assert_close(by_model, theirs, **CLOSE)


def test_every_divergence_is_compared() -> None:
    assert {kind for kind, _ in KINDS} == set(get_args(Divergence))
