"""The forward of an AHN model's decoder: masks, documents and caches become a plan, which every layer gets."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache

from pipeline.ahn.base import MemoryCell
from pipeline.attention.window import Document, WindowSpec
from pipeline.model.cache import HippocampusCache
from pipeline.model.fixed_choices import OwnAttention
from pipeline.model.packed_rows import RowArguments, packed_documents
from pipeline.model.plan import DocumentPlan, documents_of_mask
from pipeline.model.prefix import PrefixStore, Recorder
from pipeline.model.sequence_shard import SequenceShard


def window_of(config: PretrainedConfig) -> WindowSpec:
    """The window that a model uses where a call does not say another."""
    return WindowSpec(**{field.name: config.ahn[field.name] for field in fields(WindowSpec)})


class AHNInit(OwnAttention):
    """Initialises memories where transformers finds no weights for them (global RNG, as it does for its own)."""

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MemoryCell):
            parameters = dict(module.named_parameters())
            for name, value in module.initial_values(torch.default_generator).items():
                init.copy_(parameters[name], value)


class AHNDecoder(AHNInit):
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
        record: Recorder | None = None,
        shard: SequenceShard | None = None,
        **kwargs: Any,
    ) -> Any:
        """As the base's forward, and:

        documents: who sees whom in a batch [B, T] without a cache; default: with the config's window, documents as
            position_ids that start again, cu_seq_lens_q and cu_seq_lens_k or seq_idx say (packed_rows.py), else one a
            row, as attention_mask (left or right padding) says. A document with window None gets full attention.
        use_memory: False leaves the memory out: plain sinks + window.
        prefixes: for documents of which the row holds only what comes after their lossless prefix.
        record: takes what it wants of each layer from this forward.
        shard: input_ids and position_ids [1, n] are this rank's part of the one row that `documents` describe.

        Raises:
            ValueError: documents with a cache, a cache of another kind, a mask of another form, arguments that
                contradict each other about where documents begin.
        """
        tokens = input_ids if input_ids is not None else inputs_embeds
        _check_mask(attention_mask)
        may_cache = not (torch.is_grad_enabled() and self._is_trained())
        arguments = RowArguments.take(kwargs)
        if documents is None:
            cached = past_key_values is not None or bool(use_cache and may_cache)
            where = position_ids, attention_mask, tuple(tokens.shape[:2]), window_of(self.config)
            documents = packed_documents(arguments, *where, cached=cached)
        else:
            arguments.refuse_beside_documents()
        use_cache = (self.config.use_cache if use_cache is None else use_cache) and may_cache and documents is None
        if use_cache or past_key_values is not None:
            if documents is not None or not use_memory:
                raise ValueError("`documents` and `use_memory=False` are for forwards without a cache")
            plan = past_key_values = as_hippocampus_cache(past_key_values, self.config)
            position_ids = _positions_in_cache(plan, position_ids, attention_mask, tokens.shape[1])
        else:
            options = {"use_memory": use_memory, "prefixes": prefixes, "record": record, "shard": shard}
            plan = self._plan(documents, tokens, attention_mask, **options)
            position_ids = _positions_of(plan, tokens.device, shard) if position_ids is None else position_ids
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

    def _is_trained(self) -> bool:
        """Whether its memories are in training mode, in which a frozen decoder is not."""
        return any(module.training for module in self.modules() if isinstance(module, MemoryCell))

    def _plan(
        self, documents: Sequence[Document] | None, tokens: Tensor, attention_mask: Tensor | None, **options: Any
    ) -> DocumentPlan:
        documents = self._documents(tokens, attention_mask) if documents is None else documents
        shard: SequenceShard | None = options["shard"]
        size = tokens.shape[:2] if shard is None else (1, shard.num_tokens)
        return DocumentPlan(documents, *size, **options)

    def _documents(self, tokens: Tensor, attention_mask: Tensor | None) -> list[Document]:
        window = window_of(self.config)
        if attention_mask is not None:
            return documents_of_mask(attention_mask, window)
        return [Document(row, 0, tokens.shape[1], window) for row in range(tokens.shape[0])]


def as_hippocampus_cache(cache: Cache | None, config: PretrainedConfig) -> HippocampusCache:
    """The cache, or a new one in place of none or of an empty one of transformers.

    Raises:
        ValueError: one of another kind.
    """
    if isinstance(cache, HippocampusCache):
        return cache
    if cache is not None and not (isinstance(cache, DynamicCache) and cache.get_seq_length() == 0):
        raise ValueError(f"AHN models need a HippocampusCache as past_key_values, found {type(cache).__name__}")
    return HippocampusCache(config, window_of(config))


def _check_mask(attention_mask: Tensor | None) -> None:
    if attention_mask is not None and attention_mask.ndim != 2:
        raise ValueError(f"AHN models take an attention_mask [batch, tokens], found {list(attention_mask.shape)}")


def _positions_in_cache(
    cache: HippocampusCache, position_ids: Tensor | None, attention_mask: Tensor | None, num_tokens: int
) -> Tensor | None:
    """Has the cache know its rows' padding; position_ids [B, T] of padded rows, else as they are given."""
    padding = cache.set_padding(attention_mask, num_tokens)
    is_open = padding is not None and position_ids is None
    return cache.padded_position_ids(padding, num_tokens) if is_open else position_ids


def _positions_of(plan: DocumentPlan, device: torch.device, shard: SequenceShard | None) -> Tensor:
    """position_ids [B, T], or this rank's part of them."""
    position_ids = plan.position_ids(device)
    return position_ids if shard is None else position_ids[:, shard.own]
