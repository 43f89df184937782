"""From completions and chats to token batches: what is learned, which pictures belong to a row, and parity of SFT."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from trl import SFTConfig, SFTTrainer

from algos.cross_entropy import CrossEntropy
from algos.grpo import GRPO, PAPER, group_advantages
from rl_lab.learner.learner import Learner, Optimiser
from rl_lab.model.chat import HunYuanVLMoTProcessor, answer_labels
from rl_lab.model.checkpoint import vlm_processor
from rl_lab.model.tokenizer import load_tokenizer
from rl_lab.records.token_batches import chat_batch, rollout_batch
from rl_lab.records.types import Completion, Prompt
from tests.support.models import gradients_of, make_policy, picture, vlm_from_policy
from tests.support.rollouts import learned_groups

GENERATOR = torch.Generator()


@pytest.fixture
def vlm() -> Any:
    return vlm_from_policy(make_policy())


@pytest.fixture(scope="module")
def processor() -> HunYuanVLMoTProcessor:
    return vlm_processor(make_policy().config, load_tokenizer())


def chats() -> list[list[dict[str, Any]]]:
    """One image; text alone in two turns; an image after a video; two images."""
    say = {"type": "text", "text": "where is it"}
    images = [{"type": "image", "image": picture(64, 64 if seed else 32, seed)} for seed in range(4)]
    video = {"type": "video", "video": [picture(32, 32, seed) for seed in (7, 8)]}

    def turn(*content: Any, answer: str) -> list[dict[str, Any]]:
        return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]

    return [
        turn(images[0], say, answer="<think>left</think><answer>cup</answer>"),
        turn(say, answer="red") + turn(say, answer="blue"),
        turn(video, say, images[1], answer="here"),
        turn(images[2], images[3], say, answer="<answer><point>(1, 2)</point></answer>"),
    ]


def tensors_of(processor: HunYuanVLMoTProcessor, rows: list[Any]) -> Any:
    return processor.apply_chat_template(rows, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)


def cross_entropy(vlm: Any, processor: HunYuanVLMoTProcessor, rows: list[Any]) -> Tensor:
    """By torch, on full logits: sum over the answers' tokens."""
    made = tensors_of(processor, rows)
    labels = answer_labels(made)
    logits = vlm(**{name: made[name] for name in processor.model_input_names if name in made}).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


def test_the_loss_is_torchs_cross_entropy_of_the_answers(vlm: Any, processor: HunYuanVLMoTProcessor) -> None:
    batch = chat_batch(chats(), processor)
    loss, metrics = CrossEntropy().loss(vlm, batch, GENERATOR)
    expected = cross_entropy(vlm, processor, chats()) / batch.num_tokens
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-5)
    assert metrics["text/cross_entropy"] == loss
    assert metrics["text/tokens"] == batch.num_tokens


def test_parts_of_a_batch_add_up_whatever_their_sizes(vlm: Any, processor: HunYuanVLMoTProcessor) -> None:
    batch, objective = chat_batch(chats(), processor), CrossEntropy()
    whole = objective.loss(vlm, batch, GENERATOR)[0]
    parts = [
        objective.loss(vlm, batch.select(torch.tensor(rows)), GENERATOR, objective.denominator(batch))[0]
        for rows in ([3, 0], [1], [2])
    ]
    torch.testing.assert_close(sum(parts), whole, atol=1e-6, rtol=1e-5)


def test_loss_and_gradients_are_those_of_trls_trainer(
    vlm: Any, processor: HunYuanVLMoTProcessor, tmp_path: Path
) -> None:
    made = tensors_of(processor, chats())
    inputs = {name: made[name] for name in processor.model_input_names if name in made}
    args = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none")
    data = Dataset.from_list([{"text": "where"}] * 2)
    trainer: Any = SFTTrainer(vlm, args=args, train_dataset=data, processing_class=processor.tokenizer)

    theirs = trainer.compute_loss(vlm, inputs | {"labels": answer_labels(made)})
    ours = CrossEntropy().loss(vlm, chat_batch(chats(), processor), GENERATOR)[0]
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    expected, found = gradients_of(vlm, theirs), gradients_of(vlm, ours)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-4)


def test_every_assistant_turn_and_its_end_token_is_learned(processor: HunYuanVLMoTProcessor) -> None:
    batch = chat_batch(chats()[:2], processor)
    texts = [
        processor.tokenizer.decode(row[mask]) for row, mask in zip(batch.input_ids, batch.completion_mask, strict=True)
    ]
    eos = processor.tokenizer.eos_token
    assert texts == [f"<think>left</think><answer>cup</answer>{eos}", f"red{eos}blue{eos}"]
    with pytest.raises(ValueError, match="chat 1 has no assistant turn"):
        chat_batch([chats()[0], chats()[1][:1]], processor)


def test_a_learner_lowers_the_cross_entropy(vlm: Any, processor: HunYuanVLMoTProcessor) -> None:
    learner = Learner(vlm, seed=0)
    learner.add("sft", CrossEntropy(), Optimiser(lr=1e-3, steps=8))
    batch = chat_batch(chats()[:2], processor)
    history = [learner.step("sft", batch)["loss"] for _ in range(8)]
    assert history[-1] < 0.7 * history[0]


def completion(prompt: list[int], tokens: list[int], version: int = 0, finished: bool = True) -> Completion:
    logprobs = tuple(-0.1 * (index + 1) for index in range(len(tokens)))
    return Completion(tuple(prompt), tuple(tokens), logprobs, version, finished)


