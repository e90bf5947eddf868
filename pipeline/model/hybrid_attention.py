"""The attention function that transformers calls instead of its own: sinks + window, plus what the memory reads.

transformers' attention modules project, normalise, rotate and update the cache, then call the function registered
under `config._attn_implementation`, then o_proj: this is where the memory's output is added. Two callers, one
mathematics: a whole forward (`DocumentPlan`) and a step with a cache (`HippocampusLayer`).
"""

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from pipeline.ahn.build import Memory
from pipeline.attention.sink_window import sink_window_attention
from pipeline.attention.window import WindowSpec
from pipeline.model.cache import HippocampusCache, HippocampusLayer
from pipeline.model.plan import DocumentPlan

IMPLEMENTATION = "ahn"
BASE_IMPLEMENTATION = "sdpa"


def hybrid_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    ahn_memory: Memory,
    ahn_hidden: Tensor,
    ahn_plan: DocumentPlan | HippocampusCache,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """Attention output plus memory read, [B, T, Hq, D]; query [B, Hq, T, D], key and value [B, Hkv, K, D].

    `ahn_hidden` are the layer's pre-normed hidden states [B, T, hidden], the input of the projections.

    Raises:
        ValueError: the base wants something of attention that sinks + window does not do.
    """
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"{type(module).__name__} passes `{name}` to its attention, which AHN does not support")
    if isinstance(ahn_plan, HippocampusCache):
        layer = ahn_plan.layers[module.layer_idx]
        return _attend_cached(module, query, key, value, scaling, ahn_memory, ahn_hidden, layer), None
    return _attend_documents(module, query, key, value, scaling, ahn_memory, ahn_hidden, ahn_plan), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, hybrid_attention)


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
    memory: Memory,
    hidden: Tensor,
    plan: DocumentPlan,
) -> Tensor:
    if plan.record is not None:
        plan.record.record(module.layer_idx, key, value, hidden)
    parts = _whole_documents(query, key, value, hidden, plan, module.layer_idx)
    outputs = [
        sink_window_attention(q, k, v, span.document.window, scale=scaling)
        if span.num_evicted
        else _base_attention(module, q, k, v, scaling)
        for span, (q, k, v, _) in zip(plan.spans, parts, strict=True)
    ]
    if plan.use_memory:
        reads = _read_documents(memory, parts, plan)
        # cat, not +=: an empty read keeps its parameters in the graph, so all ranks reduce the same gradients
        outputs = [
            torch.cat([o[:, : o.shape[1] - read.shape[1]], o[:, o.shape[1] - read.shape[1] :] + read], 1)
            for o, read in zip(outputs, reads, strict=True)
        ]
    return _place(outputs, plan)


def _whole_documents(
    query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, plan: DocumentPlan, layer: int
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Each span's queries, and its keys, values and hidden states from the document's first token on."""
    parts = [(s.take(query, 2), s.take(key, 2), s.take(value, 2), s.take(hidden, 1)) for s in plan.spans]
    if plan.prefixes is None:
        return parts
    return [
        (q, torch.cat([p.keys, k], 2), torch.cat([p.values, v], 2), torch.cat([p.hidden, h], 1))
        for (q, k, v, h), p in zip(parts, plan.prefixes.of_layer(layer), strict=True)
    ]


def _read_documents(
    memory: Memory, parts: list[tuple[Tensor, Tensor, Tensor, Tensor]], plan: DocumentPlan
) -> list[Tensor]:
    """What each span's last `num_evicted` queries read, in their dtype; one call of the cell for all spans."""
    inputs = [
        (
            q.transpose(1, 2)[:, q.shape[2] - span.num_evicted :],
            span.evicted(k.transpose(1, 2)),
            span.evicted(v.transpose(1, 2)),
            span.evicted(hidden),
            hidden[:, hidden.shape[1] - span.num_evicted :],
        )
        for span, (q, k, v, hidden) in zip(plan.spans, parts, strict=True)
    ]
    together = inputs[0] if len(inputs) == 1 else [torch.cat(x, 1) for x in zip(*inputs, strict=True)]
    query = parts[0][0]
    read = memory.fn(*together, cu_seqlens=plan.cu_seqlens(query.device)).to(query.dtype)
    return list(read.split([span.num_evicted for span in plan.spans], 1))


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
    memory: Memory,
    hidden: Tensor,
    layer: HippocampusLayer,
) -> Tensor:
    """A step with a cache; k and v [B, Hkv, K, D] hold the window and the new tokens."""
    window, num_columns = layer.window, k.shape[2]
    gates = layer.push_gates(memory.fn.write_gates(hidden))
    if layer.padding is None and layer.num_seen <= window.lossless_budget:
        return _attend_all(module, q, k, v, scaling, layer)
    first_position = layer.first_position(num_columns)
    output = sink_window_attention(
        q, k, v, window, scale=scaling, first_position=first_position, sink_k=layer.sink_keys,
        sink_v=layer.sink_values,
    )  # fmt: skip
    num_leaving = num_columns - window.window_size
    if num_leaving <= 0:
        return output
    gates = _silence_non_writes({n: g[:, :num_leaving] for n, g in gates.items()}, window, first_position)
    read, layer.state = memory.fn.read(
        q[:, :, -num_leaving:].transpose(1, 2),
        k[:, :, :num_leaving].transpose(1, 2),
        v[:, :, :num_leaving].transpose(1, 2),
        gates,
        hidden[:, -num_leaving:],
        initial_state=layer.state,
        output_final_state=True,
    )
    output = torch.cat([output[:, :-num_leaving], output[:, -num_leaving:] + read.to(output.dtype)], 1)
    return output


def _attend_all(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, scaling: float, layer: HippocampusLayer) -> Tensor:
    """Within the budget, unpadded: sinks that left the window and the window are all tokens, in order."""
    num_left = layer.num_seen - k.shape[2]
    if num_left:
        k = torch.cat([layer.sink_keys[:, :, :num_left], k], 2)
        v = torch.cat([layer.sink_values[:, :, :num_left], v], 2)
    num_queries, num_keys = q.shape[2], k.shape[2]
    mask = None
    if 1 < num_queries < num_keys:
        query = torch.arange(num_keys - num_queries, num_keys, device=q.device)
        mask = (torch.arange(num_keys, device=q.device) <= query[:, None])[None, None]
        mask = mask.expand(q.shape[0], -1, -1, -1)
    return _base_attention(module, q, k, v, scaling, mask)


def _silence_non_writes(
    gates: dict[str, Tensor], window: WindowSpec, first_position: Tensor | None
) -> dict[str, Tensor]:
    """Zeroes the write gates of columns that are padding or sinks: such a column changes nothing in the memory."""
    num_leaving = next(iter(gates.values())).shape[1]
    position = torch.arange(num_leaving, device=next(iter(gates.values())).device)[None]
    if first_position is not None:
        position = position + first_position[:, None]
    is_write = (position >= window.num_sink_tokens)[..., None]
    return {name: torch.where(is_write, gate, 0.0) for name, gate in gates.items()}
