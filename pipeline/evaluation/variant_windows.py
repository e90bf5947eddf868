"""What attention keeps as it is under each variant."""

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant, VariantSpec, parse_variant

EVERYTHING = WindowSpec(0, 2**62)


def variant_window(variant: VariantSpec, window: WindowSpec, decision_interval: int) -> WindowSpec:
    """
    Args:
        variant: parsed.
        window: sinks and window that all variants with a window have.
        decision_interval: C, of those that retain tokens.
    """
    if variant.kind in ("full", "full_yarn"):
        return EVERYTHING
    if variant.is_retaining:
        return WindowSpec(window.num_sink_tokens, window.window_size, variant.num_tokens, decision_interval)
    if variant.kind == "wider":  # by what a variant that retains as many keeps
        return WindowSpec(window.num_sink_tokens, window.window_size + variant.num_tokens + decision_interval - 1)
    return window


def largest_budget(variants: tuple[Variant, ...], window: WindowSpec, decision_interval: int) -> int:
    """The most tokens that one of the variants with a window keeps; without any, those of sinks + window."""
    kept = [variant_window(parse_variant(variant), window, decision_interval) for variant in variants]
    return max((spec.lossless_budget for spec in kept if spec != EVERYTHING), default=window.lossless_budget)
