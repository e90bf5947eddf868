"""Steps with a cache in a layer that retains tokens."""

import torch
from torch import Tensor

from pipeline.ahn.base import Gates
from pipeline.ahn.build import Memory
from pipeline.attention.received import received_mass
from pipeline.attention.retention import decided_order
from pipeline.model.retained_cache import EMPTY, BaseAttention, RetainedLayer, Table, join_tables, take


def attend_retained(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, memory: Memory, layer: RetainedLayer, scale: float,
    base_attention: BaseAttention,
) -> Tensor:  # fmt: skip
    """Attention and memory read of the next tokens, [B, T, Hq, D]; k and v [B, Hkv, T, D] are theirs."""
    if layer.padding is None:
        beyond = layer.num_seen + q.shape[2] > layer.window.lossless_budget
        if q.shape[2] == 1 and beyond and layer.facts and layer.decodes_in_place:
            return _decode(q, k, v, hidden, memory, layer, scale, base_attention)
        return _read_on(q, k, v, hidden, memory, layer, scale, base_attention)
    if q.shape[2] == 1 and layer.facts:
        return _decode(q, k, v, hidden, memory, layer, scale, base_attention)
    outputs, rows = [], layer.rows()
    for number, (row, padding) in enumerate(zip(rows, layer.padding.tolist(), strict=True)):
        own = slice(number, number + 1)
        first = min(max(0, padding - layer.num_seen), q.shape[2])
        output = q.new_zeros(1, q.shape[2], q.shape[1], v.shape[3])
        if first < q.shape[2]:
            new = q[own, :, first:], k[own, :, first:], v[own, :, first:], hidden[own, first:]
            read = _read_on(*new, memory, row, scale, base_attention)
            output = torch.cat([output[:, :first], read], 1)
        outputs.append(output)
    if any(row.facts for row in rows):
        layer.join(rows, q.shape[2])
    else:
        layer.num_seen += q.shape[2]
    return torch.cat(outputs)


def _read_on(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, memory: Memory, layer: RetainedLayer, scale: float,
    base_attention: BaseAttention,
) -> Tensor:  # fmt: skip
    """The next tokens of unpadded rows. What the cache has of them, in order, and the new tokens are together a
    document of which the dropped tokens are missing: the same rule goes on from it."""
    window, seen = layer.window, layer.num_seen
    gates = {} if layer.memory == "off" else memory.fn.write_gates(hidden)
    new = layer.new_tokens(k, v, gates, _score_new(memory, layer, hidden), seen)
    old = layer.in_order()
    num_old = min(seen, window.lossless_budget)
    whole = join_tables(old, new)
    num_skipped, num_tokens = seen - num_old, num_old + q.shape[2]
    received = received_mass(q, whole["keys"], window, scale=scale, num_skipped=num_skipped)
    whole["received"] = whole["received"] + received
    num_drops = max(0, num_tokens - window.lossless_budget)
    if num_drops == 0:
        layer.sample(q, scale)
        layer.append(new)
        layer.facts["received"][:, :, :num_tokens] = whole["received"]
        none = torch.empty(*k.shape[:2], 0, dtype=torch.int64, device=k.device)
        return layer.attend(q, whole, none, scale=scale, base_attention=base_attention)
    candidates = slice(window.num_sink_tokens, num_tokens - window.window_size)
    facts = {name: whole[name][:, :, candidates] for name in ("partial", "received", "position", "doomed")}
    order = _next_drops(facts, memory, layer)
    drops = order[..., :num_drops]
    output = layer.attend(q, whole, drops, scale=scale, base_attention=base_attention)
    if layer.memory != "off":
        dropped = take(whole, window.num_sink_tokens + drops)
        output = _add_read(output, q, hidden, dropped, None, memory, layer)
    _keep(layer, whole, order, num_drops)
    layer.num_seen, layer.sampled = seen + q.shape[2], None
    return output


def _score_new(memory: Memory, layer: RetainedLayer, hidden: Tensor) -> Tensor:
    """What is known of the scores of the next tokens, [B, T, Hkv]."""
    if layer.scorer is None:
        return memory.retention.score_hidden(hidden)
    positions = layer.positions(layer.num_seen, layer.num_seen + hidden.shape[1])
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    return layer.scorer.score_positions(positions, layer.keys.shape[1], dtype).expand(hidden.shape[0], -1, -1)


def _next_drops(facts: Table, memory: Memory, layer: RetainedLayer) -> Tensor:
    """Candidates [B, Hkv, n] in the order in which they are dropped, of all on which there is a decision."""
    window, num_pending = layer.window, layer.num_pending
    scores = _finish(facts, memory, layer)
    first = (~facts["doomed"]).to(torch.int8).argsort(dim=2, stable=True)  # the pending ones, then the others
    pending, rest = first[..., :num_pending], first[..., num_pending:]
    later = decided_order(scores.gather(2, rest), window.num_retained_tokens, window.decision_interval)
    return torch.cat([pending, rest.gather(2, later)], 2)


def _finish(facts: Table, memory: Memory, layer: RetainedLayer) -> Tensor:
    """Scores [B, Hkv, n]."""
    scorer = memory.retention if layer.scorer is None else layer.scorer
    known = (facts[name].transpose(1, 2) for name in ("partial", "received", "position"))
    return scorer.finish(*known).transpose(1, 2)


