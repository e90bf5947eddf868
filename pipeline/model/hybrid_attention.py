"""The attention function that transformers calls instead of its own: sinks + window, plus what the memory reads.

transformers' attention modules project, normalise, rotate and update the cache, then call the function registered
under `config._attn_implementation`, then o_proj: this is where the memory's output is added. Three callers, one
mathematics: a whole forward (`DocumentPlan`), one of which each rank has some tokens (halo_attention.py), and a step
with a cache (`HippocampusLayer`).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.ahn.base import Gates
from pipeline.ahn.build import Memory
from pipeline.attention.retained_attention import retained_attention
from pipeline.attention.sink_window import sink_window_attention
from pipeline.attention.window import WindowSpec
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_layer import HippocampusLayer
from pipeline.model.compressive_attention import attend_compressive
from pipeline.model.compressive_cache import CompressiveLayer
from pipeline.model.gate_exchange import GateExchange
from pipeline.model.halo_attention import attend_with_halo
from pipeline.model.handed_memory import HandedMemory, own_parameters
from pipeline.model.plan import DocumentPlan
from pipeline.model.prefix import Prefix
from pipeline.model.retained_cache import RetainedLayer
from pipeline.model.retained_documents import Parts, drop_orders, dropped, write_order
from pipeline.model.retained_steps import attend_retained

IMPLEMENTATION = "ahn"
BASE_IMPLEMENTATION = "sdpa"
DENSE_MASK_TOKENS = 4096


def hybrid_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    ahn_memory: HandedMemory,
    ahn_hidden: Tensor,
    ahn_plan: DocumentPlan | HippocampusCache,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output plus memory read, [B, T, Hq, D]; query [B, Hq, T, D], key and value [B, Hkv, K, D].

    `ahn_hidden` are the layer's pre-normed hidden states [B, T, hidden], the input of the projections. A layer has
    either a memory or a sliding window, the base's own.

    Raises:
        ValueError: the base wants something of attention that sinks + window does not do.
    """
    memory, sliding_window = ahn_memory.take()
    check_plain(module, kwargs, sliding_window)
    if isinstance(ahn_plan, HippocampusCache):
        layer = ahn_plan.layers[module.layer_idx]
        with own_parameters(None if memory is None else memory.fn):
            return _attend_cached(module, query, key, value, scaling, memory, ahn_hidden, layer), None
    if ahn_plan.shard is not None and ahn_plan.shard.keeps_tokens:
        assert memory is not None, "halo mode is refused for bases with sliding layers"
        return attend_with_halo(query, key, value, scaling, memory, ahn_hidden, ahn_plan), None
    layer = memory, sliding_window
    return _attend_documents(module, query, key, value, scaling, *layer, ahn_hidden, ahn_plan), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, hybrid_attention)


def check_plain(module: nn.Module, kwargs: Mapping[str, object], sliding_window: int | None) -> None:
    """Refuses what a base passes to its attention if it is more than queries, keys and values ask for.

    Args:
        sliding_window: that its config gives the layer.

    Raises:
        ValueError: names it.
    """
    if kwargs.get("sliding_window", sliding_window) != sliding_window:
        raise ValueError(
            f"{type(module).__name__} has a sliding window of {kwargs['sliding_window']} tokens where the base's "
            f"config says {sliding_window}"
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} passes `{name}` to its attention, which AHN does not support")


def _base_attention(
    module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float, mask: Tensor | None = None
) -> Tensor:
    """The base's own kernel, called as the base calls it: equal to the last bit."""
    return ALL_ATTENTION_FUNCTIONS[BASE_IMPLEMENTATION](module, q, k, v, mask, scaling=scaling)[0]


def _attend_documents(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float,
    memory: Memory | None,
    sliding_window: int | None,
    hidden: Tensor,
    plan: DocumentPlan,
) -> Tensor:
    if plan.shard is not None:
        query, key, value = plan.shard.to_heads(query, key, value)
    if plan.record is not None:
        plan.record.record(module.layer_idx, query, key, value, hidden, scaling)
    prefixes = None if plan.prefixes is None else plan.prefixes.of_layer(module.layer_idx)
    parts = _whole_documents(query, key, value, plan, prefixes)
    written = _written_hidden(hidden, plan, prefixes)
    orders = drop_orders(memory, parts, written, plan, prefixes, scaling)
    outputs = [
        attend_sliding(module, q, k, v, scaling, sliding_window)
        if sliding_window is not None
        else _base_attention(module, q, k, v, scaling)
        if not span.num_evicted
        else sink_window_attention(q, k, v, span.document.window, scale=scaling)
        if order is None
        else retained_attention(q, k, v, span.document.window, order, scale=scaling)
        for span, (q, k, v), order in zip(plan.spans, parts, orders, strict=True)
    ]
    if memory is not None and plan.use_memory:
        reads = _read_documents(memory, parts, orders, hidden, written, plan)
        # cat, not +=: an empty read keeps its parameters in the graph, so all ranks reduce the same gradients
        outputs = [
            torch.cat([o[:, : o.shape[1] - read.shape[1]], o[:, o.shape[1] - read.shape[1] :] + read], 1)
            for o, read in zip(outputs, reads, strict=True)
        ]
    output = _place(outputs, plan)
    return output if plan.shard is None else plan.shard.to_tokens(output)


