"""Gives any decoder of transformers a memory per layer, without a forked modeling file.

`ahn_model_class(Base)` makes a subclass of a CausalLM class: each decoder layer gets a child `ahn`, each attention
module a hook that hands the memory and the layer's hidden states to `hybrid_attention`. Its config class is the
base's with one more field, `ahn` = {"cell", "init", "num_sink_tokens", "window_size"}, and model_type "ahn_<base>".
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache

from pipeline.ahn.base import MemoryCell
from pipeline.ahn.build import Memory
from pipeline.attention.window import Document, WindowSpec
from pipeline.errors import UserError
from pipeline.model.cache import HippocampusCache
from pipeline.model.hybrid_attention import IMPLEMENTATION
from pipeline.model.plan import DocumentPlan, documents_of_mask
from pipeline.model.prefix import PrefixStore
from pipeline.model.sequence_shard import SequenceShard

LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")
DEFAULT_AHN = {"cell": "gated_delta_net", "init": "published", "num_sink_tokens": 128, "window_size": 32640}


class UnsupportedModelError(UserError):
    """A base that AHN cannot augment; the message says why."""


def window_of(config: PretrainedConfig) -> WindowSpec:
    """The window that a model uses where a call does not say another."""
    return WindowSpec(config.ahn["num_sink_tokens"], config.ahn["window_size"])


class _AHNInit:
    """Initialises memories where transformers finds no weights for them (global RNG, as it does for its own)."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemoryCell):
            parameters = dict(module.named_parameters())
            for name, value in module.initial_values(torch.default_generator).items():
                init.copy_(parameters[name], value)


