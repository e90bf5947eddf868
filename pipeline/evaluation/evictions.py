"""How many tokens the window evicted: without any, a memory was never read, so every suite counts and tells.

A prompt's number is that of the tokens which sinks + window have evicted by its end. It is a property of the prompt:
full attention, which evicts nothing, has the same prompts.
"""

from collections.abc import Collection, Mapping
from typing import Any

from pipeline.attention.window import WindowSpec
from pipeline.config import Variant, parse_variant
from pipeline.errors import UserError
from pipeline.evaluation.variant_windows import variant_window

FULL: tuple[Variant, ...] = ("full", "full_yarn")
"""Variants without a window."""
NOTHING = "NOTHING WAS EVICTED: no prompt is longer than sinks + window, so this says nothing about a memory."


def summarise_evictions(counts: Mapping[int, int]) -> dict[str, Any]:
    """Of prompts by the tokens that they evicted: `min`, `mean`, `max`, and the `share` that evicted any."""
    prompts = sum(counts.values())
    return {
        "min": min(counts),
        "mean": sum(evicted * number for evicted, number in counts.items()) / prompts,
        "max": max(counts),
        "share": 1 - counts.get(0, 0) / prompts,
    }


def describe_evictions(found: Mapping[str, Any]) -> str:
    """What `summarise_evictions` found, in a sentence."""
    if found["max"] == 0:
        return NOTHING
    mean = "less than 1" if found["mean"] <= 0.5 else f"{found['mean']:,.0f}"
    return (
        f"By the end of its prompt, sinks + window have evicted {found['min']:,} to {found['max']:,} tokens, "
        f"{mean} on average; {_percentage(found['share'])} of the prompts evict any."
    )


def _percentage(share: float) -> str:
    """Rounded, but neither to none nor to all where it is some."""
    rounded = f"{share:.0%}"
    if rounded == "0%" and share > 0:
        return "less than 1%"
    return "more than 99%" if rounded == "100%" and share < 1 else rounded


def require_evictions(
    flag: str, longest: int, window: WindowSpec, variants: Collection[Variant], decision_interval: int = 1
) -> None:
    """
    Args:
        flag: what decides on the prompts' lengths, with its value.
        longest: tokens of the longest prompt.
        window: sinks and window.
        variants: that are to be measured.
        decision_interval: of those that retain tokens.

    Raises:
        UserError: one of the variants has a window and would read the whole of every prompt.
    """
    windowed = [variant for variant in variants if variant not in FULL]
    for variant in windowed:
        kept = variant_window(parse_variant(variant), window, decision_interval).lossless_budget
        if window.num_evicted(longest) > 0 and longest <= kept:
            raise UserError(
                f"{flag}: the longest prompt has {longest:,} tokens, and --variants {variant} keeps {kept:,}: it would "
                f"be full attention; give longer ones, a smaller number, or --allow_no_evictions"
            )
    if window.num_evicted(longest) == 0 and windowed:
        raise UserError(
            f"{flag}: the longest prompt has {longest:,} tokens, and sinks + window keep {window.lossless_budget:,}: "
            f"nothing would be evicted, and the memory never read; give longer ones, a smaller --window_size, or "
            f"--allow_no_evictions"
        )
