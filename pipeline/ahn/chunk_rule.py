"""The cells' recurrence in chunks, in plain torch, with a hand-written backward: linear in length, small in memory.

One recurrence serves all cells. Per query head, with log decays g <= 0, write strengths b and a state h [D, D]:

    delta rule:  h <- e^g (h - b k^T (k h)) + b k^T v        (DeltaNet: g = 0; GatedDeltaNet)
    otherwise:   h <- e^g h + b k^T v                        (Mamba2: b = dt)
    output:      o = scale q h

Within a chunk of C tokens, with G the running sum of g, L_ij = e^(G_i - G_j) and h the state at its start:

    T0 = strictly lower part of (k k^T) L       M = (I + b T0)^-1 b       (b as a diagonal matrix)
    z = v - e^G (k h),    n = M z               (otherwise n = b v)
    o = scale (e^G (q h) + ((q k^T) L) n),      h' = e^G_C h + (e^(G_C - G) k)^T n

(arXiv 2412.06464, section 3.3, with u - w h of the WY form written as M z.) Tokens are taken in segments of a few
chunks, so that temporaries stay in the processor's cache; the forward keeps the state at the start of each segment,
the backward recomputes the rest.

Shapes inside: N chunks a segment, X = B * Hq, C tokens a chunk.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CHUNK_SIZE = 32
CHUNKS_PER_SEGMENT = 4


def chunk_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor, *, scale: float, delta: bool
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, Hq, D] and the state after the last token [B, Hq, D, D]; T >= 1.

    Args:
        q: [B, T, Hq, D].
        k, v: [B, T, Hkv, D], Hq a multiple of Hkv.
        g: log decay [B, T, Hq].
        beta: write strength [B, T, Hq].
        state: [B, Hq, D, D] before the first token.
        scale: factor on the output.
        delta: whether a write first removes what its key reads.
    """
    return _ChunkRule.apply(q, k, v, g, beta, state, scale, delta)


class _Segment(NamedTuple):
    """Inputs of N chunks, each [N, X, C, ..]; keys and values repeated to the query heads."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor


class _Factors(NamedTuple):
    """What a segment's chunks need, independent of the state."""

    decay: Tensor  # e^G [N, X, C, 1]
    decay_to_end: Tensor  # e^(G_C - G) [N, X, C, 1]
    total: Tensor  # e^G_C [N, X, 1, 1]
    scores: Tensor  # scale (q k^T) L [N, X, C, C]
    lower: Tensor  # L, zero above the diagonal [N, X, C, C]
    keys: Tensor | None  # T0 [N, X, C, C]
    mix: Tensor | None  # M [N, X, C, C]
    k_read: Tensor | None  # -e^G k [N, X, C, D]
    k_write: Tensor  # e^(G_C - G) k [N, X, C, D]


