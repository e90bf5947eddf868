"""A frozen base computes the same whenever it is asked: without dropout, router noise or layers left out.

What a module draws in training hangs on its `training`, by many names, so all of a frozen base stays in eval mode.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


def freeze_base(model: PreTrainedModel) -> PreTrainedModel:
    """Only AHN parameters keep requires_grad, and only memories follow `model.train()` from now on."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".ahn." in name)
    model.frozen_modules = tuple(m for name, m in model.named_modules() if name and "ahn" not in name.split("."))
    for layer in model.get_decoder().layers:
        layer.forward = partial(_recompute_where_asked, layer, layer.forward)
    return model.train(model.training)


def _recompute_where_asked(layer: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """transformers' activation checkpointing asks for a layer in training mode, which a frozen one never is.

    Not with a cache: what is computed twice would be written twice.
    """
    is_asked = getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled()
    if is_asked and kwargs.get("past_key_values") is None:
        return layer._gradient_checkpointing_func(partial(forward, **kwargs), *args)
    return forward(*args, **kwargs)