def _keep(layer: RetainedLayer, whole: Table, order: Tensor, num_drops: int) -> None:
    """Stores what is not dropped, in order of position."""
    num_sinks = layer.window.num_sink_tokens
    is_dropped = torch.zeros_like(whole["doomed"], dtype=torch.int8).scatter(2, num_sinks + order[..., :num_drops], 1)
    whole["doomed"] = torch.zeros_like(whole["doomed"]).scatter(2, num_sinks + order[..., num_drops:], True)
    kept = is_dropped.argsort(dim=2, stable=True)[..., : is_dropped.shape[2] - num_drops]
    layer.set_table(take(whole, kept))


def _decode(
    q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, memory: Memory, layer: RetainedLayer, scale: float,
    base_attention: BaseAttention,
) -> Tensor:  # fmt: skip
    """One token: in each head it takes the slot of the one that is dropped, and attends to the slots as they lie.

    Rows of a padded batch may be within their budget, or hold nothing but padding; they drop nothing.
    """
    window = layer.window
    gates = {} if layer.memory == "off" else memory.fn.write_gates(hidden)
    new = layer.new_tokens(k, v, gates, _score_new(memory, layer, hidden), 0)
    layer.make_room(new, layer.num_seen + 1)
    query = layer.positions(layer.num_seen, layer.num_seen + 1)[..., None]  # [1 or B, 1, 1]
    new["position"] = query.expand(new["position"].shape)
    slot = _choose_slot(memory, layer, query)
    dropped = take(layer.table(), slot)
    is_token = query >= 0
    for name, x in layer.table().items():
        at = slot if x.ndim == 3 else slot[..., None].expand(-1, -1, -1, x.shape[3])
        keeps = is_token if x.ndim == 3 else is_token[..., None]
        x.scatter_(2, at, torch.where(keeps, new[name].to(x.dtype), dropped[name]))
    layer.num_seen += 1
    filled = layer.facts["position"] != EMPTY
    mask = None
    if layer.padding is not None:
        mask = (filled | ~is_token)[:, :1, None].expand(-1, q.shape[1], -1, -1)
    output = base_attention(q, layer.keys, layer.values, mask)
    _receive(q, layer, query, scale)
    layer.sampled = None
    if layer.memory == "off":
        return output
    return _add_read(output, q, hidden, dropped, query >= window.lossless_budget, memory, layer)


def _choose_slot(memory: Memory, layer: RetainedLayer, query: Tensor) -> Tensor:
    """The slot that the next token takes, int64 [B, Hkv, 1], after a decision where one is due."""
    window, facts = layer.window, layer.facts
    position = facts["position"]
    if layer.padding is not None or layer.num_pending == 0:
        event = query - window.num_sink_tokens - window.window_size
        is_due = (event >= window.num_held) & ((event - window.num_held) % window.decision_interval == 0)
        is_candidate = (position >= window.num_sink_tokens) & (position <= query - window.window_size)
        scores = _finish(facts, memory, layer).masked_fill(~is_candidate, torch.inf)
        by_age = position.argsort(dim=2)
        worst = by_age.gather(2, scores.gather(2, by_age).argsort(dim=2, stable=True))
        loses = torch.zeros_like(facts["doomed"]).scatter(2, worst[..., : window.decision_interval], True)
        facts["doomed"] = facts["doomed"] | (loses & is_due)
    never = torch.iinfo(torch.int64).max
    oldest = position.masked_fill(~facts["doomed"], never).argmin(dim=2, keepdim=True)
    return torch.where(query < window.lossless_budget, query.clamp(min=0), oldest)


def _receive(q: Tensor, layer: RetainedLayer, query: Tensor, scale: float) -> None:
    """Adds what one query gives the window's tokens to their masses, where it is one that is looked at."""
    window, position = layer.window, layer.facts["position"]
    stride = window.sampling_stride
    if layer.padding is None and (layer.num_seen - 1) % stride:
        return
    received = layer.facts["received"]
    logits = torch.einsum(
        "bhgd,bhkd->bhgk", q[:, :, 0].unflatten(1, (position.shape[1], -1)).to(received.dtype),
        layer.keys.to(received.dtype),
    ) * scale  # fmt: skip
    is_sink = (position >= 0) & (position < window.num_sink_tokens)
    in_window = (position >= window.num_sink_tokens) & (query - position < window.window_size)
    given = logits.masked_fill(~(is_sink | in_window)[:, :, None], -torch.inf).softmax(-1).mean(2)
    counts = in_window & (position < query) & (query >= 0) & (query % stride == 0)
    layer.facts["received"] = torch.where(counts, received + given, received)


def _add_read(
    output: Tensor, q: Tensor, hidden: Tensor, dropped: Table, is_dropped: Tensor | None, memory: Memory,
    layer: RetainedLayer,
) -> Tensor:  # fmt: skip
    """Writes what was dropped, E tokens, and adds what the last E queries read.

    Args:
        output: [B, T, Hq, D].
        is_dropped: [1 or B, 1, 1], rows that dropped something; None: all.
    """
    num_reads = dropped["keys"].shape[2]
    gates: Gates = {
        name.removeprefix("gates."): gate.transpose(1, 2).flatten(2)
        for name, gate in dropped.items()
        if name.startswith("gates.")
    }
    if layer.memory == "no_writes":
        gates = {name: torch.zeros_like(gate) for name, gate in gates.items()}
    elif is_dropped is not None:
        gates = {name: torch.where(is_dropped, gate, 0.0) for name, gate in gates.items()}
    read, layer.state = memory.fn.read(
        q[:, :, -num_reads:].transpose(1, 2),
        dropped["keys"].transpose(1, 2),
        dropped["values"].transpose(1, 2),
        gates,
        hidden[:, -num_reads:],
        initial_state=layer.state,
        output_final_state=True,
    )
    num_before = output.shape[1] - num_reads
    return torch.cat([output[:, :num_before], output[:, num_before:] + read.to(output.dtype)], 1)
