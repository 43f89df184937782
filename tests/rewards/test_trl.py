"""`Rewards` inside TRL's own `GRPOTrainer`: one step of a tiny model, rewards, masking and metrics as TRL sees them."""

import pytest
import torch
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM
from trl import GRPOConfig, GRPOTrainer

from rewards.config import RewardConfig
from rewards.rubric import Rewards
from rl_lab.model.tokenizer import load_tokenizer

REPLIES = ["<answer>C</answer>", "<answer>B</answer>", "nothing", "<answer>(c)</answer>"]


def rollout(prompts, trainer):
    """Fixed replies in place of sampling, in turn for each prompt's group."""
    tokenizer = trainer.processing_class
    replies = [REPLIES[number % len(REPLIES)] for number in range(len(prompts))]
    completions = [tokenizer(reply, add_special_tokens=False).input_ids + [tokenizer.eos_token_id] for reply in replies]
    return {
        "prompt_ids": [tokenizer("question").input_ids for _ in prompts],
        "completion_ids": completions,
        "logprobs": [[-1.0] * len(ids) for ids in completions],
    }


def trained(tmp_path, prompt, answer):
    tokenizer = load_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    options = GRPOConfig(
        str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_steps=1,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list([{"prompt": prompt, "answer": answer, "reward_type": "choice"}])
    rewards = Rewards(RewardConfig(weights={"answer": 1, "format": 1}))
    trainer = GRPOTrainer(
        model, rewards, args=options, train_dataset=data, processing_class=tokenizer, rollout_func=rollout
    )
    trainer.train()
    return trainer.state.log_history[0]


@pytest.mark.parametrize("prompt", ["question", [{"role": "user", "content": "question"}]])
def test_trl_trains_on_these_rewards_as_they_are(tmp_path, prompt):
    logs = trained(tmp_path, prompt, "C")
    assert logs["reward"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert logs["rewards/reward/mean"] == logs["reward"]
    assert logs["reward/verifier"] == 0.5
    assert logs["reward/format"] == 0.75


def test_trl_leaves_masked_samples_out(tmp_path):
    logs = trained(tmp_path, "question", "no letter")
    assert logs["reward_masked"] == 1.0
    assert logs["reward_failures/verifier/exception"] == 4.0
    # TRL logs the mean over no sample as None.
    assert logs["reward"] is None
    assert logs["grad_norm"] == 0.0