class _ChunkRule(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        beta: Tensor,
        state: Tensor,
        scale: float,
        delta: bool,
    ) -> tuple[Tensor, Tensor]:
        output = torch.empty(*q.shape[:3], v.shape[3], dtype=v.dtype, device=v.device)
        segments, h = _segments(q.shape[1]), state.flatten(0, 1)
        entries = h.new_empty(len(segments), *h.shape)
        for (start, end), entry in zip(segments, entries, strict=True):
            entry.copy_(h)
            segment = _take(start, end, q, k, v, g, beta)
            factors = _factors(segment, scale, delta)
            scan = _scan(segment, factors, entry)
            from_state = (segment.q * (factors.decay * scale)) @ scan.states[:-1]
            _put(output, start, end, from_state.add_(factors.scores @ scan.new))
            h = scan.states[-1]
        ctx.save_for_backward(q, k, v, g, beta, entries)
        ctx.scale, ctx.delta = scale, delta
        return output, h.unflatten(0, state.shape[:2]).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad_output: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, entries = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in inputs]
        dh = grad_state.flatten(0, 1)
        for (start, end), h in zip(reversed(_segments(inputs[0].shape[1])), entries.flip(0), strict=True):
            segment = _take(start, end, *inputs)
            (d_out,) = _by_chunk(start, end, (grad_output,), segment.q.shape[1] // grad_output.shape[0])
            parts, dh = _segment_backward(segment, _factors(segment, ctx.scale, ctx.delta), h, d_out, dh, ctx.scale)
            for gradient, part in zip(gradients, parts, strict=True):
                _put(gradient, start, end, part)
        return *gradients, dh.view_as(grad_state), None, None


def _segments(length: int) -> list[tuple[int, int]]:
    size = CHUNK_SIZE * CHUNKS_PER_SEGMENT
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def _by_chunk(start: int, end: int, tensors: tuple[Tensor, ...], num_heads: int) -> list[Tensor]:
    """Tokens [start, end) of tensors [B, T, H, ..] as [N, B * num_heads, C, ..]; zeros behind the end."""
    length = end - start
    chunk = min(CHUNK_SIZE, length)
    results = []
    for x in tensors:
        x = x[:, start:end]
        if padding := -length % chunk:
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding))
        x = x.unflatten(1, (-1, chunk)).movedim(1, 0).movedim(3, 2)  # [N, B, H, C, ..]
        repeats = num_heads // x.shape[2]
        x = x.unsqueeze(3).expand(-1, -1, -1, repeats, *x.shape[3:])
        results.append(x.reshape(x.shape[0], -1, *x.shape[4:]))
    return results


