"""vLLM's entry point (`vllm.general_plugins`): makes `vllm.LLM(DIR)` and `vllm serve DIR` know the lab's checkpoints.

vLLM calls `register` in every one of its processes, maybe more than once. Nothing heavy is imported here: the model is
named by a string, which vLLM resolves when it makes one.
"""

from __future__ import annotations

MODEL = "rl_lab.model.serving.model:ServedVLM"
ARCHITECTURES = {"HunYuanVLMoTForConditionalGeneration": "hunyuan_vl_mot", "HyVLAPolicy": "hy_vla"}
"""`architectures` of a checkpoint's config.json and its `model_type`; of a policy the language side is served."""


def register() -> None:
    """Register both configs with transformers, and model, settings and sizes with vLLM."""
    from transformers import AutoConfig
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from rl_lab.model.config import HyVLAConfig
    from rl_lab.model.serving.processor import MoTSettings, MoTSizes
    from rl_lab.model.vlm_config import HyVLMConfig

    for config in (HyVLMConfig, HyVLAConfig):
        AutoConfig.register(config.model_type, config, exist_ok=True)
    for architecture, model_type in ARCHITECTURES.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, MODEL)
        MODELS_CONFIG_MAP[architecture] = MoTSettings
        MODEL_ARCH_CONFIG_CONVERTORS[model_type] = MoTSizes