def attend_sliding(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float, sliding_window: int) -> Tensor:
    """The last tokens of a document [B, Hkv, K, D] in a layer that the base itself gives a sliding window.

    Short documents as the base computes them, with its dense mask: equal to the last bit. Others in linear time.
    """
    num_tokens = k.shape[2]
    is_whole = q.shape[2] == num_tokens
    if is_whole and num_tokens <= sliding_window:
        return _base_attention(module, q, k, v, scaling)
    if is_whole and num_tokens <= DENSE_MASK_TOKENS:
        position = torch.arange(num_tokens, device=q.device)
        ago = position[:, None] - position
        mask = ((ago >= 0) & (ago < sliding_window)).expand(q.shape[0], 1, -1, -1)
        return _base_attention(module, q, k, v, scaling, mask)
    return sink_window_attention(q, k, v, WindowSpec(0, sliding_window), scale=scaling)


def _whole_documents(
    query: Tensor, key: Tensor, value: Tensor, plan: DocumentPlan, prefixes: list[Prefix] | None
) -> Parts:
    """Each span's queries, and its keys and values from the document's first token on."""
    parts = [(s.take(query, 2), s.take(key, 2), s.take(value, 2)) for s in plan.spans]
    if prefixes is None:
        return parts
    return [
        (q, torch.cat([p.keys, k], 2), torch.cat([p.values, v], 2))
        for (q, k, v), p in zip(parts, prefixes, strict=True)
    ]


def _read_documents(
    memory: Memory,
    parts: Parts,
    orders: list[Tensor | None],
    hidden: Tensor,
    written: Tensor,
    plan: DocumentPlan,
) -> list[Tensor]:
    """What each span's last `num_evicted` queries read, in their dtype; one call of the cell for all spans."""
    inputs = [
        (span.reading(q.transpose(1, 2)), dropped(span, k, order), dropped(span, v, order))
        for span, (q, k, v), order in zip(plan.spans, parts, orders, strict=True)
    ]
    q, k, v = map(_together, zip(*inputs, strict=True))
    exchange, reading = None if plan.shard is None else GateExchange(plan), hidden
    if exchange is None:
        reading = _together([span.reading(span.take(hidden, 1)) for span in plan.spans])
    options = {"cu_seqlens": plan.cu_seqlens(q.device), "write_order": write_order(orders, plan)}
    read = memory.fn(q, k, v, written, reading, exchange=exchange, **options).to(q.dtype)
    return list(read.split([span.num_evicted for span in plan.spans], 1))


def _written_hidden(hidden: Tensor, plan: DocumentPlan, prefixes: list[Prefix] | None) -> Tensor:
    """Hidden states of the tokens that may be compressed, [rows, N, hidden]; of a row that ranks share, of this rank's
    tokens, prefixes first."""
    before = [] if prefixes is None else [p.hidden for p in prefixes]
    if plan.shard is not None:
        return _together([*before, hidden])
    wholes = [span.take(hidden, 1) for span in plan.spans]
    if prefixes is not None:
        wholes = [torch.cat(whole, 1) for whole in zip(before, wholes, strict=True)]
    return _together([span.candidates(whole) for span, whole in zip(plan.spans, wholes, strict=True)])


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _place(outputs: list[Tensor], plan: DocumentPlan) -> Tensor:
    """Puts the spans' outputs where they belong in [B, T, Hq, D], zeros where there is no document."""
    first = plan.spans[0]
    if len(outputs) == 1 and (first.num_rows, first.document.length) == (plan.batch_size, plan.length):
        return outputs[0]
    rows: list[list[Tensor]] = [[] for _ in range(plan.batch_size)]
    filled = [0] * plan.batch_size
    blank = outputs[0].new_zeros(1, plan.length, *outputs[0].shape[2:])
    for output, document in zip(outputs, plan.documents, strict=True):
        rows[document.row] += [blank[:, filled[document.row] : document.start], output]
        filled[document.row] = document.end
    return torch.cat([torch.cat([*row, blank[:, end:]], 1) for row, end in zip(rows, filled, strict=True)])


