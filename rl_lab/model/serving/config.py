"""How vLLM must be set up for this model, and what it must know of the config.

vLLM reads two things before it makes a model: the sizes of the language tower, from the config, and a hook by
architecture, which may change the engine's settings. The hook makes plain `vllm.LLM(DIR)` and `vllm serve DIR` right
without any option; `check_engine` refuses, when the model is made, settings that would give wrong numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from rl_lab.model.tokenizer import load_tokenizer, special_token_ids
from rl_lab.model.vlm_config import HyVLMTextConfig

SCHEDULER = "rl_lab.model.serving.scheduler.SegmentScheduler"


class MoTSizes(ModelArchConfigConvertorBase):
    """Sizes of the language tower of either config; images are bidirectional ranges ("mm prefix") to the engine."""

    def __init__(
        self, hf_config: PretrainedConfig, hf_text_config: PretrainedConfig, revision: str | None = None
    ) -> None:
        nested = getattr(hf_config, "vlm_config_dict", None)
        text = HyVLMTextConfig(**(nested.get("text_config") or nested)) if nested else hf_text_config
        super().__init__(hf_config, text, revision)

    def is_mm_prefix_lm(self, supports_multimodal: bool = True) -> bool:
        """True unless the engine takes text alone: the attention needs to be told where images are."""
        return supports_multimodal


class MoTSettings(VerifyAndUpdateConfig):
    """The hook: no step cuts an image, and no graph is captured (tokens of each kind differ from step to step)."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what the model needs; what the user chose otherwise is overruled."""
        scheduler = vllm_config.scheduler_config
        scheduler.scheduler_cls = SCHEDULER
        scheduler.async_scheduling = False
        scheduler.disable_chunked_mm_input = True
        longest = vllm_config.model_config.max_model_len
        scheduler.max_num_batched_tokens = max(scheduler.max_num_batched_tokens, longest)
        scheduler.max_num_encoder_input_tokens = max(scheduler.max_num_encoder_input_tokens, longest)
        scheduler.encoder_cache_size = max(scheduler.encoder_cache_size, longest)

    @staticmethod
    def verify_and_update_model_config(model_config: ModelConfig) -> None:
        """Run eagerly."""
        model_config.enforce_eager = True


def check_engine(vllm_config: VllmConfig) -> None:
    """ValueError, naming the setting, for an engine that would cut images, ignore a request, or capture graphs."""
    scheduler, parallel = vllm_config.scheduler_config, vllm_config.parallel_config
    longest = vllm_config.model_config.max_model_len
    problems = {
        f"scheduler_cls is {scheduler.scheduler_cls}; this model needs {SCHEDULER}": (
            scheduler.scheduler_cls != SCHEDULER
        ),
        f"max_num_batched_tokens {scheduler.max_num_batched_tokens} is below max_model_len {longest}; an image would "
        "not fit a step, so raise the one or lower the other": scheduler.max_num_batched_tokens < longest,
        "enforce_eager is off; this model routes tokens by their kind, so add --enforce-eager": (
            not vllm_config.model_config.enforce_eager
        ),
        f"tensor_parallel_size {parallel.tensor_parallel_size} and pipeline_parallel_size "
        f"{parallel.pipeline_parallel_size} must be 1; use data parallel replicas": parallel.world_size != 1,
        f"quantization {vllm_config.model_config.quantization} is not implemented for this model; leave it out": (
            vllm_config.model_config.quantization is not None
        ),
        "a KV connector may cut images; leave out kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "speculative decoding is not implemented for this model; leave out speculative_config": (
            vllm_config.speculative_config is not None
        ),
    }
    for message, wrong in problems.items():
        if wrong:
            raise ValueError(message)


def token_ids(model_config: ModelConfig) -> dict[str, int]:
    """Ids of the special tokens by role: those of the config, else looked up in the folder's tokenizer."""
    config: Any = model_config.hf_config
    return config.special_token_ids or special_token_ids(load_tokenizer(Path(model_config.model)))
