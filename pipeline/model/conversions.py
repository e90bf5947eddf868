"""How transformers maps a checkpoint's tensors to a model's, for AHN classes as for their bases.

Mixture-of-experts checkpoints hold each expert apart, and the model all of them in one tensor. transformers looks up
what to do by the name of a class, then by its model type; an AHN class has names of its own, and what is not found
there would be left at random values.
"""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping


def adopt_conversions(base: str, own: str) -> None:
    """What holds for a base's class name or model type holds for `own`."""
    conversions = get_checkpoint_conversion_mapping(base)
    if conversions is not None:
        register_checkpoint_conversion_mapping(own, conversions, overwrite=True)