def _attend_cached(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    memory: Memory | None,
    hidden: Tensor,
    layer: HippocampusLayer,
) -> Tensor:
    """A step with a cache: k and v [B, Hkv, T, D] hold the new tokens. Without a memory the layer's mode is `off`."""
    if isinstance(layer, CompressiveLayer):
        return attend_compressive(q, k, v, scaling, layer)
    if isinstance(layer, RetainedLayer):

        def base_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return _base_attention(module, q, k, v, scaling, mask)

        return attend_retained(q, k, v, hidden, memory, layer, scaling, base_attention)
    gates = {} if layer.memory == "off" else memory.fn.write_gates(hidden)
    num_new = q.shape[2]
    if layer.padding is None and layer.num_seen + num_new <= layer.window.lossless_budget:
        layer.write(k, v, gates)
        return _attend_within_budget(module, q, scaling, layer)
    if num_new == 1:
        return _decode(module, q, k, v, scaling, memory, hidden, gates, layer)
    return _prefill(q, k, v, scaling, memory, hidden, gates, layer)


def _attend_within_budget(module: nn.Module, q: Tensor, scaling: float, layer: HippocampusLayer) -> Tensor:
    """Unpadded, nothing evicted: the buffer holds all tokens in order, and the base's kernel runs as the base's."""
    k, v = layer.keys[:, :, : layer.num_seen], layer.values[:, :, : layer.num_seen]
    num_queries, num_keys = q.shape[2], k.shape[2]
    mask = None
    if 1 < num_queries < num_keys:
        query = torch.arange(num_keys - num_queries, num_keys, device=q.device)
        mask = (torch.arange(num_keys, device=q.device) <= query[:, None])[None, None]
        mask = mask.expand(q.shape[0], -1, -1, -1)
    return _base_attention(module, q, k, v, scaling, mask)


def _decode(
    module: nn.Module,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    memory: Memory,
    hidden: Tensor,
    gates: Gates,
    layer: HippocampusLayer,
) -> Tensor:
    """One token: it takes the slot of the one that it evicts, and attends to the buffer as it lies."""
    evicting = layer.num_seen >= layer.window.lossless_budget
    evicted = layer.take_evicted() if evicting and layer.memory != "off" else None
    layer.write(k, v, gates)
    output = _base_attention(module, q, layer.keys, layer.values, scaling, layer.slot_mask())
    if evicted is None:
        return output
    old_keys, old_values, old_gates, position = evicted
    read, layer.state = memory.fn.read(
        q.transpose(1, 2),
        old_keys.transpose(1, 2),
        old_values.transpose(1, 2),
        _silence_non_writes(old_gates, layer, position),
        hidden,
        initial_state=layer.state,
        output_final_state=True,
    )
    return output + read.to(output.dtype)


def _prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float,
    memory: Memory,
    hidden: Tensor,
    gates: Gates,
    layer: HippocampusLayer,
) -> Tensor:
    """Many tokens: the window's columns and the new ones, in order of time."""
    window = layer.window
    old_k, old_v, old_gates, num_old = layer.window_columns()
    first = layer.num_seen - num_old
    layer.write(k, v, gates)
    k, v = torch.cat([old_k, k], 2), torch.cat([old_v, v], 2)
    num_columns = k.shape[2]
    positions = layer.positions(first, first + num_columns)
    output = sink_window_attention(
        q,
        k,
        v,
        window,
        scale=scaling,
        first_position=positions[:, 0],
        sink_k=layer.keys[:, :, : window.num_sink_tokens],
        sink_v=layer.values[:, :, : window.num_sink_tokens],
    )
    num_leaving = num_columns - window.window_size
    if num_leaving <= 0 or layer.memory == "off":
        return output
    leaving = {n: torch.cat([old_gates[n], g], 1)[:, :num_leaving] if num_old else g[:, :num_leaving]
               for n, g in gates.items()}  # fmt: skip
    read, layer.state = memory.fn.read(
        q[:, :, -num_leaving:].transpose(1, 2),
        k[:, :, :num_leaving].transpose(1, 2),
        v[:, :, :num_leaving].transpose(1, 2),
        _silence_non_writes(leaving, layer, positions[:, :num_leaving]),
        hidden[:, -num_leaving:],
        initial_state=layer.state,
        output_final_state=True,
    )
    return torch.cat([output[:, :-num_leaving], output[:, -num_leaving:] + read.to(output.dtype)], 1)


def _silence_non_writes(gates: Gates, layer: HippocampusLayer, positions: Tensor) -> Gates:
    """Zeroes the write gates of columns that are padding or sinks: such a column changes nothing in the memory."""
    is_write = ((positions >= layer.window.num_sink_tokens) & (layer.memory == "on"))[..., None]
    return {name: torch.where(is_write, gate, 0.0) for name, gate in gates.items()}
