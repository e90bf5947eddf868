"""Gives any decoder of transformers a memory per layer, without a forked modeling file.

`ahn_model_class(Base)` makes a subclass of a CausalLM class: each decoder layer with full attention gets a child
`ahn`, each attention module a hook that hands the memory and the layer's hidden states to `hybrid_attention`. Layers
in which the base itself has a sliding window stay as they are. The decoder's forward is decoder.py's. The config class
is the base's with one more field, `ahn` = {"cell", "init", "has_scorer"} and the fields of a WindowSpec, and model_type
"ahn_<base>".

A base is loaded as its own class and becomes an AHN model in place (`augment`), so that whatever transformers keys on
a class or a model type while it reads weights is the base's own. Merged folders are read as AHN classes.
"""

import functools
from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from pipeline.ahn.build import Memory
from pipeline.errors import UserError
from pipeline.model.conversions import adopt_conversions
from pipeline.model.decoder import AHNDecoder, AHNInit, as_hippocampus_cache
from pipeline.model.fixed_choices import OwnAttentionConfig, OwnCache
from pipeline.model.handed_memory import hand_to_attention
from pipeline.model.supported import UnsupportedModelError, check_supported, family_of, sliding_windows

PREFIX = "ahn_"
DEFAULT_AHN = {
    "cell": "gated_delta_net",
    "init": "published",
    "num_sink_tokens": 128,
    "window_size": 32640,
    "num_retained_tokens": 0,
    "decision_interval": 1,
    "has_scorer": False,
}


class _AHNCausalLM(OwnCache, AHNInit):
    """Mixed into the CausalLM: builds the memories, and `generate` gets the right cache."""

    _keep_in_fp32_modules_strict = ["ahn"]  # noqa: RUF012 (transformers' own idiom)
    frozen_modules: tuple[nn.Module, ...] = ()

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        config.ahn = {**DEFAULT_AHN, **(config.ahn or {})}
        check_supported(self, self.get_decoder(), config)
        _attach_memories(self, config)
        self.post_init()

    @staticmethod
    def _finalize_model_loading(model: PreTrainedModel, load_config: Any, loading_info: Any) -> Any:
        """As transformers', but a merged folder without some weights is refused and not filled with random ones."""
        loading_info = PreTrainedModel._finalize_model_loading(model, load_config, loading_info)
        check_complete(loading_info.missing_keys, str(load_config.pretrained_model_name_or_path))
        return loading_info

    def train(self, mode: bool = True) -> Self:
        """As torch's; what `freeze_base` froze stays in eval mode."""
        super().train(mode)
        for module in self.frozen_modules:
            module.training = False
        return self

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            cache = as_hippocampus_cache(model_kwargs["past_key_values"], self.config)
            model_kwargs["past_key_values"] = cache


def check_complete(missing: Iterable[str], path: str) -> None:
    """Refuses weights that do not fill the model: transformers would go on with random ones.

    Raises:
        UserError: names the folder and some of what is missing.
    """
    missing = sorted(missing)
    if missing:
        raise UserError(
            f"--model {path}: its files hold no weights for {len(missing)} of the model's tensors "
            f"({', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}); fetch or export it again"
        )


def augment(model: PreTrainedModel, ahn: dict[str, Any], seed: int) -> PreTrainedModel:
    """Turns a loaded base into its AHN model, in place.

    Args:
        model: of a CausalLM class of transformers.
        ahn: the config's field of that name.
        seed: of the memories' initial values.

    Raises:
        UnsupportedModelError: a base that AHN cannot augment.
    """
    config, model_class = model.config, ahn_model_class(type(model))
    check_supported(model, model.get_decoder(), config)
    submodels = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    if any(module.config is not config for module in submodels):
        raise UnsupportedModelError(f"{family_of(config)}: is made of parts with configs of their own")
    config.__class__, model.__class__ = model_class.config_class, model_class
    config.ahn = {**DEFAULT_AHN, **ahn}
    model._keep_in_fp32_modules_strict = {*(model._keep_in_fp32_modules_strict or ()), "ahn"}
    _attach_memories(model, config)
    initialise_memories(model, seed)
    return model


def initialise_memories(model: PreTrainedModel, seed: int) -> None:
    """Sets every memory to the initial values that the config asks for, a function of (seed, layer) alone."""
    for index, layer in memory_layers(model).items():
        generator = torch.Generator().manual_seed(seed * 100_003 + index)
        parameters = dict(layer.ahn.fn.named_parameters())
        with torch.no_grad():
            values = layer.ahn.fn.initial_values(generator)
            if model.config.ahn["init"] == "long_memory":
                values |= layer.ahn.fn.long_memory_values()
            for name, value in values.items():
                parameters[name].copy_(value)


def memory_layers(model: PreTrainedModel) -> dict[int, nn.Module]:
    """The decoder layers that have a memory, as child `ahn`, by their index; all in a base without sliding layers."""
    return {index: layer for index, layer in enumerate(model.get_decoder().layers) if hasattr(layer, "ahn")}


def _attach_memories(model: PreTrainedModel, config: PretrainedConfig) -> None:
    decoder = model.get_decoder()
    decoder.__class__ = _decoder_class(type(decoder))
    for layer, sliding_window in zip(decoder.layers, sliding_windows(config), strict=True):
        attention, memory = layer.self_attn, None
        if sliding_window is None:
            cell, sizes = config.ahn["cell"], (config.hidden_size, config.num_attention_heads, attention.head_dim)
            num_groups = getattr(attention, "num_key_value_groups", 1)
            num_scored = config.num_attention_heads // num_groups if config.ahn["has_scorer"] else 0
            memory = layer.ahn = Memory(cell, *sizes, num_scored)
        hand_to_attention(memory, sliding_window, attention)


@functools.cache
def _decoder_class(base: type[nn.Module]) -> type[nn.Module]:
    decoder_class = type(f"AHN{base.__name__}", (AHNDecoder, base), {"__module__": __name__})
    adopt_conversions(base.__name__, decoder_class.__name__)
    return decoder_class


@functools.cache
def ahn_model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The AHN subclass of a CausalLM class; its `config_class` is the AHN subclass of the base's."""
    base_config = base.config_class
    config_class = type(
        f"AHN{base_config.__name__}",
        (OwnAttentionConfig, base_config),
        {
            "model_type": f"{PREFIX}{base_config.model_type}",
            "ahn": None,
            "__annotations__": {"ahn": "dict | None"},
            "__module__": __name__,
        },
    )
    adopt_conversions(base_config.model_type, config_class.model_type)
    adopt_conversions(base.__name__, f"AHN{base.__name__}")
    return type(
        f"AHN{base.__name__}",
        (_AHNCausalLM, base),
        {
            "config_class": config_class,
            "config": config_class,
            "__annotations__": {"config": config_class},
            "__module__": __name__,
        },
    )
