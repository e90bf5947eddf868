"""Reads many token sequences into caches, and what several of them begin with only once.

Every sequence is read in parts of `prefill_chunk` tokens counted from its own first token, and a prefix is shared only
up to the end of such a part. The forwards of a sequence are therefore the same with and without others beside it, so
sharing changes no bit of what the model gives.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise

import numpy as np
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from pipeline.model.cache import HippocampusCache
from pipeline.model.decoder import window_of


def read_prefixes(
    model: PreTrainedModel, sequences: Sequence[np.ndarray], ends: Sequence[int], prefill_chunk: int
) -> Iterator[tuple[int, Cache]]:
    """Gives each sequence a cache of its own, in an order in which those with a common beginning are neighbours.

    Alive at a time: one cache a level at which later sequences branch off, and the one that was handed out last.

    Args:
        model: an AHN model, or a base with full attention.
        sequences: int32 [T] each, unpadded tokens.
        ends: how many tokens of each may be read here, at most; the caller reads on from the last part before that.
        prefill_chunk: tokens at a time.

    Yields:
        A sequence's index, and a cache that has seen its first `ends[index] // prefill_chunk * prefill_chunk` tokens.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">u4").tobytes())
    targets = [ends[i] // prefill_chunk * prefill_chunk for i in order]
    shared = [
        min(_num_common(sequences[a], sequences[b]) // prefill_chunk * prefill_chunk, targets[k], targets[k + 1])
        for k, (a, b) in enumerate(pairwise(order))
    ]
    shared.append(0)
    kept: list[tuple[int, Cache]] = []  # by length; all begin the next sequence
    for k, (index, target) in enumerate(zip(order, targets, strict=True)):
        start, cache = kept[-1] if kept else (0, new_cache(model))
        if 0 < start <= shared[k]:
            cache = copy.deepcopy(cache)  # others go on from it too
        while kept and kept[-1][0] > shared[k]:
            kept.pop()
        for branch in _branches(shared, k, start):
            read(model, to_ids(sequences[index][start:branch], model), cache, prefill_chunk)
            kept.append((branch, copy.deepcopy(cache)))
            start = branch
        read(model, to_ids(sequences[index][start:target], model), cache, prefill_chunk)
        yield index, cache


@torch.no_grad()
def read(model: PreTrainedModel, input_ids: Tensor, cache: Cache, prefill_chunk: int) -> None:
    """Reads `input_ids` [1, T] into the cache without computing a logit."""
    if input_ids.shape[1] > 0:
        for part in input_ids.split(prefill_chunk, dim=1):
            model.get_decoder()(input_ids=part, past_key_values=cache, use_cache=True)


def new_cache(model: PreTrainedModel) -> Cache:
    """An empty cache of the model's kind."""
    if getattr(model.config, "ahn", None) is None:
        return DynamicCache(config=model.config)
    return HippocampusCache(model.config, window_of(model.config))


def to_ids(tokens: np.ndarray, model: PreTrainedModel) -> Tensor:
    """int64 [1, T] on the model's device."""
    return torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)


def _num_common(a: np.ndarray, b: np.ndarray) -> int:
    """Tokens that both begin with."""
    length = min(len(a), len(b))
    differences = np.flatnonzero(a[:length] != b[:length])
    return int(differences[0]) if len(differences) else length


def _branches(shared: Sequence[int], k: int, start: int) -> list[int]:
    """Lengths above `start`, rising, at which a later sequence leaves the k-th."""
    lengths, common = set(), shared[k]
    for length in islice(shared, k, None):
        common = min(common, length)
        if common <= start:
            break
        lengths.add(common)
    return sorted(lengths)