def expanded(processor: HunYuanVLMoTProcessor, count: int) -> list[int]:
    """A prompt with patch tokens, as an engine reports it."""
    content: list[Any] = [{"type": "image", "image": picture(64, 64, index)} for index in range(count)]
    chat: Any = [{"role": "user", "content": [*content, {"type": "text", "text": "where"}]}]
    made: Any = processor.apply_chat_template([chat], tokenize=True, return_dict=True, add_generation_prompt=True)
    return made["input_ids"][0].tolist()


def test_answers_become_rows_that_share_their_prompts_pictures(vlm: Any, processor: HunYuanVLMoTProcessor) -> None:
    texts = [expanded(processor, count) for count in (1, 0, 2)]
    prompts = [Prompt([], [picture(64, 64, index) for index in range(count)]) for count in (1, 0, 2)]
    answers = [
        [completion(text, [200 + group, 201], group), completion(text, [300], group, finished=False)]
        for group, text in enumerate(texts)
    ]
    advantages = torch.arange(6.0).view(3, 2)
    scored = torch.tensor([[True, True], [True, False], [True, True]])
    groups = learned_groups(prompts, answers, advantages, scored)
    batch = rollout_batch(groups, processor.image_processor)
    assert len(batch) == 5
    assert batch.visual.shown == ((0,), (0,), (), (1, 2), (1, 2))
    assert batch.advantages.tolist() == [0.0, 1.0, 2.0, 4.0, 5.0]
    assert batch.group.tolist() == [0, 0, 1, 2, 2]
    assert batch.weight_version.tolist() == [0, 0, 1, 2, 2]
    assert batch.finished.tolist() == [True, False, True, True, False]
    assert [row[mask].tolist() for row, mask in zip(batch.input_ids, batch.completion_mask, strict=True)] == [
        [200, 201],
        [300],
        [201, 201],
        [202, 201],
        [300],
    ]
    torch.testing.assert_close(batch.rollout_logprobs[batch.completion_mask][:3], torch.tensor([-0.1, -0.2, -0.1]))
    assert batch.rollout_logprobs[~batch.completion_mask].eq(0).all()
    with torch.no_grad():
        together = vlm.token_logprobs(batch).logprobs
        for row in range(5):
            alone = vlm.token_logprobs(batch.select(torch.tensor([row]))).logprobs[0]
            torch.testing.assert_close(together[row], alone, atol=2e-5, rtol=1e-4)


def test_a_learner_with_grpo_raises_the_better_answer(vlm: Any, processor: HunYuanVLMoTProcessor) -> None:
    prompt = expanded(processor, 1)
    answers = [completion(prompt, [200, 201]), completion(prompt, [300, 301])]
    rewards = torch.tensor([[1.0, 0.0]])
    groups = learned_groups([Prompt([], [picture(64, 64)])], [answers], group_advantages(rewards))
    batch = rollout_batch(groups, processor.image_processor)
    with torch.no_grad():
        drawn = vlm.token_logprobs(batch, temperature=1.0).logprobs
    batch.rollout_logprobs = drawn
    learner = Learner(vlm, seed=0)
    learner.add("grpo", GRPO(PAPER.replace(num_generations=2)), Optimiser(lr=1e-4, steps=10))
    first = learner.step("grpo", batch)
    assert first["mismatch/max"] < 1e-5
    assert first["ratio/mean"] == 1
    with torch.no_grad():
        better, worse = (vlm.token_logprobs(batch, temperature=1.0).logprobs - drawn).sum(1)
    assert better > 0 > worse


def test_a_batch_without_any_reward_is_an_error_where_rewards_count(processor: HunYuanVLMoTProcessor) -> None:
    answers = [[completion([1, 2], [3]), completion([1, 2], [4])]]
    groups = learned_groups([Prompt([])], answers, torch.zeros(1, 2), torch.zeros(1, 2).bool())
    with pytest.raises(ValueError, match="no answer of the batch has a reward"):
        rollout_batch(groups, processor.image_processor)
    assert len(rollout_batch(groups, processor.image_processor, rewarded_only=False)) == 2


def test_groups_take_no_more_and_no_fewer_advantages_than_they_have_completions() -> None:
    with pytest.raises(ValueError, match="zip"):
        learned_groups([Prompt([])], [[completion([1, 2], [3]), completion([1, 2], [4])]], torch.zeros(1, 3))


def test_a_batch_learned_in_parts_gives_the_gradients_of_the_whole(processor: HunYuanVLMoTProcessor) -> None:
    lines, weights = [], []
    for rows_at_once in (None, 1, 3):
        torch.manual_seed(0)
        model = vlm_from_policy(make_policy())
        learner = Learner(model, seed=0)
        learner.add("text", CrossEntropy(), Optimiser(lr=1e-3, steps=4))
        lines.append(learner.step("text", chat_batch(chats(), processor), rows_at_once))
        weights.append(torch.cat([value.detach().flatten() for value in model.parameters()]))
    for line, weight in zip(lines[1:], weights[1:], strict=True):
        assert line["text/tokens"] == lines[0]["text/tokens"]
        assert line["loss"] == pytest.approx(lines[0]["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(lines[0]["grad_norm"], rel=1e-4)
        torch.testing.assert_close(weight, weights[0], atol=2e-4, rtol=0)
