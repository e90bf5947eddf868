"""Tells transformers' Auto classes about AHN models of the verified families."""

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)

from pipeline.model.augment import ahn_model_class


def register_ahn_models() -> None:
    """A merged folder then loads with AutoModelForCausalLM."""
    for base in (Qwen2ForCausalLM, Qwen3ForCausalLM, LlamaForCausalLM, MistralForCausalLM):
        model_class = ahn_model_class(base)
        AutoConfig.register(model_class.config_class.model_type, model_class.config_class, exist_ok=True)
        AutoModelForCausalLM.register(model_class.config_class, model_class, exist_ok=True)
