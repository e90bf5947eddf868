"""Which bases AHN can augment, as far as their config and modules tell; base_check.py computes the rest."""

from collections.abc import Sequence

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pipeline.errors import UserError

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class UnsupportedModelError(UserError):
    """A base that AHN cannot augment; the message says why."""


def family_of(config: PretrainedConfig) -> str:
    """The base's model_type."""
    return config.model_type.removeprefix("ahn_")


def causal_lm_class(config_class: type[PretrainedConfig]) -> type[PreTrainedModel]:
    """The decoder language model that belongs to a config's class.

    Raises:
        UnsupportedModelError: transformers has none.
    """
    if config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UnsupportedModelError(
            f"{config_class.model_type}: transformers has no decoder language model of this type"
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[config_class]


def sliding_windows(config: PretrainedConfig) -> tuple[int | None, ...]:
    """For each layer the sliding window that the base itself gives it, the current token included; None for full
    attention, which gets a memory.

    Raises:
        UnsupportedModelError: a layer of another kind, or none with full attention.
    """
    name, kinds = family_of(config), getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * config.num_hidden_layers
    others = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if others:
        raise UnsupportedModelError(f"{name}: has layers of type {others}; AHN takes full and sliding attention")
    if "full_attention" not in kinds:
        raise UnsupportedModelError(
            f"{name}: config.json sets sliding_window = {window}, so no layer of the base has full attention to distil "
            f"from; set it to null if the checkpoint was trained with full attention"
        )
    if "sliding_attention" in kinds and not window:
        raise UnsupportedModelError(f"{name}: config.json has sliding_attention layers and no sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def check_config(config: PretrainedConfig) -> None:
    """Refuses what the config alone tells.

    Raises:
        UnsupportedModelError: says why.
    """
    name, quantisation = family_of(config), getattr(config, "quantization_config", None)
    if quantisation is not None:
        get = quantisation.get if isinstance(quantisation, dict) else lambda key: getattr(quantisation, key, None)
        raise UnsupportedModelError(
            f"{name}: its weights are quantised ({get('quant_method') or 'quantization_config in config.json'}); "
            f"distillation needs the logits of the original weights: name the unquantised checkpoint"
        )
    if not isinstance(getattr(config, "hidden_size", None), int):
        raise UnsupportedModelError(
            f"{name}: config.json has no hidden_size of a text decoder (a model of several modalities?); name a "
            f"checkpoint of the language model alone"
        )
    sliding_windows(config)
    rope_types = _rope_types(config) & set(LENGTH_DEPENDENT_ROPE)
    if rope_types:
        raise UnsupportedModelError(
            f"{name}: config.json sets RoPE of type {', '.join(sorted(rope_types))}, whose frequencies depend on the "
            f"length of a forward, which AHN cuts into parts; fixed ones work (default, linear, yarn, llama3)"
        )
    if getattr(config, "attn_logit_softcapping", None):
        raise UnsupportedModelError(
            f"{name}: config.json sets attn_logit_softcapping = {config.attn_logit_softcapping}; AHN's attention has "
            f"no cap on its scores"
        )


def check_supported(model: PreTrainedModel, decoder: nn.Module, config: PretrainedConfig) -> None:
    """Refuses a base that AHN cannot augment; its weights are not looked at.

    Raises:
        UnsupportedModelError: says why.
    """
    name = family_of(config)
    check_config(config)
    if not getattr(type(model), "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{name}: its attention does not go through transformers' attention interface")
    layers = getattr(decoder, "layers", None)
    if layers is None or not all(hasattr(getattr(x, "self_attn", None), "layer_idx") for x in layers):
        raise UnsupportedModelError(f"{name}: expected a decoder with `layers`, each with a `self_attn`")
    if len(layers) != len(sliding_windows(config)):
        raise UnsupportedModelError(f"{name}: has {len(layers)} layers, its config speaks of {config.layer_types}")
    _check_heads(name, [layer.self_attn for layer in layers], config)


def _check_heads(name: str, attentions: Sequence[nn.Module], config: PretrainedConfig) -> None:
    for attention in attentions:
        kind, heads = type(attention).__name__, getattr(config, "num_attention_heads", None)
        if not isinstance(getattr(attention, "head_dim", None), int) or not isinstance(heads, int):
            raise UnsupportedModelError(
                f"{name}: {kind} has no head_dim (latent attention?); a memory needs queries, keys and values of one "
                f"size a head"
            )


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Of all layer types; older configs say `rope_scaling`, and in it `type`."""
    found = set()
    for parameters in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        of_layers = [value for value in (parameters or {}).values() if isinstance(value, dict)]
        for rope in (parameters or {}, *of_layers):
            found |= {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)}
    return found
