"""How vLLM must be set up for this model, and what it must know of the config.

vLLM reads two things before it makes a model: the sizes of the language tower, from the config, and a hook by
architecture, which may change the engine's settings. The hook makes plain `vllm.LLM(DIR)` and `vllm serve DIR` right
without any option; `check_engine` refuses, when the model is made, settings that would give wrong numbers.
"""

from __future__ import annotations

from transformers import PretrainedConfig
from vllm.config import ModelConfig, VllmConfig
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from rl_lab.model.config import HyVLAConfig
from rl_lab.model.loading import checkpoint_folder
from rl_lab.model.vlm_config import HyVLMConfig, HyVLMTextConfig
from rl_lab.model.vlm_loading import complete_vlm_config
from rl_lab.model.weights import checkpoint_shapes

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
    """The hook: a prompt is computed in one step, so that none cuts an image, and no graph is captured, because the
    numbers of patches and of text tokens differ from step to step."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Set what the model needs; what the user chose otherwise is overruled."""
        scheduler = vllm_config.scheduler_config
        scheduler.scheduler_cls = SCHEDULER
        scheduler.async_scheduling = False
        scheduler.enable_chunked_prefill = False
        scheduler.long_prefill_token_threshold = 0
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
        "chunked prefill may cut images; leave out --enable-chunked-prefill and --long-prefill-token-threshold": (
            scheduler.enable_chunked_prefill or scheduler.long_prefill_token_threshold > 0
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


def served_config(model_config: ModelConfig) -> HyVLMConfig | HyVLAConfig:
    """The checkpoint's config; a VLM's is completed from tensor shapes and tokenizer, as it is for training.

    ValueError for a checkpoint that is neither a VLM nor a policy.
    """
    config = model_config.hf_config
    if isinstance(config, HyVLAConfig):
        return config
    if not isinstance(config, HyVLMConfig):
        raise ValueError(f"{model_config.model} is a {config.model_type}, neither a VLM nor a policy of the lab")
    folder = checkpoint_folder(model_config.model, {"revision": model_config.revision})
    return complete_vlm_config(config, checkpoint_shapes(folder), folder)
