"""Positions that full attention was trained on. A window needs no others than its own, whatever the text's length."""

from collections.abc import Mapping
from typing import Any

from transformers import PretrainedConfig

from pipeline.config import Variant
from pipeline.evaluation.evictions import FULL


def trained_positions(config: PretrainedConfig) -> int | None:
    """The base's max_position_embeddings, or what the YaRN of its config extends them to; None if it has none.

    Llama 3's scaling has an original length and a factor, too; its max_position_embeddings are the extended ones. Of
    linear scaling, which has a factor alone, a config does not say which they are: the extended ones in deepseek-coder
    and Gemma 3, the original ones in Vicuna 16k. They are taken as they stand: too small a number cuts prompts, which
    is told and which max_length sets right; too large a one would give scores beyond what was trained without a word.

    Args:
        config: of the whole model.
    """
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    original, factor = (rope.get(name) for name in ("original_max_position_embeddings", "factor"))
    own = getattr(config, "max_position_embeddings", None)
    scaled = int(original * factor) if original and factor and rope.get("rope_type") == "yarn" else None
    return max((positions for positions in (own, scaled) if positions is not None), default=None)


def positions_of(variant: Variant, config: PretrainedConfig, yarn_factor: float) -> int | None:
    """Positions that a variant can use; None: no bound."""
    if variant not in FULL:
        return None
    if variant == "full":
        return trained_positions(config)
    own = getattr(config.get_text_config(), "max_position_embeddings", None)  # what `Reader` extends
    return None if own is None else int(own * yarn_factor)


def describe_beyond(beyond: Mapping[str, Any], label: str) -> str:
    """A sentence on `prompts` of `of` that are longer than a variant's `positions`."""
    return (
        f"{label}: {beyond['prompts']:,} of {beyond['of']:,} prompts with their answers are longer than the "
        f"{beyond['positions']:,} positions that it can use, so its scores say what it does there and not what full "
        f"attention can do; compare with --variants full_yarn and a --yarn_factor that covers them."
    )