def _take(start: int, end: int, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> _Segment:
    return _Segment(*_by_chunk(start, end, (q, k, v, g, beta), q.shape[2]))


def _put(target: Tensor, start: int, end: int, source: Tensor) -> None:
    """Writes [N, B * Hq, C, ..] into tokens [start, end) of `target` [B, T, H, ..], summed over repeated heads."""
    source = source.unflatten(1, (target.shape[0], target.shape[2], -1))  # [N, B, H, R, C, ..]
    source = source.sum(3) if source.shape[3] > 1 else source.squeeze(3)
    source = source.movedim(3, 2).movedim(0, 1).flatten(1, 2)  # [B, N * C, H, ..]
    target[:, start:end] = source[:, : end - start]


def _factors(segment: _Segment, scale: float, delta: bool) -> _Factors:
    # float64: beside one strong decay the differences of small ones would drown in float32. e^-1000 is 0 anyway.
    log_decay = segment.g.double().clamp(min=-1e3).cumsum(-1)[..., None]
    chunk, dtype = log_decay.shape[2], segment.q.dtype
    above = torch.ones(chunk, chunk, dtype=torch.bool, device=log_decay.device).triu(1)
    lower = (log_decay - log_decay.mT).to(dtype).masked_fill_(above, float("-inf")).exp_()
    decay, decay_to_end = log_decay.to(dtype).exp(), (log_decay[:, :, -1:] - log_decay).to(dtype).exp()
    keys = mix = k_read = None
    if delta:
        keys = ((segment.k @ segment.k.mT) * lower).tril_(-1)
        strength = torch.diag_embed(segment.beta)
        mix = torch.linalg.solve_triangular(keys * segment.beta[..., None], strength, upper=False, unitriangular=True)
        k_read = segment.k * -decay
    return _Factors(
        decay=decay,
        decay_to_end=decay_to_end,
        total=decay[:, :, -1:],
        scores=(segment.q @ segment.k.mT).mul_(lower).mul_(scale),
        lower=lower,
        keys=keys,
        mix=mix,
        k_read=k_read,
        k_write=segment.k * decay_to_end,
    )


class _Scan(NamedTuple):
    states: Tensor  # at the start of each chunk and at the end [N + 1, X, D, D]
    new: Tensor  # n [N, X, C, D]
    z: Tensor | None  # [N, X, C, D], delta rule only


def _scan(segment: _Segment, factors: _Factors, h: Tensor) -> _Scan:
    """Goes through the chunks, given the state at their start."""
    states = h.new_empty(len(segment.q) + 1, *h.shape)
    states[0] = h
    if factors.mix is None:
        new, z = segment.v * segment.beta[..., None], None
    else:
        new, z = torch.empty_like(segment.v), torch.empty_like(segment.v)
    for i in range(len(segment.q)):
        if factors.mix is not None:
            torch.baddbmm(segment.v[i], factors.k_read[i], states[i], out=z[i])
            torch.bmm(factors.mix[i], z[i], out=new[i])
        torch.mul(states[i], factors.total[i], out=states[i + 1])
        states[i + 1].baddbmm_(factors.k_write[i].mT, new[i])
    return _Scan(states, new, z)


def _segment_backward(
    segment: _Segment, factors: _Factors, h: Tensor, d_out: Tensor, dh: Tensor, scale: float
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of q, k, v, g, beta [N, X, C, ..] and of the state at the segment's start.

    `dx` is the gradient of x; `dh_out` [N, X, D, D] the one of the state after each chunk.
    """
    scan = _scan(segment, factors, h)
    states, new = scan.states[:-1], scan.new
    dn = factors.scores.mT @ d_out
    dh_in = torch.empty_like(scan.states)
    torch.matmul((segment.q * (factors.decay * scale)).mT, d_out, out=dh_in[:-1])
    dh_in[-1] = dh
    dz = torch.empty_like(dn)
    for i in reversed(range(len(segment.q))):
        dn[i].baddbmm_(factors.k_write[i], dh_in[i + 1])
        dh_in[i].addcmul_(dh_in[i + 1], factors.total[i])
        if factors.mix is not None:
            torch.bmm(factors.mix[i].mT, dn[i], out=dz[i])
            dh_in[i].baddbmm_(factors.k_read[i].mT, dz[i])
    dh, dh_out = dh_in[0], dh_in[1:]

    grad_scores = d_out @ new.mT
    pairs = grad_scores * factors.scores
    d_scores = grad_scores.mul_(factors.lower).mul_(scale)
    dq = (d_out @ states.mT).mul_(factors.decay * scale)
    d_reads = (segment.q * dq).sum(-1)
    dq += d_scores @ segment.k
    dk_end = (new @ dh_out.mT).mul_(factors.decay_to_end)
    d_writes = (segment.k * dk_end).sum(-1, dtype=torch.float64)
    dk = d_scores.mT @ segment.q + dk_end
    if factors.mix is None:
        dv = dn * segment.beta[..., None]
        dbeta = (dn * segment.v).sum(-1)
    else:
        dv = dz
        grad_keys = dz @ new.mT
        pairs -= grad_keys * factors.keys
        d_keys = grad_keys.mul_(factors.lower).tril_(-1)
        dk_read = (dz @ states.mT).mul_(-factors.decay)
        d_reads += (segment.k * dk_read).sum(-1)
        dk += dk_read - d_keys @ segment.k - d_keys.mT @ segment.k
        # n = b (z - T0 n) and dn' = dn - T0^T dz is the gradient of b (z - T0 n)
        dbeta = ((dn - factors.keys.mT @ dz) * (scan.z - factors.keys @ new)).sum(-1)
    # G_i - G_j moves only the decays of j+1 .. i: a pair's part is added at i and taken away at j, as the same number
    # and in float64, so that nothing of it remains in the sums of the tokens up to j.
    d_log_decay = pairs.sum(-1, dtype=torch.float64) - pairs.sum(-2, dtype=torch.float64) + d_reads - d_writes
    d_log_decay[:, :, -1] += d_writes.sum(-1) + (dh_out * states).sum((-1, -2)) * factors.total[..., 0, 0]
    dg = d_log_decay.flip(-1).cumsum(-1).flip(-1).to(dq.dtype)
    return (dq, dk, dv, dg, dbeta), dh
