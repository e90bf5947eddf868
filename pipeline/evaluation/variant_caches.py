"""The cache of each variant."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from pipeline.attention.window import WindowSpec
from pipeline.config import VariantSpec
from pipeline.evaluation.baseline_scorers import KnownScorer, RandomScorer, ReceivedScorer
from pipeline.model.cache import HippocampusCache
from pipeline.model.cache_layer import MemoryMode
from pipeline.model.compressive_cache import CompressiveCache
from pipeline.model.retained_cache import RetainedLayer, TokenScorer

POOLINGS = {"compressive_max": "max", "compressive_mean": "mean"}


def make_cache(
    model: PreTrainedModel,
    variant: VariantSpec,
    window: WindowSpec,
    seed: int,
    known_scores: dict[int, Tensor] | None = None,
) -> HippocampusCache:
    """An empty cache.

    Args:
        model: an AHN model.
        variant: parsed.
        window: what attention keeps as it is (variant_windows.py).
        seed: of `random`.
        known_scores: for `oracle`, of the text that is to be read, [Hkv, N] by layer.
    """
    if variant.kind in POOLINGS:
        return CompressiveCache(model.config, model.dtype, window, pooling=POOLINGS[variant.kind])
    mode: MemoryMode = "no_writes" if variant.kind == "memory_off" else "on" if variant.has_cell else "off"
    cache = HippocampusCache(model.config, window, memory=mode)
    make_scorer: Callable[[int], TokenScorer | None] = {
        "random": lambda layer: RandomScorer(seed, layer),
        "received": lambda layer: ReceivedScorer(),
        "oracle": lambda layer: KnownScorer(known_scores[layer]),
    }.get(variant.kind, lambda layer: None)
    for index, layer in enumerate(cache.layers):
        if isinstance(layer, RetainedLayer):
            layer.scorer = make_scorer(index)
    return cache
