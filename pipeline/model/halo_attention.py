"""Attention and memory of a rank that keeps its own tokens, with all heads: the rest of the window and the sinks come
from the ranks before. What that sends does not grow with the row."""

import torch
from torch import Tensor

from pipeline.ahn.build import Memory
from pipeline.attention.sink_window import sink_window_attention
from pipeline.distributed.halo import fetch_runs
from pipeline.model.halo_plan import Segment
from pipeline.model.plan import DocumentPlan
from pipeline.model.state_passing import StatePassing


def attend_with_halo(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, memory: Memory, hidden: Tensor, plan: DocumentPlan
) -> Tensor:
    """Attention output plus memory read of this rank's tokens, [1, n, Hq, D]; query [1, Hq, n, D], key and value
    [1, Hkv, n, D], hidden [1, n, hidden]. Collective."""
    segments, first_token = plan.halo.segments, plan.shard.bounds[0]
    key, value = _with_kept(key, value, plan)
    num_before = key.shape[2] - query.shape[2]
    outputs, inputs = [], []
    for segment in segments:
        start, end = segment.start - first_token, segment.end - first_token
        q = query[:, :, start:end]
        first_key = num_before + start if start else 0
        k, v = (x[:, :, first_key : num_before + end] for x in (key, value))
        options = {"scale": scaling, "num_skipped": segment.num_skipped}
        outputs.append(sink_window_attention(q, k, v, segment.window, **options))
        inputs.append(_memory_inputs(q, k, v, segment))
    if plan.use_memory:
        together = inputs[0] if len(inputs) == 1 else [torch.cat(x, 1) for x in zip(*inputs, strict=True)]
        read = memory.fn(*together, hidden, hidden, exchange=StatePassing(plan.halo, plan.shard)).to(query.dtype)
        reads = read.split([segment.num_reads for segment in segments], 1)
        # cat, not +=: an empty read keeps this rank's part in the exchanges' backward passes
        outputs = [
            torch.cat([o[:, : o.shape[1] - read.shape[1]], o[:, o.shape[1] - read.shape[1] :] + read], 1)
            for o, read in zip(outputs, reads, strict=True)
        ]
    return torch.cat(outputs, 1)


def _with_kept(key: Tensor, value: Tensor, plan: DocumentPlan) -> tuple[Tensor, Tensor]:
    """This rank's keys and values [1, Hkv, n, D] behind those that its first segment's queries see or evict."""
    rows = torch.cat([key[0], value[0]]).transpose(0, 1)
    fetched = fetch_runs(rows.flatten(1), plan.shard.counts, plan.halo.kept_runs, plan.shard.group)
    keys, values = fetched.unflatten(1, rows.shape[1:]).transpose(0, 1)[None].chunk(2, 1)
    return torch.cat([keys, key], 2), torch.cat([values, value], 2)


def _memory_inputs(q: Tensor, k: Tensor, v: Tensor, segment: Segment) -> tuple[Tensor, Tensor, Tensor]:
    """Queries that read and keys and values that they evict, [1, E, H, D]."""
    num_reads = segment.num_reads
    first = k.shape[2] - segment.window.window_size - num_reads if num_reads else 0
    k, v = (x.narrow(2, first, num_reads) for x in (k, v))
    return tuple(x.transpose(1, 2) for x in (q[:, :, q.shape[2] - num_reads :], k, v))
