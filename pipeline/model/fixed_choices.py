"""What transformers lets users choose of a model, and an AHN model decides itself: how it attends, what its cache is.

Another attention function would leave the memory out and take the cache of constant size for one that holds all
tokens: wrong, and without a word. So the config always answers `IMPLEMENTATION`, whoever sets what by whichever way,
and a choice that asks for something else is refused.
"""

import logging
from collections.abc import Mapping
from typing import Any, NoReturn

from transformers import GenerationConfig

from pipeline.errors import UserError
from pipeline.model.hybrid_attention import BASE_IMPLEMENTATION, IMPLEMENTATION

SAME_KERNELS = (None, IMPLEMENTATION, BASE_IMPLEMENTATION)
OWN_CACHES = (None, "dynamic", "dynamic_full")
logger = logging.getLogger(__name__)

AttentionChoice = str | Mapping[str, "AttentionChoice"] | None


def check_attention_choice(choice: AttentionChoice) -> None:
    """Lets pass what asks for nothing, or for the kernels that run anyway.

    Raises:
        UserError: another attention implementation, of the model or of a part of it.
    """
    if isinstance(choice, Mapping):
        for of_part in choice.values():
            check_attention_choice(of_part)
    elif choice not in SAME_KERNELS:
        raise UserError(
            f"attn_implementation={choice!r}: an AHN model attends by itself (sinks, window and memory, on the kernels "
            f"of {BASE_IMPLEMENTATION!r}); leave attn_implementation out or set it to {BASE_IMPLEMENTATION!r}"
        )


class OwnAttentionConfig:
    """Mixed into an AHN model's config."""

    @property
    def _attn_implementation(self) -> str:
        return IMPLEMENTATION

    @_attn_implementation.setter
    def _attn_implementation(self, choice: AttentionChoice) -> None:
        check_attention_choice(choice)
        self._attn_implementation_internal = IMPLEMENTATION


class OwnAttention:
    """Mixed into an AHN model and its decoder."""

    def set_attn_implementation(self, attn_implementation: AttentionChoice, allow_all_kernels: bool = False) -> None:
        """Changes nothing.

        Raises:
            UserError: as `check_attention_choice`.
        """
        check_attention_choice(attn_implementation)


class OwnCache:
    """Mixed into what generates: `HippocampusCache` is the only cache, of constant size."""

    def init_continuous_batching(self, *_: Any, **__: Any) -> NoReturn:
        """
        Raises:
            UserError: always.
        """
        raise UserError(
            "continuous batching (generate_batch, cache_implementation='paged') pages a cache of all tokens, an AHN "
            "model's cache is of constant size: use generate() with prompts padded on the left"
        )

    def _prepare_cache_for_generation(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> None:
        if generation_config.cache_implementation not in OWN_CACHES:
            logger.warning(
                "cache_implementation=%r is left aside: an AHN model's cache is of constant size already",
                generation_config.cache_implementation,
            )
        generation_config.cache_implementation = None
        super()._prepare_cache_for_generation(generation_config, *args, **kwargs)
