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
from pipeline.model.plan import DocumentPlan, Span

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
    outputs = []
    for span in plan.spans:
        q, k, v = (x[span.rows(), :, span.start : span.end] for x in (query, key, value))
        if span.num_evicted:
            outputs.append(sink_window_attention(q, k, v, span.window, scale=scaling))
        else:
            outputs.append(_base_attention(module, q, k, v, scaling))
    if plan.use_memory:
        reads = _read_documents(memory, query, key, value, hidden, plan)
        # cat, not +=: an empty read keeps its parameters in the graph, so all ranks reduce the same gradients
        outputs = [
            torch.cat([o[:, : span.length - span.num_evicted], o[:, span.length - span.num_evicted :] + read], 1)
            for o, span, read in zip(outputs, plan.spans, reads, strict=True)
        ]
    return _place(outputs, plan)


def _read_documents(
    memory: Memory, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, plan: DocumentPlan
) -> list[Tensor]:
    """What each span's last `num_evicted` queries read, in query's dtype; one call of the cell for all spans."""

    def reading(x: Tensor, span: Span) -> Tensor:
        return x[span.rows(), span.end - span.num_evicted : span.end]

    def evicted(x: Tensor, span: Span) -> Tensor:
        start = span.start + span.num_sink_tokens
        return x[span.rows(), start : start + span.num_evicted]

    q, k, v = (x.transpose(1, 2) for x in (query, key, value))  # [B, T, H, D]
    picked = ((q, reading), (k, evicted), (v, evicted), (hidden, evicted), (hidden, reading))
    inputs = [torch.cat([pick(x, span) for span in plan.spans], 1) for x, pick in picked]
    read = memory.fn(*inputs, cu_seqlens=plan.cu_seqlens(query.device)).to(query.dtype)
    return list(read.split([span.num_evicted for span in plan.spans], 1))


def _place(outputs: list[Tensor], plan: DocumentPlan) -> Tensor:
    """Puts the spans' outputs where they belong in [B, T, Hq, D], zeros where there is no document."""
    if len(outputs) == 1 and plan.spans[0].length == plan.length and outputs[0].shape[0] == plan.batch_size:
        return outputs[0]
    rows: list[list[Tensor]] = [[] for _ in range(plan.batch_size)]
    filled = [0] * plan.batch_size
    blank = outputs[0].new_zeros(1, plan.length, *outputs[0].shape[2:])
    for output, span in zip(outputs, plan.spans, strict=True):
        rows[span.first_row] += [blank[:, filled[span.first_row] : span.start], output]
        filled[span.first_row] = span.end
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
