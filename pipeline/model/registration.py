"""Tells transformers' Auto classes about the AHN models of any family that it knows."""

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipeline.model.augment import PREFIX, ahn_model_class


def register_ahn_model(model_type: str) -> None:
    """A merged folder whose config.json has this model_type then loads with AutoModelForCausalLM.

    Args:
        model_type: any; what is not "ahn_" and a family with a decoder language model is left alone.
    """
    family = model_type.removeprefix(PREFIX)
    if family == model_type or family not in CONFIG_MAPPING or model_type in CONFIG_MAPPING:
        return
    base_config = CONFIG_MAPPING[family]
    if base_config not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return
    model_class = ahn_model_class(MODEL_FOR_CAUSAL_LM_MAPPING[base_config])
    AutoConfig.register(model_type, model_class.config_class)
    AutoModelForCausalLM.register(model_class.config_class, model_class)
