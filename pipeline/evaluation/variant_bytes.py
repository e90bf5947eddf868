"""How many bytes a variant keeps of one text in each layer with full attention, once tokens have left the window."""

from dataclasses import dataclass

import torch

from pipeline.config import parse_variant
from pipeline.evaluation.reader import Reader
from pipeline.evaluation.variant_caches import POOLINGS
from pipeline.evaluation.variant_windows import EVERYTHING
from pipeline.metrics.accounting import NUM_WRITE_GATES
from pipeline.metrics.architecture import parse_architecture
from pipeline.metrics.retained_cost import facts_bytes
from pipeline.model.compressive_cache import num_slots_of_state
from pipeline.model.compressive_layout import MAX_WAITING


@dataclass(frozen=True)
class VariantBytes:
    """Of one layer.

    `tokens`: W, whose keys and values are kept as they are, `lossless_bytes` in all; None with full attention, which
    keeps every token. `side_bytes`: what goes with those tokens: write gates, positions, what scores are made from.
    `state_bytes`: the cell's state, or a Compressive Transformer's pooled and waiting tokens.
    """

    tokens: int | None
    lossless_bytes: int | None
    side_bytes: int
    state_bytes: int


def count_bytes(reader: Reader) -> VariantBytes:
    """What `reader.new_cache()` comes to hold (checked against it, tests/evaluation/test_variant_bytes.py)."""
    config, dtype, variant = reader.model.config, reader.model.dtype, parse_variant(reader.variant)
    sizes = parse_architecture(config.to_dict(), "the model's config")
    token_bytes = 2 * sizes.num_key_value_heads * sizes.head_dim * dtype.itemsize
    if reader.kept == EVERYTHING:
        return VariantBytes(None, None, 0, 0)
    exact = torch.promote_types(dtype, torch.float32).itemsize
    budget, sinks = reader.kept.lossless_budget, reader.kept.num_sink_tokens
    side, state = 0, 0
    if variant.is_retaining:
        side += facts_bytes(sizes, budget, exact)
    if reader.has_cell or variant.kind == "memory_off":
        gated = budget if variant.is_retaining else budget - sinks
        side += gated * sizes.num_attention_heads * NUM_WRITE_GATES[config.ahn["cell"]] * exact
        state += sizes.num_attention_heads * sizes.head_dim**2 * exact
    if variant.kind in POOLINGS:
        state += (num_slots_of_state(config, dtype) + MAX_WAITING) * token_bytes
    return VariantBytes(budget, budget * token_bytes, side, state)
