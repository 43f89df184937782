"""The released Mixture-of-Transformers models: the vision-language model and the dual-tower policy around it.

Importing the package registers both with transformers' Auto classes, so that a folder or hub id loads without remote
code.
"""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rl_lab.model.chat import HunYuanVLMoTProcessor
from rl_lab.model.config import HyVLAConfig
from rl_lab.model.policy import HyVLAPolicy
from rl_lab.model.vlm import HunYuanVLMoTForConditionalGeneration
from rl_lab.model.vlm_config import HyVLMConfig


def register() -> None:
    """Register configs, models, tokenizer and processors; twice does no harm."""
    for config in (HyVLMConfig, HyVLAConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoTokenizer.register(config, fast_tokenizer_class=PreTrainedTokenizerFast, exist_ok=True)
    for auto in (AutoModelForImageTextToText, AutoModelForCausalLM):
        auto.register(HyVLMConfig, HunYuanVLMoTForConditionalGeneration, exist_ok=True)
    AutoModel.register(HyVLAConfig, HyVLAPolicy, exist_ok=True)
    AutoProcessor.register(HyVLMConfig, HunYuanVLMoTProcessor, exist_ok=True)


register()
