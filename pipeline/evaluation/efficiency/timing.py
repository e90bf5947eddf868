"""Time and memory of one context: read in chunks, then token after token."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.attention.window import WindowSpec
from pipeline.config import parse_variant
from pipeline.evaluation.out_of_memory import is_out_of_memory
from pipeline.evaluation.reader import Reader
from pipeline.metrics.accounting import compute_account
from pipeline.metrics.architecture import Architecture, parse_architecture

WARM_UP_TOKENS = 64
ACCOUNTED = ("full", "window", "wider", "retained", "ahn")
"""Kinds of variants."""
MAX_READINGS, ENOUGH_SECONDS = 3, 2.0
"""A context is read again while that is quick: short times are the noisiest."""


@dataclass(frozen=True)
class Timing:
    """`prefill_s`: seconds for the whole context; `decode_s`: of a token after it, logits included; both medians.

    `cache_bytes`: what the cache holds after the context. `peak_bytes`: most memory that CUDA had allocated meanwhile,
    weights included; None on a CPU.
    """

    prefill_s: float
    decode_s: float
    cache_bytes: int
    peak_bytes: int | None


def time_context(reader: Reader, tokens: Sequence[int], new_tokens: int) -> Timing | None:
    """Reads all but the last `new_tokens` + 1 of `tokens`, then those one by one, the first of them untimed.

    What is read token by token is the text's own, so that no variant stops early.

    Returns:
        None: the device has not the memory for it.
    """
    try:
        return _time_context(reader, tokens, new_tokens)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
    if reader.model.device.type == "cuda":
        torch.cuda.empty_cache()  # not before: the error holds what had been allocated
    return None


def _time_context(reader: Reader, tokens: Sequence[int], new_tokens: int) -> Timing:
    length, on_cuda = len(tokens) - new_tokens - 1, reader.model.device.type == "cuda"
    # CUDA chooses and compiles kernels by shape, so the very context warms it up.
    reader.read(tokens[: length if on_cuda else min(length, WARM_UP_TOKENS)], reader.new_cache())
    if on_cuda:
        torch.cuda.reset_peak_memory_stats(reader.model.device)
    prefills: list[float] = []
    while not prefills or (len(prefills) < MAX_READINGS and sum(prefills) < ENOUGH_SECONDS):
        cache = reader.new_cache()
        started = _now(reader)
        reader.read(tokens[:length], cache)
        prefills.append(_now(reader) - started)
    cache_bytes = cache.num_bytes()
    seconds = []
    for token in tokens[length:]:
        started = _now(reader)
        reader.generate([token], cache, max_new_tokens=1)
        seconds.append(_now(reader) - started)
    peak = torch.cuda.max_memory_allocated(reader.model.device) if on_cuda else None
    return Timing(statistics.median(prefills), statistics.median(seconds[1:]), cache_bytes, peak)


@dataclass(frozen=True)
class Accounted:
    """What pipeline/metrics/accounting.py says of one context. `decode_flops`: of the token after it.

    `cache_bytes`: by the paper's formula. `kept_bytes`: as kept here; the same with full attention.
    """

    prefill_flops: float
    decode_flops: float
    cache_bytes: float
    kept_bytes: float


def account_context(reader: Reader, length: int, window: WindowSpec) -> Accounted | None:
    """The figures of `full` and of the variants that keep sinks, window and tokens that the model chooses; None for the
    others, of which accounting has none."""
    variant = parse_variant(reader.variant)
    if variant.kind not in ACCOUNTED:
        return None
    config, bytes_per_element = reader.model.config, reader.model.dtype.itemsize
    architecture: Architecture = parse_architecture(config.to_dict(), "the model's config")
    cell, column = config.ahn["cell"] if variant.has_cell else None, "full" if variant.kind == "full" else "ahn"
    kept = window if column == "full" else reader.kept  # nothing that full attention keeps enters its column
    now, then = (compute_account(architecture, cell, n, kept, bytes_per_element) for n in (length, length + 1))
    flops, next_flops, cache = (getattr(pair, column) for pair in (now.model_flops, then.model_flops, now.cache_bytes))
    return Accounted(flops, next_flops - flops, cache, cache if column == "full" else now.kept_bytes)


def _now(reader: Reader) -> float:
    """Seconds, once all that the GPU was given is done."""
    if reader.model.device.type == "cuda":
        torch.cuda.synchronize(reader.model.device)
    return time.perf_counter()