class _AHNDecoder(_AHNInit):
    """Mixed into the inner decoder: turns masks, documents and caches into a plan for the layers."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        documents: Sequence[Document] | None = None,
        use_memory: bool = True,
        prefixes: PrefixStore | None = None,
        record: PrefixStore | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's forward, and:

        documents: who sees whom in a batch [B, T] without a cache; default: one document a row, as attention_mask
            (left or right padding) says, with the config's window. A document with window None gets full attention.
        use_memory: False leaves the memory out: plain sinks + window.
        prefixes: for documents of which the row holds only what comes after their lossless prefix.
        record: takes the prefixes of its documents from this forward.
        shard: input_ids and position_ids [1, n] are this rank's part of the one row that `documents` describe.

        Raises:
            ValueError: documents with a cache, a cache of another kind, a mask of another form.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        if attention_mask is not None and attention_mask.ndim != 2:
            raise ValueError(f"AHN models take an attention_mask [batch, tokens], found {list(attention_mask.shape)}")
        use_cache = self.config.use_cache if use_cache is None else use_cache
        use_cache = use_cache and documents is None and not (self.training and torch.is_grad_enabled())
        if use_cache or past_key_values is not None:
            if documents is not None or not use_memory:
                raise ValueError("`documents` and `use_memory=False` are for forwards without a cache")
            plan = past_key_values = _as_hippocampus_cache(past_key_values, self.config)
            padding = plan.set_padding(attention_mask, tokens.shape[1])
            if padding is not None and position_ids is None:
                first = plan.get_seq_length()
                columns = torch.arange(first, first + tokens.shape[1], device=tokens.device)
                position_ids = (columns - padding[:, None]).clamp(min=0)
        else:
            documents = self._documents(tokens, attention_mask) if documents is None else documents
            size = tokens.shape[:2] if shard is None else (1, shard.num_tokens)
            options = {"use_memory": use_memory, "prefixes": prefixes, "record": record, "shard": shard}
            plan = DocumentPlan(documents, *size, **options)
            if position_ids is None:
                position_ids = plan.position_ids(tokens.device)
                position_ids = position_ids if shard is None else position_ids[:, shard.own]
        return super().forward(
            input_ids=input_ids,
            attention_mask=None,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            ahn_plan=plan,
            **kwargs,
        )

    def _documents(self, tokens: Tensor, attention_mask: Tensor | None) -> list[Document]:
        window = window_of(self.config)
        if attention_mask is not None:
            return documents_of_mask(attention_mask, window)
        return [Document(row, 0, tokens.shape[1], window) for row in range(tokens.shape[0])]


def _as_hippocampus_cache(cache: Cache | None, config: PretrainedConfig) -> HippocampusCache:
    if isinstance(cache, HippocampusCache):
        return cache
    if cache is not None and not (isinstance(cache, DynamicCache) and cache.get_seq_length() == 0):
        raise ValueError(f"AHN models need a HippocampusCache as past_key_values, found {type(cache).__name__}")
    return HippocampusCache(config.num_hidden_layers, window_of(config))


class _AHNCausalLM(_AHNInit):
    """Mixed into the CausalLM: builds the memories, and `generate` gets the right cache."""

    _keep_in_fp32_modules_strict = ["ahn"]  # noqa: RUF012 (transformers' own idiom)

    def __init__(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        config.ahn = {**DEFAULT_AHN, **(config.ahn or {})}
        _attach_memories(self, config)
        self.post_init()

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("past_key_values") is not None:
            cache = _as_hippocampus_cache(model_kwargs["past_key_values"], self.config)
            model_kwargs["past_key_values"] = cache


def _attach_memories(model: PreTrainedModel, config: PretrainedConfig) -> None:
    decoder = model.get_decoder()
    check_supported(model, decoder, config)
    decoder.__class__ = _decoder_class(type(decoder))
    for layer in decoder.layers:
        attention = layer.self_attn
        layer.ahn = Memory(config.ahn["cell"], config.hidden_size, config.num_attention_heads, attention.head_dim)
        attention.register_forward_pre_hook(functools.partial(_hand_over, layer.ahn), with_kwargs=True)
    config._attn_implementation = IMPLEMENTATION


def _hand_over(
    memory: Memory, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    hidden_states = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return args, {**kwargs, "ahn_memory": memory, "ahn_hidden": hidden_states}


def check_supported(model: PreTrainedModel, decoder: nn.Module, config: PretrainedConfig) -> None:
    """Refuses a base that AHN cannot augment; its weights are not looked at.

    Raises:
        UnsupportedModelError: says why.
    """
    name = config.model_type.removeprefix("ahn_")
    if not getattr(type(model), "_supports_attention_backend", False):
        raise UnsupportedModelError(f"{name}: its attention does not go through transformers' attention interface")
    layers = getattr(decoder, "layers", None)
    if layers is None or not all(hasattr(getattr(x, "self_attn", None), "layer_idx") for x in layers):
        raise UnsupportedModelError(f"{name}: expected a decoder with `layers`, each with a `self_attn`")
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"]) - {"full_attention"}
    if kinds:
        raise UnsupportedModelError(f"{name}: has layers of type {sorted(kinds)}; AHN needs full_attention in all")
    rope_types = _rope_types(config) & set(LENGTH_DEPENDENT_ROPE)
    if rope_types:
        raise UnsupportedModelError(
            f"{name}: config.json sets RoPE of type {', '.join(sorted(rope_types))}, whose frequencies depend on the "
            f"length of a forward, which AHN cuts into parts; fixed ones work (default, linear, yarn, llama3)"
        )
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise UnsupportedModelError(
            f"{name}: config.json sets sliding_window = {config.sliding_window}, so the base has no full attention "
            f"to distil from; set it to null if the checkpoint was trained with full attention"
        )


def _rope_types(config: PretrainedConfig) -> set[str]:
    """Of all layer types; older configs say `rope_scaling`, and in it `type`."""
    found = set()
    for parameters in (getattr(config, "rope_parameters", None), getattr(config, "rope_scaling", None)):
        of_layers = [value for value in (parameters or {}).values() if isinstance(value, dict)]
        for rope in (parameters or {}, *of_layers):
            found |= {rope[key] for key in ("rope_type", "type") if isinstance(rope.get(key), str)}
    return found


@functools.cache
def _decoder_class(base: type[nn.Module]) -> type[nn.Module]:
    return type(f"AHN{base.__name__}", (_AHNDecoder, base), {"__module__": __name__})


@functools.cache
def ahn_model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The AHN subclass of a CausalLM class; its `config_class` is the AHN subclass of the base's."""
    base_config = base.config_class
    config_class = type(
        f"AHN{base_config.__name__}",
        (base_config,),
        {
            "model_type": f"ahn_{base_config.model_type}",
            "ahn": None,
            "__annotations__": {"ahn": "dict | None"},
            "__module__": __name__,
        },
    )
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
